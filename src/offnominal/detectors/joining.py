"""Levels of a network joined to one vector for each patch, of which each level is a like part."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["joined_levels"]


def joined_levels(levels: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Levels (1, C, h, w) with vectors of length 1, averaged or interpolated to one grid.

    Returns
    -------
    Tensor of shape (C + C' + ..., *grid)
    """
    found, size = [], (grid[0], grid[1])
    for level in levels:
        unit = F.normalize(level, dim=1)
        if all(have >= want for have, want in zip(level.shape[-2:], size, strict=True)):
            found.append(F.adaptive_avg_pool2d(unit, size))
        else:
            found.append(F.interpolate(unit, size, mode="bilinear"))
    return torch.cat(found, dim=1)[0]
