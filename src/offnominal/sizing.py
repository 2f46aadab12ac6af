"""From an image to a network's grid: resizing, cropping, normalising, and tiles for large images.

The default is what AnomalyDINO's released code does (Damm et al., WACV 2025), the shorter side to a
resolution by Pillow's antialiased bicubic filter, but for the last patches at the right and at the
bottom: each side is rounded to whole patches, where the released code (``crop``) cuts off what does
not fill one, so that what lies there is never seen.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from offnominal.errors import OptionError
from offnominal.scans.scan import CHANNELS, is_scan

Resize = Literal["short", "crop", "square"]
Resample = Literal["bilinear", "bicubic", "lanczos"]


class Tile(NamedTuple):
    """A rectangle of the padded image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def fit_size(
    height: int, width: int, resolution: int, multiple: int, resize: Resize
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes that an image is resized to, and then cropped to.

    Parameters
    ----------
    height, width : int
        Of the image, in pixels.
    resolution : int
        Pixels of the shorter side (``"short"``, ``"crop"``) or of both sides (``"square"``).
    multiple : int
        The network's patch size or stride, in pixels.
    resize : {"short", "crop", "square"}
        ``"short"`` and ``"crop"`` keep the shape: the longer side becomes
        ``int(resolution * longer / shorter)``. With ``"short"`` each side then becomes the nearest
        multiple of `multiple`, which stretches the image by less than half a patch and leaves
        nothing out. ``"square"`` does not keep it: both sides become `resolution`, rounded down to
        `multiple`.

    Returns
    -------
    resized, seen : tuple of int
        (height, width) each; `seen` is less than `resized` with ``"crop"`` only, a multiple of
        `multiple`.

    Raises
    ------
    OptionError
        If `resolution` is less than `multiple`, or `resize` is something else.
    """
    if resolution < multiple:
        raise OptionError(
            f"resolution={resolution}: this backbone needs at least {multiple}, the size of a patch"
        )
    if resize == "square":
        side = resolution - resolution % multiple
        return (side, side), (side, side)
    if resize not in ("short", "crop"):
        raise OptionError(f"resize={resize!r}: expected 'short', 'crop' or 'square'")
    longer = int(resolution * max(height, width) / min(height, width))
    resized = (resolution, longer) if height <= width else (longer, resolution)
    if resize == "crop":
        return resized, (resized[0] - resized[0] % multiple, resized[1] - resized[1] % multiple)
    whole = nearest(resized[0], multiple), nearest(resized[1], multiple)
    return whole, whole


def nearest(side: int, multiple: int) -> int:
    """The multiple that is nearest to a length of at least half of it."""
    return max(1, round(side / multiple)) * multiple


def resize_image(
    image: NDArray[np.uint8],
    resolution: int,
    multiple: int,
    resize: Resize = "short",
) -> NDArray[np.uint8]:
    """Resize an image, and crop it if asked to; see :func:`fit_size`.

    Parameters
    ----------
    image : numpy.ndarray
        uint8, (H, W, 3), RGB.

    Returns
    -------
    numpy.ndarray
        uint8, (h, w, 3), contiguous; the pixels of torchvision's ``Resize`` on a Pillow image.
    """
    height, width = image.shape[:2]
    resized, seen = fit_size(height, width, resolution, multiple, resize)
    sized = resampled(image, resized, "bicubic")
    return np.array(sized[: seen[0], : seen[1]], order="C")


def resampled(image: NDArray[Any], size: tuple[int, int], how: Resample) -> NDArray[Any]:
    """An image at another size (h, w), by one of Pillow's filters.

    Of a scan, float32 (H, W, 6), colour goes the same way, and of the points the nearest is taken:
    between two there need not be a surface.
    """
    filtered = Image.Resampling[how.upper()]
    if not is_scan(image):
        return np.asarray(Image.fromarray(image).resize(size[::-1], filtered))
    found = np.empty((*size, CHANNELS), np.float32)
    colour = np.nan_to_num(image[..., :3]).astype(np.uint8)
    found[..., :3] = np.asarray(Image.fromarray(colour).resize(size[::-1], filtered))
    rows, columns = (np.arange(n) * was // n for n, was in zip(size, image.shape[:2], strict=True))
    found[..., 3:] = image[rows[:, None], columns, 3:]
    return found


def squared(
    image: NDArray[np.uint8], full: int, side: int, resample: Resample
) -> NDArray[np.uint8]:
    """An image, uint8 (H, W, 3), squeezed into a square, and the middle of that: (side, side, 3).

    ``full`` and ``side`` are the sides of both, in pixels.
    """
    if resample not in get_args(Resample):
        raise OptionError(f"resample={resample!r}: choose one of {', '.join(get_args(Resample))}")
    margin = (full - side) // 2
    sized = resampled(image, (full, full), resample)
    cut = sized[margin : margin + side, margin : margin + side]
    return np.ascontiguousarray(cut)


def squared_mark(mark: NDArray[np.bool_], full: int, side: int) -> NDArray[np.bool_]:
    """Marked pixels (H, W) as :func:`squared` has images: (side, side), those mostly marked.

    Where a mark fills no pixel, those that it covers most: a scratch is not lost, also beside what
    is larger.
    """
    picture = Image.fromarray(mark.astype(np.uint8) * 255)
    small = picture.resize((full, full), Image.Resampling.BOX)
    cover, around = (np.asarray(one) for one in (small, small.filter(ImageFilter.MaxFilter(3))))
    margin = (full - side) // 2
    found = cover >= np.clip(around // 2, 1, 128)
    return np.ascontiguousarray(found[margin : margin + side, margin : margin + side])


def square_window(size: tuple[int, int], full: int, side: int) -> tuple[int, int, int, int] | None:
    """What of an image (H, W) that middle shows: (top, left, height, width); None: all of it."""
    margin = (full - side) // 2
    if not margin:
        return None
    top, left = (round(margin * length / full) for length in size)
    bottom, right = (round((margin + side) * length / full) for length in size)
    return top, left, bottom - top, right - left


def to_pixels(
    image: NDArray[np.uint8],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> NDArray[np.float32]:
    """Normalise an image for a network: (x / 255 - mean) / std.

    Parameters
    ----------
    image : numpy.ndarray
        uint8, (h, w, 3), RGB; or a scan, float32 (h, w, 6).
    mean, std : tuple of float
        Per channel, for values in [0, 1].

    Returns
    -------
    numpy.ndarray
        float32, (3, h, w), contiguous; bit for bit what torchvision's ``ToTensor`` and
        ``Normalize`` give. Of a scan (6, h, w), the points as they are.
    """
    if is_scan(image):
        coloured = to_pixels(np.nan_to_num(image[..., :3]).astype(np.uint8), mean, std)
        return np.concatenate([coloured, np.moveaxis(image[..., 3:], -1, 0)])
    pixels = np.empty((3, *image.shape[:2]), dtype=np.float32)
    for number, table in enumerate(_tables(mean, std)):
        # All of 256 values are there: told so, numpy does not look for others first.
        np.take(table, image[..., number], out=pixels[number], mode="clip")
    return pixels


@lru_cache(maxsize=16)
def _tables(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> list[NDArray[np.float32]]:
    """What each of the 256 values becomes, for each channel: one look instead of three sums."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    return [
        (values - np.float32(centre)) / np.float32(scale)
        for centre, scale in zip(mean, std, strict=True)
    ]


def tile_grid(
    height: int, width: int, tile: int, multiple: int, overlap: float = 0.25
) -> tuple[tuple[int, int], list[Tile]]:
    """Cover an image with overlapping tiles that lie on the grid of patches.

    Parameters
    ----------
    height, width : int
        Of the image, in pixels.
    tile : int
        Side of a tile in pixels, rounded down to `multiple`. Where the image is smaller, the tile
        is as small as the image.
    multiple : int
        The network's patch size or stride, in pixels.
    overlap : float
        Least share of a tile's side that it has in common with its neighbour, in [0, 1).

    Returns
    -------
    padded : tuple of int
        (height, width) to pad the image to: the next multiples of `multiple`.
    tiles : list of Tile
        All of one size, row by row, evenly spread, the last flush with the edge; positions and
        sizes are multiples of `multiple`.

    Raises
    ------
    OptionError
        If `tile` is less than `multiple`, or `overlap` is outside [0, 1).
    """
    if tile < multiple:
        raise OptionError(
            f"tile={tile}: this backbone needs at least {multiple}, the size of a patch"
        )
    if not 0 <= overlap < 1:
        raise OptionError(f"overlap={overlap}: expected at least 0 and less than 1")
    rows, columns = math.ceil(height / multiple), math.ceil(width / multiple)
    tops, tall = _spread(rows, tile // multiple, overlap)
    lefts, wide = _spread(columns, tile // multiple, overlap)
    tiles = [
        Tile(top * multiple, left * multiple, tall * multiple, wide * multiple)
        for top in tops
        for left in lefts
    ]
    return (rows * multiple, columns * multiple), tiles


def _spread(total: int, tile: int, overlap: float) -> tuple[list[int], int]:
    """Starts of tiles along one side, and their length, all in patches."""
    tile = min(tile, total)
    # 20 * (1 - 0.9) comes out a hair below 2.
    step = max(1, math.floor(round(tile * (1 - overlap), 6)))
    gaps = math.ceil((total - tile) / step)
    if gaps == 0:
        return [0], tile
    return [i * (total - tile) // gaps for i in range(gaps + 1)], tile


def pad_image(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Extend an image at the bottom and at the right by mirroring it, border pixels not repeated.

    Parameters
    ----------
    image : numpy.ndarray
        (H, W) or (H, W, C), any dtype.
    height, width : int
        Size to reach, in pixels; may be several times the image's own.

    Returns
    -------
    numpy.ndarray
        (height, width) or (height, width, C), dtype of `image`.

    Raises
    ------
    OptionError
        If the image is already larger.
    """
    below, right = height - image.shape[0], width - image.shape[1]
    if below < 0 or right < 0:
        raise OptionError(
            f"cannot pad {image.shape[0]} x {image.shape[1]} pixels to {height} x {width}: "
            "crop or resize instead"
        )
    return np.pad(image, [(0, below), (0, right), (0, 0)][: image.ndim], mode="reflect")


def blend_tiles(
    scores: Sequence[NDArray[Any]],
    tiles: Sequence[Tile | tuple[int, int, int, int]],
    padded: tuple[int, int],
    multiple: int,
) -> NDArray[Any]:
    """Join the patch scores of overlapping tiles into one grid without seams.

    Every patch is a weighted mean of the tiles that hold it. A tile's weight falls evenly from its
    middle to almost nothing at those of its edges that lie inside the image, so that one tile fades
    into the next, and no longer counts where it ends.

    Parameters
    ----------
    scores : sequence of numpy.ndarray
        One (tile.height / multiple, tile.width / multiple) array for each tile.
    tiles, padded
        As :func:`tile_grid` gives them; a tile may stand there several times.
    multiple : int
        Pixels of the image to a patch score.

    Returns
    -------
    numpy.ndarray
        (padded height / multiple, padded width / multiple), float32 (float64 if the scores are).
        Where all tiles agree the result is exactly their value.

    Raises
    ------
    OptionError
        If the scores do not match the tiles, or the tiles do not cover the image.
    """
    if len(scores) != len(tiles) or not tiles:
        raise OptionError(f"{len(scores)} score grids for {len(tiles)} tiles: expected one each")
    dtype = np.float64 if scores[0].dtype == np.float64 else np.float32
    shape = (padded[0] // multiple, padded[1] // multiple)
    mean, total = np.zeros(shape, dtype), np.zeros(shape, dtype)
    for grid, tile in zip(scores, tiles, strict=True):
        top, left, height, width = tile
        expected = (height // multiple, width // multiple)
        if grid.shape != expected:
            raise OptionError(f"{tile}: expected scores of shape {expected}, not {grid.shape}")
        rows = _window(top, height, padded[0], multiple)
        columns = _window(left, width, padded[1], multiple)
        weight = np.outer(np.array(rows, np.float32), np.array(columns, np.float32)).astype(dtype)
        row, column = top // multiple, left // multiple
        here = (slice(row, row + expected[0]), slice(column, column + expected[1]))
        # A running mean rather than a sum divided at the end, whose rounding would show in what
        # should be constant.
        total[here] += weight
        mean[here] += (grid.astype(dtype) - mean[here]) * (weight / total[here])
    if (total == 0).any():
        raise OptionError("the tiles do not cover the image: use those that tile_grid gives")
    return mean


def _window(start: int, length: int, whole: int, multiple: int) -> list[float]:
    # Straight slopes, because two of them that overlap by any amount make an even transition; with
    # cosines the transition is steeper the narrower the overlap is.
    count = length // multiple
    weights = []
    for i in range(count):
        before = (i + 0.5) / count if start > 0 else 0.5
        after = (count - i - 0.5) / count if start + length < whole else 0.5
        weights.append(min(before, after, 0.5))
    return weights
