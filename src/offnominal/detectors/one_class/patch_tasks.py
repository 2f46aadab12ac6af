"""What Patch SVDD trains: nested encoders of patches, and two tasks on pairs of them.

Yi and Yoon, "Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation", ACCV 2020
(arXiv 2006.16067), sections 3.1 to 3.3.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = [
    "DIM",
    "LARGE",
    "SMALL",
    "Directions",
    "Pairs",
    "PatchEncoder",
    "PositionClassifier",
    "neighbours",
    "pair_losses",
    "twins",
]

Directions = Literal["trained", "fixed"]

LARGE, SMALL = 64, 32  # sides of the patches, in pixels
DIM = 64
_NOISE = 0.02  # of colours and of pixels, on [0, 1]
_AROUND = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])


class PatchEncoder(nn.Module):
    """Two nested encoders (section 3.3): of patches of 32 pixels, and of 64 by their quadrants."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 32, 64, 128, 128, 64, 32, 32, DIM]
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if place == 0 else 1
            layers += [nn.Conv2d(before, after, 3, stride), nn.LeakyReLU(0.1)]
        self.inner = nn.Sequential(*layers[:-1], nn.Tanh())
        self.joining = nn.Conv2d(DIM, 128, 2)
        self.outer = nn.Sequential(nn.LeakyReLU(0.1), nn.Conv2d(128, DIM, 1), nn.Tanh())

    def forward(self, patches: Tensor) -> Tensor:
        """Embeddings (B, 64) of patches (B, 3, K, K), K 32 or 64."""
        if patches.shape[-1] == SMALL:
            small: Tensor = self.inner(patches)
            return small.flatten(1)
        quadrants = patches.unfold(2, SMALL, SMALL).unfold(3, SMALL, SMALL)
        rows = quadrants.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, SMALL, SMALL)
        four = self.inner(rows).reshape(-1, 2, 2, DIM).permute(0, 3, 1, 2)
        large: Tensor = self.outer(self.joining(four))
        return large.flatten(1)

    def grids(self, pixels: Tensor, strides: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Embeddings of all patches of images (B, 3, h, w), 64 and 32 pixels large.

        They are what :meth:`forward` gives of each patch: nothing is padded, so the convolutions
        may run over whole images, and what neighbouring patches share is computed once.

        Parameters
        ----------
        strides : (int, int)
            Of the large patches, a divisor of 32, and of the small ones; both even.

        Returns
        -------
        large, small : Tensor of shape (B, 64, gh, gw)
        """
        dense = self.inner(pixels)  # of every patch of 32 pixels at even places
        step, other = strides[0] // 2, strides[1] // 2
        corners = dense[:, :, ::step, ::step]
        apart = SMALL // strides[0]  # from a quadrant to the next, on this grid
        joined = F.conv2d(corners, self.joining.weight, self.joining.bias, dilation=apart)
        return self.outer(joined), dense[:, :, ::other, ::other]


class PositionClassifier(nn.Module):
    """Tells in which of 8 directions a patch's neighbour lies (section 3.2).

    Parameters
    ----------
    directions : {"trained", "fixed"}
        The last layer's weights have columns of length 1. ``fixed``: as in the released code, which
        scales them where no gradient is recorded, so that only the layer's bias is trained.
    """

    def __init__(self, directions: Directions = "trained") -> None:
        super().__init__()
        self.directions = directions
        self.body = nn.Sequential(
            nn.Linear(DIM, 128), nn.LeakyReLU(0.1), nn.Linear(128, 128), nn.LeakyReLU(0.1)
        )
        self.last = nn.Linear(128, len(_AROUND))
        self.last.weight.requires_grad_(directions == "trained")

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits (B, 8) of two embeddings (B, 64)."""
        weight = F.normalize(self.last.weight, dim=0)
        return F.linear(self.body(first - second), weight, self.last.bias)


class Pairs(NamedTuple):
    """Two patches of each of some images: row and column of their corners, (B, 2) each."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    direction: NDArray[np.int64] | None = None  # (B,), 0 to 7 row by row, of neighbours


def neighbours(rng: np.random.Generator, count: int, room: int, side: int) -> Pairs:
    """Patches and neighbours of theirs, 3/4 of a side or a little more away on an axis."""
    first = rng.integers(0, room + 1, (count, 2))
    direction = rng.integers(0, len(_AROUND), count)
    away = 3 * side // 4 + rng.integers(0, side // 4, (count, 2))
    return Pairs(first, np.clip(first + _AROUND[direction] * away, 0, room), direction)


def twins(rng: np.random.Generator, count: int, room: int, side: int) -> Pairs:
    """Patches and others that are moved by at most 1/32 of a side on an axis."""
    first, most = rng.integers(0, room + 1, (count, 2)), side // 32
    moved = rng.integers(-most, most + 1, (count, 2))
    while (still := ~moved.any(1)).any():
        moved[still] = rng.integers(-most, most + 1, (int(still.sum()), 2))
    return Pairs(first, np.clip(first + moved, 0, room))


def _cut(images: Tensor, corners: NDArray[np.int64], side: int) -> Tensor:
    each = zip(images, corners.tolist(), strict=True)
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in each])


def pair_losses(
    encoder: PatchEncoder,
    classifier: PositionClassifier,
    images: Tensor,
    side: int,
    close: Pairs,
    around: Pairs,
    noise: float = _NOISE,
) -> tuple[Tensor, Tensor]:
    """The loss of the positions (eq. 4) and that of the embeddings (eq. 2), of one patch size.

    Parameters
    ----------
    images : Tensor of shape (B, 3, h, w)
        Less the mean training image.
    side : int
        Of the patches.
    close, around : Pairs
        One of each image, for the second and the first loss.
    noise : float
        Standard deviation of what is added to the patches of the first: a colour, and pixels.
    """
    there = [_cut(images, corners, side) for corners in (around.first, around.second)]
    for patches in there if noise else []:
        patches += noise * (torch.randn_like(patches[:, :, :1, :1]) + torch.randn_like(patches))
    here = [_cut(images, corners, side) for corners in (close.first, close.second)]
    found = encoder(torch.cat(there + here)).chunk(4)
    assert around.direction is not None
    direction = torch.from_numpy(around.direction).to(images.device)
    position = F.cross_entropy(classifier(found[0], found[1]), direction)
    return position, (found[2] - found[3]).norm(dim=1).mean()
