"""DRAEM: a network that paints defects over, and one that sees where it did.

Zavrtanik, Kristan and Skocaj, "DRAEM - A discriminatively trained reconstruction embedding for
surface anomaly detection", ICCV 2021 (arXiv 2108.07610).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.training.losses import focal_loss, ssim

__all__ = ["SsimRange", "draem_losses", "draem_map", "draem_score", "observed_range"]

SsimRange = Literal["fixed", "batch"]


def observed_range(painted: Tensor) -> float:
    """The range of values that the released code reads off what was painted: 1, 2, 255 or 256."""
    highest = 255 if painted.max() > 128 else 1
    lowest = -1 if painted.min() < -0.5 else 0
    return float(highest - lowest)


def draem_losses(
    painted: Tensor, logits: Tensor, good: Tensor, truth: Tensor, span: float = 1.0
) -> dict[str, Tensor]:
    """Squared error, SSIM and focal loss, and their sum (equations 1, 2 and 6).

    Parameters
    ----------
    painted, good : Tensor of shape (B, 3, h, w), float32
        What the first network made, and the image before its defect was.
    logits : Tensor of shape (B, 2, h, w), float32
        Of the second network: good, defective.
    truth : Tensor of shape (B, h, w), float32
        1 where the defect was made.
    span : float
        Range of values in SSIM.
    """
    normal, abnormal = logits.softmax(1).unbind(1)
    parts = {
        "l2": F.mse_loss(painted, good),
        "ssim": 1 - ssim(painted, good, "gaussian", "zeros", span=span).mean(),
        "focal": focal_loss(normal, abnormal, truth),
    }
    return {"total": sum(parts.values(), torch.zeros_like(parts["l2"])), **parts}


def draem_map(painter: nn.Module, finder: nn.Module, pixels: Tensor) -> Tensor:
    """Probability (B, h, w) of a defect at each pixel of images (B, 3, h, w) (section 3.4)."""
    logits: Tensor = finder(torch.cat([painter(pixels), pixels], 1))
    return logits.softmax(1)[:, 1]


def draem_score(maps: Tensor, window: int = 21) -> Tensor:
    """Largest mean (B,) over a window of maps (B, h, w), with zeros around them (equation 7)."""
    smooth = F.avg_pool2d(maps[:, None], window, stride=1, padding=window // 2)
    return smooth.flatten(1).amax(1)
