"""Decoder and critic of IGD: residual networks that double or halve the grid.

Chen, Tian, Pang and Carneiro, "Deep One-Class Classification via Interpolated Gaussian Descriptor",
AAAI 2022 (arXiv 2101.10043), as the released code has them; any layer may be narrower.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["Critic", "Decoder"]

_LAYOUT = torch.channels_last  # convolutions on a CPU are a third faster so
_WIDEST = 512
_DEEPEST = 64  # the decoder doubles a grid six times


class UpBlock(nn.Module):
    """Doubles the grid: normalised, active and convolved, twice, beside a plain shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 1))

    def forward(self, grid: Tensor) -> Tensor:
        """(B, before, h, w) -> (B, after, 2h, 2w)."""
        doubled: Tensor = self.body(grid) + self.shortcut(grid)
        return doubled


class DownBlock(nn.Module):
    """Halves the grid by means; what is normalised is an image's whole grid."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(1, before),
            nn.ReLU(),
            nn.Conv2d(before, before, 3, padding=1, bias=False),
            nn.GroupNorm(1, before),
            nn.ReLU(),
            nn.Conv2d(before, after, 3, padding=1),
            nn.AvgPool2d(2),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, after, 1))

    def forward(self, grid: Tensor) -> Tensor:
        """(B, before, h, w) -> (B, after, h/2, w/2)."""
        halved: Tensor = self.body(grid) + self.shortcut(grid)
        return halved


def _widths(width: float) -> list[int]:
    """Channels from the coarsest grid to the finest."""
    return [max(8, round(width * filters)) for filters in (_WIDEST, _WIDEST, 256, 128, 64)]


class Decoder(nn.Module):
    """A vector as an image.

    Parameters
    ----------
    side : int
        Of the image, a multiple of 64.
    dim : int
        Length of the vector.
    width : float
        Factor on the channels; 1 is the released code's.
    """

    def __init__(self, side: int, dim: int, width: float = 1.0) -> None:
        super().__init__()
        self.start, widths = side // _DEEPEST, _widths(width)
        self.first = nn.Linear(dim, widths[0] * self.start**2)
        blocks = [UpBlock(*pair) for pair in pairwise(widths)]
        self.body = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(widths[0], widths[0], 3, padding=1),
            *blocks,
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(widths[-1], 3, 5, padding=2),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Images (B, 3, side, side), normalised, of vectors (B, dim)."""
        grid = self.first(vectors).reshape(len(vectors), -1, self.start, self.start)
        pixels: Tensor = self.body(grid.contiguous(memory_format=_LAYOUT))
        return pixels


class Critic(nn.Module):
    """Guesses by how much an image is mixed with another one; parameters as the decoder's."""

    def __init__(self, side: int, width: float = 1.0) -> None:
        super().__init__()
        widths = _widths(width)[::-1]
        blocks = [DownBlock(*pair) for pair in pairwise(widths)]
        self.body = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, 2, padding=2),
            *blocks,
            nn.Conv2d(widths[-1], widths[-1], 3, 2, padding=1),
            nn.Flatten(),
            nn.Linear(widths[-1] * (side // _DEEPEST) ** 2, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Guesses (B,) of images (B, 3, side, side)."""
        guesses: Tensor = self.body(pixels.contiguous(memory_format=_LAYOUT))[:, 0]
        return guesses
