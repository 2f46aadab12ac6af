"""The defects by which a threshold is checked before there is a real one: kinds and sizes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.synthesis.cut_paste import KINDS, Kind, cut_paste

__all__ = ["CELLS", "PER_CELL", "SHARES", "Cell", "Missed", "make_defect"]

SHARES = {"small": 0.001, "medium": 0.004, "large": 0.016}
"""Of the image's area: sides of about 8, 16 and 32 in 256 pixels."""
PER_CELL = 8


class Cell(NamedTuple):
    """A kind of synthetic defect, and a size of :data:`SHARES`."""

    kind: Kind
    size: str


CELLS = tuple(Cell(kind, size) for kind in KINDS for size in SHARES)


class Missed(NamedTuple):
    """How many synthetic defects of a cell were made, and how many a threshold passes."""

    cell: Cell
    missed: int
    made: int


def make_defect(
    image: NDArray[np.uint8], cell: Cell, draw: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A defect on an image, uint8 (H, W, 3), and its mask; the same draw gives the same one."""
    rng = np.random.default_rng([CELLS.index(cell), draw])
    return cut_paste(image, cell.kind, SHARES[cell.size], rng)
