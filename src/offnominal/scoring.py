"""From patch scores to an image score and an anomaly map.

In numpy, without torch, so that a light runtime can score as the detector did.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import PERCENT
from offnominal.errors import OptionError
from offnominal.regions import Box

__all__ = [
    "Scores",
    "Size",
    "Window",
    "aggregate",
    "anomaly_map",
    "image_score",
    "network_map",
    "on_grid_of",
    "size_of",
]

Size = tuple[int, int]
Window = tuple[int, int, int, int]

_BLOCK = 256  # output rows made at once, so that a long side's work grows linearly


class Scores(NamedTuple):
    """All that an image's score and map are made of, whatever the statistic.

    Attributes
    ----------
    patches : float32 array of shape (gh, gw)
        Patch scores.
    image : float or None
        Where the method scores the image itself, beside its patches.
    weight : float
        Multiplies the statistic of the patches (PatchCore's eq. 7).
    window : (top, left, height, width) or None
        What the patches cover, in pixels of the image. None: the image. It may reach beyond the
        image at the bottom and the right (tiles); where it stops short, the map is 0.
    stride : int
        Pixels that the network saw to a patch.
    kinds : mapping of str to float, or None
        How likely each class of defects is, on [0, 1], where the method knows some.
    boxes : tuple of Box, or None
        Defects that the method found as a whole, the surest first, where it finds such.
    category : str or None
        The category of part that the image was taken for, where the method recognises several.
    """

    patches: NDArray[np.float32]
    image: float | None = None
    weight: float = 1.0
    window: Window | None = None
    stride: int = 1
    kinds: Mapping[str, float] | None = None
    boxes: tuple[Box, ...] | None = None
    category: str | None = None


def size_of(image: NDArray[Any]) -> Size:
    """Height and width of an image (H, W, C)."""
    return image.shape[0], image.shape[1]


def aggregate(patches: NDArray[np.float32], how: str = "top1", stride: int = 1) -> float:
    """Image score from patch scores.

    Parameters
    ----------
    patches : float32 array of shape (gh, gw)
    how : str
        ``top1``: mean of the 1 % largest, the count rounded down, and the maximum where that leaves
        none (Damm et al., 2024, section 3.1, and its released code); any ``topP`` likewise.
        ``map-top1``: mean of the 1 % largest pixels of SubspaceAD's map (Lendering et al., 2026),
        which has the size that the network saw. ``max``, ``mean``, ``quantileP`` (``quantile`` is
        ``quantile99``).
    stride : int
        Pixels that the network saw to a patch; for ``map-topP``.

    Notes
    -----
    ``map-max`` is taken from :func:`anomaly_map`.
    """
    if how == "max":
        return float(patches.max())
    if how == "mean":
        return float(patches.mean(dtype=np.float64))
    match = PERCENT.fullmatch("quantile99" if how == "quantile" else how)
    if match is None:
        raise OptionError(f"--aggregate {how}: not a statistic of patch scores")
    share = float(match[2]) / 100
    if match[1] == "quantile":
        return float(np.quantile(patches, share))
    flat = (network_map(patches, stride) if match[1] == "map-top" else patches).ravel()
    # In double precision 0.01 * 100 is 1, as it is in the reference code.
    count = max(1, int(len(flat) * share))
    return float(np.partition(flat, -count)[-count:].mean(dtype=np.float64))


def network_map(patches: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """SubspaceAD's released map: bilinear, then a 3 x 3 Gaussian blur of sigma 4."""
    rows, columns = patches.shape
    large = _three_taps(rows, stride) @ patches @ _three_taps(columns, stride).T
    return np.asarray(large, dtype=np.float32)


def image_score(scores: Scores, size: Size, how: str, sigma: float) -> float:
    """The statistic ``how`` of an image's patches, or of its map, times the image's weight."""
    if how == "map-max" and size[0] > 1:
        value = float(anomaly_map(scores.patches, size, sigma, scores.window).max())
    else:
        how = "max" if how == "map-max" else how  # of a cloud
        value = aggregate(scores.patches, how, scores.stride)
    return value * scores.weight


def anomaly_map(
    patches: NDArray[np.float32], size: Size, sigma: float = 4.0, window: Window | None = None
) -> NDArray[np.float32]:
    """Upsample patch scores bilinearly to the image's size and smooth them.

    Both steps are linear and separable, so they are two matrix products with matrices that are
    made once per size. The result is that of OpenCV's bilinear ``resize`` followed by scipy's
    ``gaussian_filter`` (reflected border, cut at 4 sigma).

    Parameters
    ----------
    patches : float32 array of shape (gh, gw)
    size : (H, W)
        The image's own size, in pixels.
    sigma : float
        Standard deviation of the Gaussian, in pixels of the image; 0 leaves it out.
    window : (top, left, height, width) or None
        What the grid covers; see :class:`Scores`. None: it is stretched over the image, as the
        AnomalyDINO code does after cropping.

    Returns
    -------
    float32 array of shape (H, W)
    """
    top, left, height, width = window or (0, 0, *size)
    seen = min(height, size[0] - top), min(width, size[1] - left)
    down = _bands(patches.shape[0], height, seen[0], sigma)
    across = _bands(patches.shape[1], width, seen[1], sigma)
    rows = np.concatenate([weights @ patches[start:stop] for start, stop, weights in down])
    parts = [rows[:, start:stop] @ weights.T for start, stop, weights in across]
    found = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    if seen == size:
        return found
    below, right = size[0] - top - seen[0], size[1] - left - seen[1]
    return np.pad(found, ((top, below), (left, right)))


def on_grid_of(scores: Scores, other: Scores, size: Size) -> NDArray[np.float32]:
    """Patch scores of an image (H, W), interpolated bilinearly on the grid of other ones of it."""
    if scores.patches.shape == other.patches.shape and scores.window == other.window:
        return scores.patches
    mine, theirs = scores.window or (0, 0, *size), other.window or (0, 0, *size)
    weights = []
    for axis in (0, 1):
        grid, count = scores.patches.shape[axis], other.patches.shape[axis]
        middle = theirs[axis] + (np.arange(count) + 0.5) * float(theirs[axis + 2] / count)
        place = (middle - mine[axis]) * (grid / mine[axis + 2]) - 0.5
        each, start, stop = _bilinear(grid, place)
        weights.append(np.pad(each, ((0, 0), (start, grid - stop))))
    return (weights[0] @ scores.patches @ weights[1].T).astype(np.float32)


_Band = tuple[int, int, NDArray[np.float32]]  # input start, input stop, weights (outputs, inputs)


@lru_cache(maxsize=256)
def _bands(grid: int, full: int, size: int, sigma: float) -> list[_Band]:
    """One side's interpolation and smoothing, as blocks of rows without their zero columns."""
    bands: list[_Band] = []
    reach = int(4 * sigma + 0.5)
    for top in range(0, size, _BLOCK):
        bottom = min(top + _BLOCK, size)
        # Rows beyond the block that the Gaussian sees; at a true border they are reflected.
        low, high = max(0, top - reach), min(size, bottom + reach)
        weights, start, stop = _interpolation(grid, full, low, high)
        if reach:  # a narrower one is no blur
            weights = _smoothed(weights, _gaussian(sigma, reach), "symmetric")
        kept = np.ascontiguousarray(weights[top - low : bottom - low], dtype=np.float32)
        bands.append((start, stop, kept))
    return bands


@lru_cache(maxsize=64)
def _three_taps(grid: int, stride: int) -> NDArray[np.float32]:
    """One side's interpolation and blur in SubspaceAD's map: (grid * stride, grid)."""
    weights, _, _ = _interpolation(grid, grid * stride, 0, grid * stride)
    return _smoothed(weights, _gaussian(4.0, 1), "reflect").astype(np.float32)


def _gaussian(sigma: float, reach: int) -> NDArray[np.float64]:
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.asarray(kernel / kernel.sum())


def _smoothed(
    weights: NDArray[np.float64],
    kernel: NDArray[np.float64],
    border: Literal["symmetric", "reflect"],
) -> NDArray[np.float64]:
    """Weights (n, m) smoothed along their first side, mirrored with or without the last row."""
    count, reach = len(weights), len(kernel) // 2
    padded = np.pad(weights, ((reach, reach), (0, 0)), mode=border)
    found = np.zeros_like(weights)
    for place, share in enumerate(kernel):
        found += share * padded[place : place + count]
    return found


def _interpolation(
    grid: int, full: int, low: int, high: int
) -> tuple[NDArray[np.float64], int, int]:
    """Bilinear weights of output rows low to high, and which input rows they touch."""
    return _bilinear(grid, (np.arange(low, high) + 0.5) * (grid / full) - 0.5)


def _bilinear(grid: int, centre: NDArray[np.floating]) -> tuple[NDArray[np.float64], int, int]:
    """The same of rows by their places among the input's ones, whose middles are whole numbers."""
    below = np.floor(centre).astype(int)
    share = centre - below
    first, second = np.clip(below, 0, grid - 1), np.clip(below + 1, 0, grid - 1)
    start, stop = int(first.min()), int(second.max()) + 1
    weights = np.zeros((len(centre), stop - start))
    rows = np.arange(len(centre))
    np.add.at(weights, (rows, first - start), 1 - share)
    np.add.at(weights, (rows, second - start), share)
    return weights, start, stop
