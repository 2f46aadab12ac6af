"""Position embeddings at another grid than they were trained for.

The original DINO and DINOv2 codes interpolate the table bicubically without antialiasing, with a
scale factor whose numerator carries an offset of 0.1 that guards against rounding. timm resizes to
a size, with antialiasing, which moves DINOv2's normalised tokens by about 2 % at 448 px. The
networks with registers were trained with the rule that timm follows, so they are left alone.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Positions",
    "is_traced",
    "position_matrix",
    "resize_positions",
    "resized_table",
    "tracing_positions",
    "use_original_positions",
]

Positions = Literal["bicubic-antialias", "bicubic", "bilinear"]

_OFFSET = 0.1
# Whether this thread writes a network down as a graph for any size.
_TRACING = ContextVar("tracing", default=False)


@contextmanager
def tracing_positions() -> Iterator[None]:
    """Within the block, tables are resized by matrix products that hold for whatever grid."""
    before = _TRACING.set(True)
    try:
        yield
    finally:
        _TRACING.reset(before)


def is_traced() -> bool:
    """Whether :func:`tracing_positions` is in force."""
    return _TRACING.get()


def position_matrix(size: Any, side: int, rule: Positions, offset: Any = 0.0) -> Tensor:
    """What interpolates ``side`` values to ``size`` along one axis: float32 (size, side).

    The very sums that torch's ``interpolate`` forms, written with operations that any engine has,
    of a ``size`` that may be known only when the graph runs. ``offset`` is added to the size where
    the scale is computed from it.
    """
    scale = side / (torch.as_tensor(size).to(torch.float32) + offset)
    place = torch.arange(size, dtype=torch.float32)[:, None] + 0.5
    entries = torch.arange(side, dtype=torch.float32)
    if rule == "bicubic-antialias":
        wide = scale.clamp(min=1.0)
        centre, reach = place * scale, 2.0 * wide
        first = (centre - reach + 0.5).floor().clamp(min=0.0)
        last = (centre + reach + 0.5).floor().clamp(max=float(side))
        within = ((entries >= first) & (entries < last)).to(torch.float32)
        weights = _cubic((entries - centre + 0.5) / wide, -0.5) * within
        whole: Tensor = weights / weights.sum(1, keepdim=True)
        return whole
    centre = place * scale - 0.5
    if rule == "bilinear":
        centre = centre.clamp(min=0.0)
    below = centre.floor()
    taps = (0, 1) if rule == "bilinear" else (-1, 0, 1, 2)
    found: Tensor | None = None
    for tap in taps:
        away = below + tap - centre
        weight = 1 - away.abs() if rule == "bilinear" else _cubic(away, -0.75)
        here = (below + tap).clamp(0.0, side - 1.0) == entries
        part = weight * here.to(torch.float32)
        found = part if found is None else found + part
    assert found is not None
    return found


def _cubic(away: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel, 0 beyond two entries."""
    far = away.abs()
    near = ((a + 2) * far - (a + 3)) * far * far + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    one, two = (far <= 1).to(torch.float32), (far < 2).to(torch.float32)
    return near * one + outer * (two - one).clamp(min=0.0)


def _by_matrices(grid: Tensor, height: Any, width: Any, rule: Any) -> Tensor:
    """A table's grid (side, side, D) at another size: (height * width, D)."""
    side, dim = grid.shape[0], grid.shape[-1]
    offset: Tensor | float = 0.0
    if rule == "dino":  # but for the table's own grid, which stays as it is
        sizes = torch.stack([torch.as_tensor(height), torch.as_tensor(width)])
        offset = _OFFSET * (sizes != side).to(torch.float32).amax()
        rule = "bicubic"
    rows = position_matrix(height, side, rule, offset)
    columns = position_matrix(width, side, rule, offset)
    # Plain matrices only: some engines do not broadcast products of unknown size.
    across = columns @ grid.transpose(0, 1).reshape(side, side * dim)
    down = across.reshape(-1, side, dim).transpose(0, 1).reshape(side, -1)
    return (rows @ down).reshape(-1, dim)


def resize_positions(
    table: Tensor, height: int, width: int, rule: Positions | Literal["dino"]
) -> Tensor:
    """Position embeddings (1 + n * n, D), the class token's first, for another grid of patches.

    Gives (1 + height * width, D) of the table's dtype. ``bicubic-antialias`` is open_clip's rule,
    ``dino`` that of the original DINO and DINOv2. The rules differ where the grid grows too:
    torch's bicubic kernel has another parameter with antialiasing (-0.5) than without (-0.75).
    """
    side = math.isqrt(table.shape[0] - 1)
    if is_traced():
        grid = table[1:].float().reshape(side, side, table.shape[1])
        return torch.cat([table[:1].float(), _by_matrices(grid, height, width, rule)])
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


def resized_table(
    table: Tensor,
    new_size: Sequence[Any],
    old_size: Sequence[int] | None = None,
    num_prefix_tokens: int = 1,
    **_: Any,
) -> Tensor:
    """What timm's ``resample_abs_pos_embed`` gives of a table (1, n, D), for whatever grid."""
    first, rest = table[:, :num_prefix_tokens], table[0, num_prefix_tokens:].float()
    count = int(rest.shape[0])
    rows, columns = (int(side) for side in old_size or [math.isqrt(count)] * 2)
    if rows != columns:
        raise ValueError(f"positions on a grid of {rows} x {columns}, which is not square")
    grid = rest.reshape(rows, columns, int(rest.shape[1]))
    height, width = new_size
    resized = _by_matrices(grid, height, width, "bicubic-antialias")
    return torch.cat([first.float(), resized[None]], 1)


def use_original_positions(model: Any) -> None:
    """Make a timm vision transformer add positions by the original rule, once per grid size."""
    tables: dict[tuple[int, int], Tensor] = {}

    def add_positions(self: Any, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        table = None if is_traced() else tables.get((height, width))
        if table is None or table.device != x.device:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                table = self.pos_embed[0]
                if self.no_embed_class:  # the class token's is in the token already
                    table = torch.cat([table.new_zeros(1, dim), table])
                table = resize_positions(table, height, width, "dino")
                if self.reg_token is not None:
                    none = table.new_zeros(self.reg_token.shape[1], dim)
                    table = torch.cat([table[:1], none, table[1:]])
            if not is_traced():
                tables[height, width] = table
        first = [one for one in (self.cls_token, self.reg_token) if one is not None]
        patches = x.reshape(batch, height * width, dim)
        tokens = torch.cat([*(one.expand(batch, -1, -1) for one in first), patches], dim=1)
        dropped: Tensor = self.pos_drop(tokens + table)
        return dropped

    model._pos_embed = MethodType(add_positions, model)
