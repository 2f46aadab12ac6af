"""What of an image is looked at, and where each look lies in it: one affine map a view.

Resize, crop, tile, rotation and flip are all the same kind of map, so a patch of any view is
traced back to the image by one product.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.scoring import Size, Window, size_of
from offnominal.sizing import (
    Resample,
    Resize,
    blend_tiles,
    fit_size,
    pad_image,
    resampled,
    resize_image,
    square_window,
    squared,
    tile_grid,
    to_pixels,
)
from offnominal.warping import Affine, inverse, rotation

__all__ = [
    "Box",
    "Flip",
    "View",
    "cropped_view",
    "enclosing_box",
    "flipped",
    "merge",
    "patch_corners",
    "quarter_turned",
    "reflected",
    "square_view",
    "tiled_views",
    "turned_back",
    "unflipped",
    "unseen",
    "whole_view",
]

Box = tuple[int, int, int, int]
Flip = Literal["", "rows", "columns"]
Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class View:
    """One look at an image.

    Attributes
    ----------
    pixels : float32 array of shape (3, h, w)
        Normalised; of a scan (6, h, w), with x, y and z as they are.
    frame : float64 array of shape (2, 3)
        Takes a point (x, y) of the view to one of the image as it was read, both in pixels, whose
        edges are whole numbers.
    window : (top, left, height, width) or None
        What its patch scores are laid over, in whole pixels of the image. It reaches beyond the
        image where tiles were completed. None: the image, over which a grid is stretched
        that a crop to whole patches has cut off.
    angle, flip : float, {"", "rows", "columns"}
        How the image was turned (degrees, anticlockwise) and then flipped (upside down, left to
        right).
    upright : bool
        Whether new images are looked at so; otherwise only references are.
    """

    pixels: NDArray[np.float32]
    frame: Affine
    window: Window | None = None
    angle: float = 0.0
    flip: Flip = ""
    upright: bool = True

    @property
    def size(self) -> Size:
        """Height and width of the pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def whole_view(
    image: NDArray[np.uint8],
    resolution: int,
    multiple: int,
    resize: Resize,
    mean: Triple,
    std: Triple,
) -> View:
    """The whole image, uint8 (H, W, 3), sized as :func:`~offnominal.sizing.fit_size` says."""
    if image.shape[0] == 1:
        return cloud_view(image, mean, std)
    height, width = image.shape[:2]
    resized, _ = fit_size(height, width, resolution, multiple, resize)
    sized = resize_image(image, resolution, multiple, resize)
    return View(to_pixels(sized, mean, std), _scaling(width / resized[1], height / resized[0]))


def cloud_view(image: NDArray[Any], mean: Triple, std: Triple) -> View:
    """All points of a cloud without a grid, (1, N, 6), as they are."""
    return View(to_pixels(image, mean, std), _scaling(1.0, 1.0))


def cropped_view(
    image: NDArray[np.uint8],
    resized: Size,
    window: Window,
    mean: Triple,
    std: Triple,
    laid_over: bool = False,
) -> View:
    """A window (top, left, height, width) of the image resized bilinearly, as PatchCore looks.

    ``laid_over``: its patch scores are stretched over the whole image.
    """
    if image.shape[0] == 1:
        return cloud_view(image, mean, std)
    top, left, height, width = window
    cut = resampled(image, resized, "bilinear")[top : top + height, left : left + width]
    down, across = image.shape[0] / resized[0], image.shape[1] / resized[1]
    frame = _scaling(across, down, left * across, top * down)
    above, before = round(top * down), round(left * across)
    seen = (
        above,
        before,
        round((top + height) * down) - above,
        round((left + width) * across) - before,
    )
    whole = laid_over or seen == (0, 0, *size_of(image))
    return View(to_pixels(cut, mean, std), frame, None if whole else seen)


def tiled_views(
    image: NDArray[np.uint8], tile: int, multiple: int, mean: Triple, std: Triple
) -> list[View]:
    """Overlapping tiles of an image, uint8 (H, W, 3), at its own resolution.

    Raises
    ------
    OptionError
        If the tile is smaller than the backbone takes.
    """
    if tile < multiple:
        raise OptionError(f"--tile {tile}: give at least {multiple} px")
    cover, tiles = tile_grid(image.shape[0], image.shape[1], tile, multiple)
    padded = pad_image(image, *cover)
    return [
        View(
            to_pixels(padded[t.top : t.top + t.height, t.left : t.left + t.width], mean, std),
            _scaling(1.0, 1.0, t.left, t.top),
            (t.top, t.left, t.height, t.width),
        )
        for t in tiles
    ]


def square_view(
    image: NDArray[np.uint8], full: int, side: int, resample: Resample, mean: Triple, std: Triple
) -> View:
    """An image, uint8 (H, W, 3), squeezed into a square, of which the middle is looked at.

    Parameters
    ----------
    full, side : int
        Sides of the square and of its middle, in pixels.
    resample : {"bilinear", "bicubic", "lanczos"}
    """
    height, width = image.shape[:2]
    margin, down, across = (full - side) // 2, height / full, width / full
    frame = _scaling(across, down, margin * across, margin * down)
    window = square_window((height, width), full, side)
    return View(to_pixels(squared(image, full, side, resample), mean, std), frame, window)


def merge(
    views: Sequence[View], grids: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], Window | None]:
    """One grid of patch scores from those of an image's upright views, and what it covers.

    Views of one window are averaged, and tiles blended without seams.
    """
    upright = [unflipped(grid, view) for grid, view in zip(grids, views, strict=True)]
    if len(views) == 1:
        return upright[0], views[0].window
    windows = [view.window for view in views]
    if len(set(windows)) == 1:
        return np.stack(upright).mean(0), windows[0]
    tiles = [window for window in windows if window is not None]
    cover = (max(t + h for t, _, h, _ in tiles), max(left + w for _, left, _, w in tiles))
    patch = views[0].size[0] // grids[0].shape[0]
    return blend_tiles(upright, tiles, cover, patch), (0, 0, *cover)


def unflipped(grid: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """A flipped view's grid (..., gh, gw) set upright, or an upright one as the view shows it."""
    if view.flip == "rows":
        return grid[..., ::-1, :]
    return grid[..., ::-1] if view.flip == "columns" else grid


# -- references turned and flipped ------------------------------------------------------------


def turned_back(view: View, size: Size, angle: float) -> View:
    """A view of an image that :func:`rotate_image` turned, as one of the upright image (H, W)."""
    back = inverse(_turn(size, angle))
    # A warp counts from pixel centres, and frames from pixel edges.
    back[:, 2] += 0.5 - back[:, :2].sum(1) * 0.5
    return replace(view, frame=_compose(back, view.frame), angle=angle, upright=False)


def quarter_turned(view: View, quarters: int) -> View:
    """Prepared pixels turned by quarters, which loses nothing as a warp would."""
    height, width = view.size
    x, y = np.array([[1.0, 0, 0]]), np.array([[0, 1.0, 0]])
    back_x, back_y = np.array([[-1.0, 0, width]]), np.array([[0, -1.0, height]])
    turn = [(x, y), (-y + [[0, 0, width]], x), (back_x, back_y), (y, -x + [[0, 0, height]])]
    inner = np.concatenate(turn[quarters % 4])
    pixels = np.ascontiguousarray(np.rot90(view.pixels, quarters, (1, 2)))
    frame = _compose(view.frame, inner)
    return replace(view, pixels=pixels, frame=frame, angle=90.0 * (quarters % 4), upright=False)


def flipped(view: View, flip: Flip, upright: bool = False) -> View:
    """A view upside down (``rows``) or left to right (``columns``)."""
    height, width = view.size
    rows = flip == "rows"
    pixels = np.ascontiguousarray(view.pixels[:, ::-1] if rows else view.pixels[:, :, ::-1])
    inner = np.array([[1.0, 0, 0], [0, -1.0, height]] if rows else [[-1.0, 0, width], [0, 1.0, 0]])
    frame = _compose(view.frame, inner)
    return replace(view, pixels=pixels, frame=frame, flip=flip, upright=upright)


# -- where a patch lies -----------------------------------------------------------------------


def patch_corners(view: View, grid: Size, patch: int, margin: float = 0) -> NDArray[np.float64]:
    """Corners of a patch in the pixels of the image as it was read.

    Parameters
    ----------
    view : View
    grid : (gh, gw)
    patch : int
        Place in the grid, in row-major order.
    margin : float
        Widens the patch on every side by so many patches.

    Returns
    -------
    float64 array of shape (4, 2)
        (x, y) clockwise from the upper left as it was looked at. They may lie outside the image.
    """
    row, column = divmod(patch, grid[1])
    down, across = view.size[0] / grid[0], view.size[1] / grid[1]
    left, right = (column - margin) * across, (column + 1 + margin) * across
    top, bottom = (row - margin) * down, (row + 1 + margin) * down
    points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return np.asarray(points @ view.frame[:, :2].T + view.frame[:, 2], dtype=np.float64)


def unseen(views: Sequence[View], size: Size) -> str | None:
    """The margins of an image (H, W) that lie outside all of its views, in words; None: none."""
    corners = np.concatenate([patch_corners(view, (1, 1), 0) for view in views])
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    margins = {
        "the first {} rows": top,
        "the last {} rows": size[0] - bottom,
        "the first {} columns": left,
        "the last {} columns": size[1] - right,
    }
    # A row of which only a part is seen counts; sums leave a hair's breadth that does not.
    told = [words.format(math.ceil(n - 1e-6)) for words, n in margins.items() if n > 1e-6]
    listed = f"{', '.join(told[:-1])} and {told[-1]}" if told[1:] else "".join(told)
    return f"{listed} of a picture of {size[1]} x {size[0]} are not inspected" if told else None


def reflected(points: NDArray[np.float64], size: Size) -> tuple[NDArray[np.float64], bool]:
    """Points of a patch moved to where mirroring took it from, and whether they were moved."""
    moved = False
    points = points.copy()
    for axis, length in ((0, size[1]), (1, size[0])):
        centre = float(points[:, axis].mean())
        while not 0 <= centre <= length:
            # The border's own pixels are not repeated.
            fold = 1.0 if centre < 0 else 2 * length - 1.0
            points[:, axis] = fold - points[:, axis]
            centre = float(points[:, axis].mean())
            moved = True
            if length < 2:
                break
    return points, moved


def enclosing_box(points: NDArray[np.float64], size: Size) -> Box:
    """The smallest box (left, top, width, height) of whole pixels around points, in the image."""
    left, top = np.floor(points.min(0) + 1e-6).astype(int)
    right, bottom = np.ceil(points.max(0) - 1e-6).astype(int)
    left, right = max(0, min(left, size[1] - 1)), min(size[1], max(right, 1))
    top, bottom = max(0, min(top, size[0] - 1)), min(size[0], max(bottom, 1))
    return int(left), int(top), int(max(1, right - left)), int(max(1, bottom - top))


def _turn(size: Size, angle: float) -> Affine:
    height, width = size
    return rotation((width / 2, height / 2), angle)


def _scaling(across: float, down: float, left: float = 0.0, top: float = 0.0) -> Affine:
    return np.array([[across, 0.0, left], [0.0, down, top]])


def _compose(outer: Affine, inner: Affine) -> Affine:
    """The map that takes a point through ``inner`` and then through ``outer``."""
    linear = outer[:, :2] @ inner[:, :2]
    shift = outer[:, :2] @ inner[:, 2] + outer[:, 2]
    return np.concatenate([linear, shift[:, None]], axis=1)
