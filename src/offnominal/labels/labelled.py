"""Defective images, and what is known about each: classes, masks, outlines, boxes, or nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from offnominal.errors import OptionError
from offnominal.images import ImageSource
from offnominal.scoring import Size
from offnominal.sources import ImageSources, several

__all__ = ["ANY_KIND", "DEFECTIVE", "GOOD", "MOST_MARKS", "UNKNOWN", "Defects", "Labelled", "Mark"]
__all__ += ["labelled"]

GOOD, DEFECTIVE, UNKNOWN = 0, 1, 255
"""Values of a target's pixels."""
ANY_KIND = "defect"
"""The class of a defect of which nobody said one."""

Bools = NDArray[np.bool_]
Box = tuple[float, float, float, float]
Defects = Union["Labelled", ImageSources, Iterable["Labelled | ImageSource"]]
"""Defective images, with labels or without."""

MOST_MARKS = 254  # of an image: numbers of a byte, without those of good and unknown pixels
_FINER = 8  # than a pixel, outlines are filled
_LARGE = 500_000  # pixels, above which that would take too much memory


@dataclass(frozen=True, eq=False)
class Mark:
    """One place of an image that is marked as defective.

    Attributes
    ----------
    kind : str
        Its class.
    box : (left, top, width, height) or None
        In pixels of the image, upright. Where there is nothing else, the defect is known to lie
        inside, and not which of the pixels there are defective.
    polygons : tuple of float64 arrays of shape (n, 2)
        Outlines: x and y of their corners, in pixels, counted from the edges.
    mask : path, bool array of shape (H, W), or None
        A mask file, or a folder of them; or the pixels themselves.
    threshold : int
        Smallest grey level of a mask file that means defective.
    """

    kind: str = ANY_KIND
    box: Box | None = None
    polygons: tuple[NDArray[np.float64], ...] = ()
    mask: Path | Bools | None = None
    threshold: int = 128

    def __post_init__(self) -> None:
        if self.box is None and not self.polygons and self.mask is None:
            raise OptionError(f"a mark of {self.kind}: give a box, polygons or a mask")

    @property
    def exact(self) -> bool:
        """Whether its very pixels are known, and not only a box around them."""
        return bool(self.polygons) or self.mask is not None

    def where(self, size: Size) -> Bools:
        """Its pixels in an image (H, W); of a box all that it touches.

        Raises
        ------
        DatasetError
            If a mask file cannot be read, or is of another shape than the image.
        OptionError
            If an array is.
        """
        if isinstance(self.mask, Path):
            from offnominal.datasets.masks import read_mask

            return read_mask(self.mask, size, self.threshold)
        if self.mask is not None:
            if self.mask.shape != tuple(size):
                told = f"a mask {self.mask.shape} of an image {tuple(size)}: give one of its size"
                raise OptionError(told)
            return self.mask
        found = np.zeros(size, np.bool_)
        if self.polygons:
            for corners in self.polygons:
                _fill(found, corners)
            return found
        if self.box is not None:
            left, top, width, height = self.box
            rows = slice(max(0, int(np.floor(top))), int(np.ceil(top + height)))
            found[rows, max(0, int(np.floor(left))) : int(np.ceil(left + width))] = True
        return found


def _fill(found: Bools, corners: NDArray[np.float64]) -> None:
    """Mark the pixels that lie in an outline to half; of a thin one those that it covers most."""
    height, width = found.shape
    left, top = np.clip(np.floor(corners.min(0)), 0, (width, height)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(0)), 0, (width, height)).astype(int).tolist()
    if right <= left or bottom <= top:
        return
    # Pillow's outlines are a pixel wide, so it draws them larger; corners are counted from edges,
    # Pillow's from the middles of pixels.
    fine = _FINER if (right - left) * (bottom - top) <= _LARGE else 1
    picture = Image.new("L", ((right - left) * fine, (bottom - top) * fine))
    moved = (corners - (left, top)) * fine - 0.5
    ImageDraw.Draw(picture).polygon([(x, y) for x, y in moved.tolist()], fill=255)
    cover = np.asarray(picture.resize((right - left, bottom - top), Image.Resampling.BOX))
    found[top:bottom, left:right] |= cover >= max(1, min(128, int(cover.max()) // 2))


@dataclass(frozen=True, eq=False)
class Labelled:
    """A defective image, and what is known about its defects.

    Attributes
    ----------
    image : path, array, PIL image or tensor
        As detectors take it.
    kinds : tuple of str
        Classes of its defects, one or more.
    marks : tuple of Mark
        Where they are. None at all: it is not known. Otherwise what is not marked is good.
    """

    image: ImageSource
    kinds: tuple[str, ...] = (ANY_KIND,)
    marks: tuple[Mark, ...] = ()

    def __post_init__(self) -> None:
        if not self.kinds or not all(isinstance(kind, str) and kind for kind in self.kinds):
            raise OptionError(f"classes of a defective image are {self.kinds!r}: name one or more")
        if len(self.marks) > MOST_MARKS:
            raise OptionError(f"{len(self.marks)} marks on one image: {MOST_MARKS} at most")

    def drawn(self, size: Size, shrink: Callable[[Bools], Bools] | None = None) -> list[Bools]:
        """Pixels of each mark, in an image (H, W), or in what ``shrink`` makes of such a picture.

        A mask that is empty marks nothing: where the defect lies is not known then.
        """
        found = (mark.where(size) for mark in self.marks)
        return [shrink(one) if shrink else one for one in found]

    def target(self, size: Size) -> NDArray[np.uint8]:
        """What each pixel of an image (H, W) is, uint8: 0 good, 1 defective, 255 not known.

        Not known is the inside of a box that is only a box, and all of an image without a mark.
        """
        return target_of(self.marks, self.drawn(size), size)

    def instances(self, size: Size) -> tuple[NDArray[np.uint8], list[str]]:
        """Which mark a pixel of an image (H, W) belongs to, and the classes of the marks.

        uint8, 0 for none, else the place of the mark from 1; of marks that overlap the smaller one
        lies above.
        """
        return instances_of(self.drawn(size), size), [mark.kind for mark in self.marks]


def target_of(marks: Iterable[Mark], drawn: Iterable[Bools], size: Size) -> NDArray[np.uint8]:
    """What marks and their pixels make of an image (H, W), as :meth:`Labelled.target` has it."""
    inside, loose = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    for mark, pixels in zip(marks, drawn, strict=True):
        (inside if mark.exact else loose)[pixels] = True
    if not (inside.any() or loose.any()):
        return np.full(size, UNKNOWN, np.uint8)
    found = np.where(loose, UNKNOWN, GOOD).astype(np.uint8)
    found[inside] = DEFECTIVE
    return found


def instances_of(drawn: list[Bools], size: Size) -> NDArray[np.uint8]:
    """Which of several marks a pixel of an image (H, W) belongs to."""
    found = np.zeros(size, np.uint8)
    for place in sorted(range(len(drawn)), key=lambda place: -int(drawn[place].sum())):
        found[drawn[place]] = place + 1
    return found


def labelled(defects: Defects) -> list[Labelled]:
    """Defective images one by one; what comes without labels is a defect of no known class.

    Parameters
    ----------
    defects : Labelled, path, array, PIL image or tensor, or several of them
        A folder or a pattern stands for the images in it, as
        :func:`~offnominal.sources.several` has it.
    """
    if isinstance(defects, Labelled):
        return [defects]
    if not isinstance(defects, list | tuple):
        return [Labelled(image) for image in several(defects)]  # type: ignore[arg-type]  # no Labelled
    found: list[Labelled] = []
    for one in defects:
        own = [one] if isinstance(one, Labelled) else map(Labelled, several(one))
        found += own
    return found
