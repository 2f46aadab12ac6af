"""Where a row of a memory bank comes from."""

from dataclasses import dataclass
from typing import Self

from offnominal.detectors.references import Reference
from offnominal.scoring import Size
from offnominal.views import Box, Flip, View, enclosing_box, patch_corners, reflected

__all__ = ["Origin"]


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

    @classmethod
    def of(cls, reference: Reference, view: View, grid: Size, patch: int) -> Self:
        """The place of a patch in a view of a reference."""
        points, mirrored = reflected(patch_corners(view, grid, patch), reference.size)
        return cls(
            file=reference.file,
            digest=reference.digest,
            size=reference.size,
            angle=view.angle,
            flip=view.flip,
            box=enclosing_box(points, reference.size),
            corners=tuple((float(x), float(y)) for x, y in points),
            mirrored=mirrored,
        )
