"""Every reference's patches against the rest of a bank, kept up to date as the bank changes.

The distance from a patch of a reference to the nearest row of another one is what that patch would
score had its image not been learned. With it and the reference that it was measured to, a change
takes little: rows that came can only be nearer, so the smaller of two distances holds, and rows
that went matter only to the patches that were nearest to them. The result is, to the bit, what
measuring everything anew would give.

References are numbered from 0.
"""

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from offnominal.memory.bank import MemoryBank
from offnominal.memory.search.cutting import batches

Progress = Callable[[str, int], None]
Whole = NDArray[np.int64]

UNMEASURED = -1
ALONE = -2
"""In place of the nearest reference: there is no other."""
_TOGETHER = 2**14  # patches that are looked up at once
_AHEAD = (16, 128)  # nearest rows among which one of another reference is looked for


def measure(
    bank: MemoryBank, references: Collection[int], progress: Progress | None = None
) -> None:
    """Look up the counted rows of some references among the rows of all other active ones.

    Parameters
    ----------
    bank : MemoryBank
        Its columns ``loo_distance`` and ``loo_reference`` are set.
    references : collection of int
    progress : callable, optional
        Called with "threshold" and the number of references done.
    """
    for done, reference in enumerate(references, start=1):
        rows = bank.rows_of(reference)
        rows = rows[bank.counts[rows]]
        if len(rows):
            _set(bank, rows, *_nearest(bank, rows, reference))
        if progress:
            progress("threshold", done)


def grown(bank: MemoryBank, new: Collection[int], progress: Progress | None = None) -> None:
    """Bring a bank up to date with references that came, or came back, and measure these.

    The others are compared with the new rows alone. Those that were never measured stay so.

    Parameters
    ----------
    bank, progress
        As for :func:`measure`; progress tells of the others, then of the new ones.
    new : collection of int
        Their rows are in the bank and active.
    """
    rows = _counted(bank, new)
    rows = rows[bank.loo_reference[rows] != UNMEASURED]
    if bank.is_of(new).any():
        for some in batches(len(rows), _TOGETHER):
            part = rows[some]
            squared, nearest = bank.search(bank.take(part), 1, among=new)
            distance, row = squared[:, 0], nearest[:, 0]
            before, known = bank.loo_distance[part], bank.loo_reference[part]
            nearer = distance < before
            # Of rows equally far the lowest counts, and the rows of a reference lie together.
            tied = distance == before
            for reference in np.unique(known[tied]).tolist():
                first = int(bank.rows_of(reference)[0])
                nearer |= tied & (known == reference) & (row < first)
            _set(bank, part[nearer], distance[nearer], bank.reference[row[nearer]])
            _tell(bank, rows, part, progress)
    measure(bank, new, progress)


def shrunk(bank: MemoryBank, gone: Collection[int], progress: Progress | None = None) -> None:
    """Bring a bank up to date with references that went: only what was nearest to them changes.

    Parameters
    ----------
    bank, progress
        As for :func:`measure`.
    gone : collection of int
        Their rows are inactive, or no longer in the bank.
    """
    rows = _counted(bank, gone)
    rows = rows[np.isin(bank.loo_reference[rows], sorted(gone))]
    for some in batches(len(rows), _TOGETHER):
        part = rows[some]
        _set(bank, part, *_nearest_of_others(bank, part))
        _tell(bank, rows, part, progress)


def _counted(bank: MemoryBank, without: Collection[int]) -> Whole:
    """Counted rows (n,) of active references, but for some."""
    return np.flatnonzero(bank.counts & ~bank.is_of({*bank.inactive, *without}))


def _nearest(
    bank: MemoryBank, rows: Whole, skip: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Distances (n,) from rows to the nearest that are not of ``skip``, and whose those are."""
    if not bank.left(skip):
        return np.full(len(rows), np.inf, np.float32), np.full(len(rows), ALONE, np.int32)
    squared, nearest = bank.search(bank.take(rows), 1, skip)
    return squared[:, 0], bank.reference[nearest[:, 0]]


def _nearest_of_others(
    bank: MemoryBank, rows: Whole
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """As :func:`_nearest` for rows of several references, each without its own.

    The first of the nearest rows that is not a patch's own image's is the nearest of the others.
    Only where very many of them are its own is each reference searched for by itself.
    """
    own = bank.reference[rows]
    distance = np.empty(len(rows), np.float32)
    reference = np.empty_like(own)
    left = np.arange(len(rows))
    for ahead in _AHEAD:
        squared, nearest = bank.search(bank.take(rows[left]), min(ahead, bank.left()))
        theirs = bank.reference[nearest]
        other = theirs != own[left, None]
        first = other.argmax(1)[:, None]
        # Where none is another image's these are wrong, and are found in the next round.
        distance[left] = np.take_along_axis(squared, first, 1)[:, 0]
        reference[left] = np.take_along_axis(theirs, first, 1)[:, 0]
        left = left[~other.any(1)]
        if not len(left):
            return distance, reference
    for one in np.unique(own[left]).tolist():
        here = left[own[left] == one]
        distance[here], reference[here] = _nearest(bank, rows[here], one)
    return distance, reference


def _set(
    bank: MemoryBank, rows: Whole, distance: NDArray[np.float32], reference: NDArray[np.int32]
) -> None:
    bank.loo_distance[rows], bank.loo_reference[rows] = distance, reference


def _tell(bank: MemoryBank, rows: Whole, part: Whole, progress: Progress | None) -> None:
    """Tell how many of the references that ``rows`` are of are done with ``part`` of these."""
    if progress:
        progress("threshold", len(np.unique(bank.reference[rows[rows <= part[-1]]])))
