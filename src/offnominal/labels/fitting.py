"""Checks of what was drawn against the image that it was drawn on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offnominal.datasets.reading import GOOD_NAMES
from offnominal.labelling import label
from offnominal.labels.formats.entry import Drawn, Entry, Points, Problem, Tell, box_around
from offnominal.labels.labelled import ANY_KIND, MOST_MARKS, Mark
from offnominal.labels.notes import Notes

__all__ = ["cut_by", "fitted", "upright_size"]

Bools = NDArray[np.bool_]
Size = tuple[int, int]

_ORIENTATION = 0x0112
_BEYOND = 0.02  # of the image's side, by which a mark may reach out and is cut off
_ROUNDING = 1.0  # pixel
_DECIMALS = 0.02  # pixels, by which numbers of a file may be off


def upright_size(image: Path) -> tuple[Size, bool] | None:
    """Height and width of an image file, upright, and whether a quarter turn made them so.

    From its head alone; None where it cannot be read, which whoever reads it will say.
    """
    try:
        with Image.open(image) as picture:
            turned = picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            size = picture.height, picture.width
    except Exception:
        return None
    return (size[::-1], True) if turned else (size, False)


def fitted(entry: Entry, image: Path, tell: Tell, notes: Notes) -> list[Mark]:
    """The marks of an image that fit it; what does not is told."""
    if (found := upright_size(image)) is None:
        return []
    size, turned = found
    if entry.size not in (None, size):
        assert entry.size is not None
        what = f"says {entry.size[1]}x{entry.size[0]} pixels, {image} has {size[1]}x{size[0]}"
        told = "annotate the image as it is, or put the one that was annotated in its place"
        if turned and entry.size == size[::-1]:
            what += " once it is turned as its EXIF data say"
            told = "save the image upright, without EXIF data, and annotate that"
        tell(Problem(entry.where, what, told))
        return []
    marks: list[Mark] = []
    seen: set[object] = set()
    for drawn in entry.drawn:
        try:
            mark = _mark(drawn, size, notes)
        except ValueError as error:
            tell(Problem(drawn.where, str(error), "draw it again, or remove it"))
            continue
        key = _key(mark)
        if key in seen:
            notes.add("marks that are there twice", drawn.where, "each counts once")
        else:
            marks.append(mark)
        seen.add(key)
    if len(marks) > MOST_MARKS:
        what = f"{len(marks)} marks on one image, of which {MOST_MARKS} can be told apart"
        tell(Problem(entry.where, what, "join some of them, as a mask"))
    return marks[:MOST_MARKS]


def cut_by(mask: Bools, marks: Sequence[Mark], where: str, tell: Tell) -> list[Mark]:
    """Marks of an image that has a mask as well: the mask says where, they say what.

    Each keeps what the mask marks within it, and what hangs together with that and lies in no other
    mark. What the mask marks elsewhere is a defect of no known kind. A mark in which the mask marks
    nothing is told.
    """
    owner = np.zeros(mask.shape, np.int32)
    for number, mark in enumerate(marks, 1):
        inside = mark.where(mask.shape) & mask
        if not inside.any():
            what = f"the mask marks nothing where {mark.kind} is annotated"
            tell(Problem(where, what, "draw the mask there, or remove the annotation"))
        owner[inside & (owner == 0)] = number
    parts, count = label(mask)
    shape = count + 1, len(marks) + 1
    pairs = np.ravel_multi_index((parts, owner), shape)
    touched = np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    touched[0] = touched[:, 0] = 0
    free = mask & (owner == 0)
    owner[free] = touched.argmax(1)[parts[free]]
    cut = [
        Mark(mark.kind, mask=owner == n) for n, mark in enumerate(marks, 1) if (owner == n).any()
    ]
    rest = mask & (owner == 0)
    return [*cut, Mark(mask=rest)] if rest.any() else cut


def _mark(drawn: Drawn, size: Size, notes: Notes) -> Mark:
    """A mark that fits the image; ValueError where it does not."""
    kind = drawn.kind.strip() or ANY_KIND
    if kind.lower() in GOOD_NAMES:
        raise ValueError(f"marks a defect and is called {kind}")
    sides = np.array([size[1], size[0]], np.float64)
    scale = sides if drawn.shares else np.ones(2)
    if drawn.mask is not None:
        if drawn.mask.shape != size:
            height, width = drawn.mask.shape
            raise ValueError(f"a mask of {width}x{height} pixels for {size[1]}x{size[0]}")
        if not drawn.mask.any():
            raise ValueError("an empty mask")
        return Mark(kind, mask=drawn.mask)
    box = drawn.box
    polygons = [points * scale for points in drawn.polygons]
    # Exporters write boxes as polygons, too, upright or turned: those are no exact outlines.
    if len(polygons) == 1 and is_rectangle(polygons[0]):
        box, scale = box_around(polygons[0]), np.ones(2)
    if box is not None:
        corner = np.array(box[:2]) * scale
        extent = np.array(box[2:]) * scale
        if not (extent > 0).all():
            raise ValueError(f"an empty box, {extent[0]:g} wide and {extent[1]:g} high")
        low, high = _inside(np.stack([corner, corner + extent]), sides, drawn.where, notes)
        if not (high > low).all():
            raise ValueError("a box beside the image")
        return Mark(kind, box=box_around(np.stack([low, high])))
    outlines = []
    for points in polygons:
        outline = _inside(points, sides, drawn.where, notes)
        if _area(outline) == 0:
            raise ValueError("a polygon without an area")
        outlines.append(outline)
    return Mark(kind, polygons=tuple(outlines))


def is_rectangle(points: Points) -> bool:
    """Whether a polygon (n, 2), in pixels, is nothing but a rectangle, closed or not."""
    around = points[:-1] if len(points) == 5 and (points[0] == points[-1]).all() else points
    if len(around) != 4:
        return False
    # Diagonals of one middle and one length; files have few decimals.
    first, second = around[2] - around[0], around[3] - around[1]
    apart = around[0] + around[2] - around[1] - around[3]
    lengths = np.hypot(*first) - np.hypot(*second)
    return bool(np.hypot(*apart) < _DECIMALS and abs(lengths) < _DECIMALS)


def _inside(points: Points, sides: NDArray[np.float64], where: str, notes: Notes) -> Points:
    """Points (n, 2), those a little outside moved to the edge."""
    beyond = np.maximum(-points, points - sides).max(0)
    if (beyond > np.maximum(_BEYOND * sides, _ROUNDING)).any():
        low, high = points.min(0), points.max(0)
        raise ValueError(
            f"reaches from ({low[0]:.6g}, {low[1]:.6g}) to ({high[0]:.6g}, {high[1]:.6g}), beyond "
            f"the image of {sides[0]:g}x{sides[1]:g} pixels"
        )
    if (beyond > _ROUNDING).any():
        notes.add("marks that reach a little beyond their image", where, "cut off at its edge")
    return np.clip(points, 0, sides)


def _area(points: Points) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _key(mark: Mark) -> object:
    """Equal for marks that are the same."""
    box = None if mark.box is None else tuple(round(side, 1) for side in mark.box)
    outlines = tuple(outline.round(1).tobytes() for outline in mark.polygons)
    mask = mark.mask.tobytes() if isinstance(mark.mask, np.ndarray) else None
    return mark.kind, box, outlines, mask
