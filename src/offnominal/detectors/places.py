"""Where a patch lies: from a view's grid to the pixels of the image it was cut from."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.backbones.base import Backbone
from offnominal.detectors.thresholds import Size
from offnominal.detectors.views import Views
from offnominal.sizing import tile_grid

__all__ = [
    "Box",
    "Flip",
    "Frame",
    "Layout",
    "Look",
    "Origin",
    "corners_of",
    "enclosing_box",
    "place",
    "tiled_layout",
    "whole_layout",
]

Box = tuple[int, int, int, int]
Flip = Literal["", "rows", "columns"]


class Frame(NamedTuple):
    """The part of an image that a view's grid covers, in the image's own pixels."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class Layout:
    """How the views of an image lie in it; the same for all images of one size.

    Attributes
    ----------
    frames : list of Frame
        One for each view: the whole image, or its tiles.
    grid : (gh, gw)
        Patches of a view.
    views : Views
        Without pixels; merges the views' patch scores.
    """

    frames: list[Frame]
    grid: Size
    views: Views

    @property
    def patches(self) -> int:
        """Patches of a view."""
        return self.grid[0] * self.grid[1]


class Look(NamedTuple):
    """How a reference was changed before it was looked at.

    Attributes
    ----------
    angle : float
        Degrees, anticlockwise.
    exact : bool
        Whether prepared pixels were turned by quarters, rather than the image by a warp.
    flip : {"", "rows", "columns"}
        Whether it was then flipped upside down or left to right.
    query : {"", "rows", "columns"}
        A flip that the query was given as well, so that it cancels out.
    """

    angle: float = 0.0
    exact: bool = False
    flip: Flip = ""
    query: Flip = ""


@dataclass(frozen=True)
class Origin:
    """Where a row of the memory bank comes from.

    Attributes
    ----------
    file : str
        The reference, as it was named when it was learned from.
    digest : str
        Of its pixels.
    size : (H, W)
        Of the reference.
    angle : float
        Degrees, anticlockwise, that the reference was turned by.
    flip : {"", "rows", "columns"}
        Whether it was flipped upside down or left to right.
    box : (left, top, width, height)
        The smallest upright box around the patch, in the reference's own pixels.
    corners : tuple of four (x, y)
        Of the patch in the reference's own pixels: its upper left corner as it was looked at, then
        clockwise as it was looked at. Pixel edges are whole numbers.
    mirrored : bool
        Whether the patch lies in a corner that a turned image leaves empty, which is filled by
        mirroring; the place is then what was mirrored.
    """

    file: str
    digest: str
    size: Size
    angle: float
    flip: Flip
    box: Box
    corners: tuple[tuple[float, float], ...]
    mirrored: bool


def tiled_layout(size: Size, tile: int, net: Backbone) -> Layout:
    """Layout of overlapping tiles of an image of a size (H, W)."""
    cover, tiles = tile_grid(*size, tile, net.multiple)
    frames = [Frame(*map(float, (t.top, t.left, t.height, t.width))) for t in tiles]
    grid = (tiles[0].height // net.stride, tiles[0].width // net.stride)
    return Layout(frames, grid, Views([], tiles, cover, net.stride))


def whole_layout(
    size: Size, resized: Size, window: tuple[int, int, int, int], stride: int
) -> Layout:
    """Layout of a single view: a window (top, left, height, width) of the resized image."""
    down, across = size[0] / resized[0], size[1] / resized[1]
    top, left, height, width = window
    frame = Frame(top * down, left * across, height * down, width * across)
    return Layout([frame], (height // stride, width // stride), Views([], [], None, stride))


def place(reference: dict[str, Any], layout: Layout, tile: int, patch: int, look: Look) -> Origin:
    """Name the place of a patch in a reference, as ``references_`` has it."""
    size = (reference["size"][0], reference["size"][1])
    points, mirrored = reflected(corners_of(patch, layout, tile, size, look), size)
    return Origin(
        file=reference["file"],
        digest=reference["digest"],
        size=size,
        angle=look.angle,
        flip=look.flip,
        box=enclosing_box(points, size),
        corners=tuple((float(x), float(y)) for x, y in points),
        mirrored=mirrored,
    )


def corners_of(
    patch: int, layout: Layout, tile: int, size: Size, look: Look | None = None, margin: float = 0
) -> NDArray[np.float64]:
    """Corners of a patch in the pixels of the upright image.

    Parameters
    ----------
    patch : int
        Place in the view's grid, in row-major order.
    layout : Layout
    tile : int
        Number of the view.
    size : (H, W)
        Of the image.
    look : Look or None
        None: the image itself.
    margin : float
        Widens the patch on every side by so many patches.

    Returns
    -------
    float64 array of shape (4, 2)
        (x, y) clockwise from the upper left as it was looked at. They may lie outside the image.
    """
    look = look or Look()
    quarters = int(look.angle // 90) % 4 if look.exact else 0
    rows, columns = layout.grid if quarters % 2 == 0 else layout.grid[::-1]
    row, column = divmod(patch, columns)
    if look.query == "rows":
        row = rows - 1 - row
    elif look.query == "columns":
        column = columns - 1 - column
    left, right = (column - margin) / columns, (column + 1 + margin) / columns
    top, bottom = (row - margin) / rows, (row + 1 + margin) / rows
    u = np.array([left, right, right, left])
    v = np.array([top, top, bottom, bottom])
    if look.flip == "rows":
        v = 1 - v
    elif look.flip == "columns":
        u = 1 - u
    x, y = [(u, v), (1 - v, u), (1 - u, 1 - v), (v, 1 - u)][quarters]
    frame = layout.frames[tile]
    points = np.stack([frame.left + x * frame.width, frame.top + y * frame.height], 1)
    if look.angle and not look.exact:
        # OpenCV counts from pixel centres, and boxes from pixel edges.
        height, width = size
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), look.angle, 1.0)
        back = cv2.invertAffineTransform(turn)
        points = (points - 0.5) @ back[:, :2].T + back[:, 2] + 0.5
    return np.asarray(points, dtype=np.float64)


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
    """The smallest box of whole pixels around points, clipped to the image."""
    left, top = np.floor(points.min(0) + 1e-6).astype(int)
    right, bottom = np.ceil(points.max(0) - 1e-6).astype(int)
    left, right = max(0, min(left, size[1] - 1)), min(size[1], max(right, 1))
    top, bottom = max(0, min(top, size[0] - 1)), min(size[0], max(bottom, 1))
    return int(left), int(top), int(max(1, right - left)), int(max(1, bottom - top))
