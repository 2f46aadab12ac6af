"""Position embeddings resized as the original DINO and DINOv2 codes do.

Both interpolate the table bicubically without antialiasing, in float32, with a scale factor whose
numerator carries an offset of 0.1 that guards against rounding. timm resizes to a size, with
antialiasing, which moves DINOv2's normalised tokens by about 2 % at 448 px. The networks with
registers were trained with the rule that timm follows, so they are left alone.
"""

import math
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OFFSET", "interpolate_positions", "use_original_positions"]

OFFSET = 0.1


def interpolate_positions(table: Tensor, height: int, width: int) -> Tensor:
    """Position embeddings (1, 1 + n * n, D), the class token's first, for another grid of patches.

    Gives (1, 1 + height * width, D) of the table's dtype.
    """
    side = math.isqrt(table.shape[1] - 1)
    if (height, width) == (side, side):
        return table
    grid = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(
        grid,
        scale_factor=((height + OFFSET) / side, (width + OFFSET) / side),
        mode="bicubic",
        antialias=False,
    )
    rows = resized.permute(0, 2, 3, 1).reshape(1, height * width, -1)
    return torch.cat([table[:, :1].float(), rows], dim=1).to(table.dtype)


def use_original_positions(model: Any) -> None:
    """Make a timm vision transformer add positions by the original rule, once per grid size."""
    tables: dict[tuple[int, int], Tensor] = {}

    def add_positions(self: Any, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        table = tables.get((height, width))
        if table is None or table.device != x.device:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                table = interpolate_positions(self.pos_embed, height, width)
            tables[height, width] = table
        tokens = torch.cat(
            [self.cls_token.expand(batch, -1, -1), x.reshape(batch, height * width, dim)], dim=1
        )
        dropped: Tensor = self.pos_drop(tokens + table)
        return dropped

    model._pos_embed = MethodType(add_positions, model)
