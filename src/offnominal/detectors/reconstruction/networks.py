"""Convolutional networks from image to image, of any width: with and without skip connections.

Both are those of Zavrtanik, Kristan and Skocaj, "DRAEM", ICCV 2021 (arXiv 2108.07610).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EncoderDecoder", "UNet"]

LAYOUT = torch.channels_last
"""Of what goes in: so everything that follows is a quarter faster on a CPU."""


def _convolution(taken: int, given: int) -> list[nn.Module]:
    return [nn.Conv2d(taken, given, 3, padding=1), nn.BatchNorm2d(given), nn.ReLU(inplace=True)]


def _block(taken: int, between: int, given: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(taken, between), *_convolution(between, given))


def _up(taken: int, given: int) -> nn.Sequential:
    larger = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(larger, *_convolution(taken, given))


class _Encoder(nn.ModuleList):
    """Blocks with max-pooling between; gives what each gives, the finest first."""

    def __init__(self, taken: int, widths: Sequence[int]) -> None:
        super().__init__(_block(one, each, each) for one, each in pairwise([taken, *widths]))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        pixels = pixels.contiguous(memory_format=LAYOUT)
        levels: list[Tensor] = []
        for block in self:
            levels.append(block(F.max_pool2d(levels[-1], 2) if levels else pixels))
        return levels


class EncoderDecoder(nn.Module):
    """Five blocks down and four up, nothing passed by: DRAEM's reconstructive network.

    Parameters
    ----------
    width : int
        w: the blocks have w, 2 w, 4 w, 8 w and 8 w channels. 128, the paper's, makes 69,048,579
        parameters.
    """

    stride = 16
    """Sides of images are multiples of it."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.encoder = _Encoder(3, [width * n for n in (1, 2, 4, 8, 8)])
        steps = list(pairwise(width * n for n in (8, 4, 2, 1, 1)))
        self.ups = nn.ModuleList(_up(taken, taken) for taken, _ in steps)
        self.blocks = nn.ModuleList(_block(taken, taken, given) for taken, given in steps)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, h, w) to images of the same shape."""
        found = self.encoder(pixels)[-1]
        for up, block in zip(self.ups, self.blocks, strict=True):
            found = block(up(found))
        painted: Tensor = self.last(found)
        return painted


class UNet(nn.Module):
    """Six blocks down and five up, each of these sees the one of its size: DRAEM's discriminative.

    Ronneberger, Fischer and Brox, "U-Net", 2015, with bilinear enlargement.

    Parameters
    ----------
    taken, given : int
        Channels of what goes in and comes out.
    width : int
        w: the blocks have w, 2 w, 4 w and three times 8 w channels. 64, the paper's, makes
        28,374,146 parameters from six channels to two.
    """

    stride = 32
    """Sides of images are multiples of it."""

    def __init__(self, taken: int, given: int, width: int = 64) -> None:
        super().__init__()
        widths = [width * n for n in (1, 2, 4, 8, 8, 8)]
        steps = list(pairwise(width * n for n in (8, 8, 4, 2, 1, 1)))
        self.encoder = _Encoder(taken, widths)
        self.ups = nn.ModuleList(_up(one, other) for one, other in steps)
        self.blocks = nn.ModuleList(
            _block(other + beside, other, other)
            for (_, other), beside in zip(steps, widths[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(width, given, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Images (B, taken, h, w) to maps (B, given, h, w)."""
        *levels, found = self.encoder(pixels)
        for up, block in zip(self.ups, self.blocks, strict=True):
            found = block(torch.cat([up(found), levels.pop()], 1))
        last: Tensor = self.last(found)
        return last
