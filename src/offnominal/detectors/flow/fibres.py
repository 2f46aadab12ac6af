"""Flows of single feature vectors, given where they lie: CFlow-AD's networks and likelihoods.

Gudovskiy, Ishizaka and Kozuka, "CFLOW-AD", WACV 2022 (arXiv 2107.12571), sections 4 and 5.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.detectors.flow.coupling import Clamping, Coupling, Flow

__all__ = ["decoder", "log_density", "position_code", "summed", "warm_cosine"]

_CLAMP = 1.9


def decoder(channels: int, steps: int, hidden: float, place: int, clamping: Clamping) -> Flow:
    """The flow of one level's vectors (N, C), given codes (N, place) of where they lie.

    ``hidden`` is the width of the subnets as a multiple of what they see.
    """
    seen, moved = channels - channels // 2 + place, channels // 2
    inside = max(1, int(seen * hidden))
    return Flow(
        Coupling(
            channels,
            nn.Sequential(nn.Linear(seen, inside), nn.ReLU(), nn.Linear(inside, 2 * moved)),
            _CLAMP,
            clamping,
            "rotation",
        )
        for _ in range(steps)
    )


def position_code(channels: int, height: int, width: int) -> Tensor:
    """Sines and cosines of a grid's columns, then of its rows, (channels, height, width).

    Vaswani et al. (2017), section 3.5, in two dimensions (section 4.1 of the paper); `channels` is
    a multiple of 4.
    """
    half = channels // 2
    rates = torch.exp(torch.arange(0, half, 2) * (-math.log(1e4) / half))
    codes = []
    for count in (width, height):
        angles = rates[:, None] * torch.arange(count)
        codes.append(torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1))
    columns = codes[0][:, None].expand(-1, height, -1)
    rows = codes[1][:, :, None].expand(-1, -1, width)
    return torch.cat([columns, rows])


def log_density(latent: Tensor, log_det: Tensor) -> Tensor:
    """Log-likelihoods (N,) of vectors by a flow, per dimension."""
    dims = latent.shape[1]
    squares = latent.square().sum(1)
    return (log_det - 0.5 * squares) / dims - 0.5 * math.log(2 * math.pi)


def summed(densities: Sequence[Tensor], peaks: Tensor, side: Sequence[int]) -> Tensor:
    """Sum over the levels of ``exp(l - peak)`` at the images' size, (B, *side), from l (B, h, w).

    The peaks are the largest log-likelihoods of good features, one a level.
    """
    total = densities[0].new_zeros(len(densities[0]), *side, dtype=torch.float64)
    for density, peak in zip(densities, peaks, strict=True):
        # In float32 by now: other engines interpolate nothing else.
        likelihood = torch.exp(density.double() - peak).float()[:, None]
        large = F.interpolate(likelihood, size=tuple(side), mode="bilinear", align_corners=True)
        total += large[:, 0]
    return total


def warm_cosine(done: float) -> float:
    """Factor on the learning rate at a share of the training, constant in each of 25 parts.

    A cosine from 1 to 0.001; in the first two parts a line from 0.1 to where it then is.
    """
    parts, warm, least = 25, 2, 0.001
    part = max(math.floor(done * parts), warm)
    cosine = least + (1 - least) * (1 + math.cos(math.pi * part / parts)) / 2
    return cosine if done * parts >= warm else 0.1 + (cosine - 0.1) * done * parts / warm
