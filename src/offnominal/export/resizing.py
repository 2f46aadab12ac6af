"""Pillow's antialiased resizing as matrix products, to the bit, for a graph of one image size.

Pillow resizes 8-bit images one side after the other: each output value is a sum of input values
times fixed-point weights of 22 binary places, rounded, shifted back and cut to 0 to 255. Such sums
need more digits than float32 has, so every weight is split into small whole numbers (digits), whose
sums are exact in float32 whatever the order of the additions; carries between them are floors of
quotients by powers of two. It therefore comes out the same in every engine that computes in float32
or TF32; formats with fewer digits, such as bf16, round it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from offnominal.errors import OptionError
from offnominal.scoring import Size

__all__ = ["Filter", "Plan", "Resized", "resized_by", "weights"]

Filter = Literal["bicubic", "bilinear", "lanczos"]
Band = tuple[int, int, NDArray[np.float32]]  # first input, end, weights (inputs, outputs)

_PLACES = 22  # binary places of Pillow's weights
_EXACT = 2**24  # whole numbers up to here are exact in float32
_BAND = 64  # outputs that one product makes
_DIGITS = ((11, 2), (8, 3), (6, 4))  # bits of a digit and how many, the cheapest first


def _bicubic(x: NDArray[Any]) -> NDArray[Any]:
    x = np.abs(x)  # Keys' kernel with a = -1/2
    near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bilinear(x: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.abs(x) < 1, 1 - np.abs(x), 0.0)


def _lanczos(x: NDArray[Any]) -> NDArray[Any]:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)


_KERNELS: dict[Filter, tuple[Callable[[NDArray[Any]], NDArray[Any]], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
    "lanczos": (_lanczos, 3.0),
}


def weights(inputs: int, outputs: int, filter: Filter) -> NDArray[np.int64]:
    """Weights (outputs, inputs) of one side, in units of ``2 ** -22``."""
    kernel, reach = _KERNELS[filter]
    scale = inputs / outputs
    stretch = max(scale, 1.0)  # a smaller image is blurred first: that is the antialiasing
    found = np.zeros((outputs, inputs), np.int64)
    for place in range(outputs):
        centre, support = (place + 0.5) * scale, reach * stretch
        first = max(int(centre - support + 0.5), 0)
        end = min(int(centre + support + 0.5), inputs)
        each = kernel((np.arange(first, end) - centre + 0.5) / stretch)
        each = each / sum(each.tolist()) * 2**_PLACES  # one after the other, as Pillow adds
        found[place, first:end] = np.trunc(each + np.copysign(0.5, each))
    return found


@dataclass(frozen=True)
class Plan:
    """How an image becomes what a network sees.

    Attributes
    ----------
    size, resized : (height, width)
        Of the image, and what it is resized to.
    window : (top, left, height, width)
        What of that is looked at.
    filter : {"bicubic", "bilinear", "lanczos"}
    rows_first : bool
        Whether the height is changed before the width; which comes first depends on Pillow's
        version and on the sizes.
    """

    size: Size
    resized: Size
    window: tuple[int, int, int, int]
    filter: Filter
    rows_first: bool


class _Side(NamedTuple):
    """One side's pass: bands of each digit's weights, the lowest digit first."""

    bits: int
    digits: list[list[Band]]


def _side(inputs: int, outputs: int, filter: Filter, kept: slice) -> _Side | None:
    """The pass along one side, or None where Pillow leaves it as it is."""
    if inputs == outputs and kept == slice(0, outputs):
        return None
    table = weights(inputs, outputs, filter)[kept]
    for bits, count in _DIGITS:
        digits = _split(table, bits, count)
        if all(255 * int(np.abs(one).sum(1).max()) < _EXACT // 2 for one in digits):
            return _Side(bits, [_bands(one) for one in digits])
    raise OptionError(
        f"{inputs} pixels of an image become {outputs}: too many for one graph; give images that "
        "were made smaller, or a higher --resolution"
    )


def _split(table: NDArray[np.int64], bits: int, count: int) -> list[NDArray[np.int64]]:
    """Digits whose sum, times powers of ``2 ** bits``, is the table; the lower ones around 0."""
    digits = []
    for _ in range(count - 1):
        low = (table + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        digits.append(low)
        table = (table - low) >> bits
    return [*digits, table]


def _bands(table: NDArray[np.int64]) -> list[Band]:
    """A table (outputs, inputs) in blocks of outputs, without the inputs that weigh nothing."""
    bands: list[Band] = []
    for start in range(0, len(table), _BAND):
        block = table[start : start + _BAND]
        used = np.flatnonzero(block.any(0))
        first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        bands.append((first, end, block[:, first:end].T.astype(np.float32)))
    return bands


class Resized(nn.Module):
    """Pixels (3, H, W), whole numbers from 0 to 255 in float32, resized and cut as a plan says."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        top, left, height, width = plan.window
        down = _side(plan.size[0], plan.resized[0], plan.filter, slice(top, top + height))
        across = _side(plan.size[1], plan.resized[1], plan.filter, slice(left, left + width))
        passes = [("down", down), ("across", across)]
        self._passes = [
            (axis, side.bits, [self._held(axis, n, one) for n, one in enumerate(side.digits)])
            for axis, side in (passes if plan.rows_first else reversed(passes))
            if side is not None
        ]

    def _held(self, axis: str, digit: int, bands: list[Band]) -> list[tuple[int, int, str]]:
        """Put a digit's weights into buffers; their places among the inputs, and their names."""
        import torch

        held = []
        for place, (first, end, table) in enumerate(bands):
            name = f"{axis}_{digit}_{place}"
            self.register_buffer(name, torch.from_numpy(table))
            held.append((first, end, name))
        return held

    def forward(self, pixels: Tensor) -> Tensor:
        """(3, H, W) -> (3, h, w)."""
        import torch

        for axis, bits, digits in self._passes:
            x = pixels if axis == "across" else pixels.transpose(1, 2)
            total: Tensor | None = None
            for bands in digits:
                each = [x[..., a:b] @ self.get_buffer(name) for a, b, name in bands]
                found = torch.cat(each, dim=-1) if len(each) > 1 else each[0]
                total = found if total is None else found + torch.floor(total * 2.0**-bits)
            assert total is not None
            rest = _PLACES - bits * (len(digits) - 1)
            rounded = torch.floor((total + 2.0 ** (rest - 1)) * 2.0**-rest).clamp(0, 255)
            pixels = rounded if axis == "across" else rounded.transpose(1, 2)
        return pixels


def resized_by(plan: Plan, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the graph's resizing makes of an image (H, W, 3): uint8 (h, w, 3)."""
    import torch

    with torch.no_grad():
        found = Resized(plan)(torch.from_numpy(image).permute(2, 0, 1).float())
    return np.ascontiguousarray(found.permute(1, 2, 0).to(torch.uint8).numpy())
