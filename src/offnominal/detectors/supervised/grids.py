"""What is known about the positions of a grid, and what a grid says about its image."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["finer", "gradient_map", "grid_targets", "top_mean"]

_UNKNOWN = 255
_CLIPPED = 0.99  # quantile of a gradient map that stands for 1


def grid_targets(targets: Tensor, grid: torch.Size | tuple[int, int]) -> Tensor:
    """Targets of pixels (B, h, w), uint8, as those of a grid's positions (B, gh, gw), uint8.

    A position is defective (1) where any of its pixels is, however small the defect; otherwise not
    known (255) where any of them is not; otherwise good (0).
    """
    bad, unknown = (targets == 1).float(), (targets == _UNKNOWN).float()
    height, width = grid
    most = F.adaptive_max_pool2d(torch.stack([bad, unknown], 1), (height, width)) > 0
    found = torch.where(most[:, 1], _UNKNOWN, 0)
    return torch.where(most[:, 0], 1, found).to(torch.uint8)


def top_mean(values: Tensor, share: float) -> Tensor:
    """Mean (B,) of the largest share of values (B, gh, gw), of one of them at least."""
    flat = values.flatten(1)
    return flat.topk(max(1, int(share * flat.shape[1])), dim=1).values.mean(1)


def gradient_map(score: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """How strongly each pixel of an image (1, 3, h, w) moves its score: (h, w), on [0, 1].

    Absolute gradients, summed over channels and scaled by the image's own.
    """
    # Predictions are made where gradients are switched off for good: a copy has some again.
    with torch.inference_mode(False), torch.enable_grad():
        seen = pixels.clone().requires_grad_()
        [slopes] = torch.autograd.grad(score(seen).sum(), seen)
    found = slopes[0].float().abs().sum(0)
    most = torch.quantile(found.flatten(), _CLIPPED)
    least = found.min()
    return ((found - least) / (most - least).clamp(min=1e-12)).clamp(max=1)


def finer(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w), resized, each position then the mean of its 3 x 3 neighbours."""
    resized = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
    return F.avg_pool2d(resized, 3, stride=1, padding=1)
