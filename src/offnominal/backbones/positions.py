"""Position embeddings at another grid than they were trained for.

The original DINO and DINOv2 codes interpolate the table bicubically without antialiasing, with a
scale factor whose numerator carries an offset of 0.1 that guards against rounding. timm resizes to
a size, with antialiasing, which moves DINOv2's normalised tokens by about 2 % at 448 px. The
networks with registers were trained with the rule that timm follows, so they are left alone.
"""

import math
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Positions", "resize_positions", "use_original_positions"]

Positions = Literal["bicubic-antialias", "bicubic", "bilinear"]

_OFFSET = 0.1


def resize_positions(
    table: Tensor, height: int, width: int, rule: Positions | Literal["dino"]
) -> Tensor:
    """Position embeddings (1 + n * n, D), the class token's first, for another grid of patches.

    Gives (1 + height * width, D) of the table's dtype. ``bicubic-antialias`` is open_clip's rule,
    ``dino`` that of the original DINO and DINOv2. The rules differ where the grid grows too:
    torch's bicubic kernel has another parameter with antialiasing (-0.5) than without (-0.75).
    """
    side = math.isqrt(len(table) - 1)
    if (height, width) == (side, side):
        return table
    grid = table[1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((height + _OFFSET) / side, (width + _OFFSET) / side)
    resized = F.interpolate(
        grid,
        size=None if rule == "dino" else (height, width),
        scale_factor=scale if rule == "dino" else None,
        mode="bilinear" if rule == "bilinear" else "bicubic",
        antialias=rule == "bicubic-antialias",
    )
    return torch.cat([table[:1].float(), resized[0].flatten(1).T]).to(table.dtype)


def use_original_positions(model: Any) -> None:
    """Make a timm vision transformer add positions by the original rule, once per grid size."""
    tables: dict[tuple[int, int], Tensor] = {}

    def add_positions(self: Any, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        table = tables.get((height, width))
        if table is None or table.device != x.device:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                table = self.pos_embed[0]
                if self.no_embed_class:  # the class token's is in the token already
                    table = torch.cat([table.new_zeros(1, dim), table])
                table = resize_positions(table, height, width, "dino")
                if self.reg_token is not None:
                    none = table.new_zeros(self.reg_token.shape[1], dim)
                    table = torch.cat([table[:1], none, table[1:]])
            tables[height, width] = table
        first = [one for one in (self.cls_token, self.reg_token) if one is not None]
        patches = x.reshape(batch, height * width, dim)
        tokens = torch.cat([*(one.expand(batch, -1, -1) for one in first), patches], dim=1)
        dropped: Tensor = self.pos_drop(tokens + table)
        return dropped

    model._pos_embed = MethodType(add_positions, model)
