"""Search among the rows of a few references: the nearest of each level, anywhere or near by.

The rows of a reference lie together in a bank, so what is read of a bank in a file is a stretch for
each reference, and nothing else.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from offnominal.memory.bank import MemoryBank
from offnominal.memory.search.chosen import ChosenSearch
from offnominal.memory.search.cutting import batches
from offnominal.memory.storage import StoredRows

__all__ = ["nearest_among"]

Floats = NDArray[np.float32]
Grid = tuple[int, int]

_AT_ONCE = 2**26  # bytes of rows that are read together


def nearest_among(
    bank: MemoryBank,
    numbers: Sequence[int],
    queries: Floats,
    widths: Sequence[int],
    near: Callable[[int], Grid] | None = None,
    grid: Grid = (0, 0),
    radius: int = 0,
) -> Floats:
    """Squared distances to the nearest rows of some references, of each level by itself.

    Exact: in float32, among the rows as they are stored.

    Parameters
    ----------
    bank : MemoryBank
        In fp32 or fp16, its references in ascending order.
    numbers : sequence of int
        The references.
    queries : float32 array of shape (Q, dim)
        Rounded as the bank's rows.
    widths : sequence of int
        Lengths of the levels that a row is joined of; their sum is dim.
    near : callable or None
        The grid (gh, gw) of a reference by its number: then only rows are searched whose place in
        their grid is at most ``radius`` from where the query lies in its own. None: all rows.
    grid : (gh, gw)
        Of the queries, row-major; needed with ``near``.

    Returns
    -------
    float32 array of shape (levels, Q)
    """
    ends = np.cumsum(widths).tolist()
    parts = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    best = np.full((len(parts), len(queries)), np.inf, np.float32)
    stretches = _stretches(bank, numbers)
    if near is not None:
        for number, (start, stop) in zip(sorted(numbers), stretches, strict=True):
            rows = bank.take(slice(start, stop))
            np.minimum(best, _near(queries, grid, rows, near(number), parts, radius), out=best)
        return best
    asked = [np.ascontiguousarray(queries[:, part]) for part in parts]
    size = max(1, bank.rows.itemsize * bank.dim * max(stop - start for start, stop in stretches))
    for some in batches(len(stretches), max(1, _AT_ONCE // size)):
        read = np.concatenate([bank.rows[start:stop] for start, stop in stretches[some]])
        for level, part in enumerate(parts):
            stored = StoredRows(np.ascontiguousarray(read[:, part]))
            search = ChosenSearch().among(stored, bank.device, bank.precision)
            squared, _ = search.find(asked[level], 1, [(0, len(read))], bank.memory)
            np.minimum(best[level], squared[:, 0], out=best[level])
    return best


def _stretches(bank: MemoryBank, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First row and end of some references, ascending: by bisection, whatever the bank's size."""
    wanted = np.array(sorted(numbers), bank.reference.dtype)
    starts = np.searchsorted(bank.reference, wanted, "left").tolist()
    return list(zip(starts, np.searchsorted(bank.reference, wanted, "right").tolist(), strict=True))


def _near(
    queries: Floats, grid: Grid, rows: Floats, other: Grid, parts: Sequence[slice], radius: int
) -> Floats:
    """Squared distances (levels, Q) to the nearest of one reference's rows near the same place."""
    (height, width), (rows_there, columns_there) = grid, other
    # Where a patch lies in another grid: the patch that its centre falls into.
    y = (2 * np.arange(height) + 1) * rows_there // (2 * height)
    x = (2 * np.arange(width) + 1) * columns_there // (2 * width)
    best = np.full((len(parts), height, width), np.inf, np.float32)
    asked = queries.reshape(height, width, -1)
    known = rows.reshape(rows_there, columns_there, -1)
    most_down, most_right = min(radius, rows_there - 1), min(radius, columns_there - 1)
    for down in range(-most_down, most_down + 1):
        for right in range(-most_right, most_right + 1):
            at_y, at_x = y + down, x + right
            fits_y, fits_x = (at_y >= 0) & (at_y < rows_there), (at_x >= 0) & (at_x < columns_there)
            if not fits_y.any() or not fits_x.any():
                continue
            here = np.ix_(fits_y, fits_x)
            apart = asked[here] - known[np.ix_(at_y[fits_y], at_x[fits_x])]
            for level, part in enumerate(parts):
                own = apart[..., part]
                squared = np.einsum("yxd,yxd->yx", own, own)
                best[level][here] = np.minimum(best[level][here], squared)
    return best.reshape(len(parts), -1)
