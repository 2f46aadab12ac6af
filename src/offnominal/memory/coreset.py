"""Coreset: the rows that a greedy k-centre selection keeps.

The plain algorithm keeps, for every row, the distance to the nearest row selected so far, and
selects the farthest row next: one pass over all rows per selected row. Here most of those passes
are put off, and most rows never need them. The selection is the same, row for row.
"""

import math
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.memory.bank import MemoryBank
from offnominal.memory.search.arrays import distances_of, exact_distances, lowered
from offnominal.memory.search.cutting import batches
from offnominal.memory.storage import NORM_LIMIT, as_stored, lengths

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]

# A distance and its row are one integer, as in the search, but with the row's number inverted:
# the largest key is the farthest row and, of rows equally far, the lowest.
_ROW_BITS = 32
_LAST_ROW = 2**_ROW_BITS - 1
_TAKEN = -1
# Rows that compete in a round are read every step, so they should stay in a core's cache.
_COMPETING_BYTES = 2**20
_BLOCK_BYTES = 2**22
_AHEAD = 8192  # rows brought up to date in a round
_CENTRES = 1024  # selected rows per matrix product
# Their number is rounded up, since the CPU's library keeps code for every shape of a product.
_STEP = 64
_PROJECTED = 2**14  # rows projected at once


def select_coreset(
    rows: Floats,
    count: int,
    *,
    seed: int = 0,
    start: int | None = None,
    project: int | None = None,
    device: str = "cpu",
    progress: Callable[[str, int], None] | None = None,
) -> Whole:
    """Select rows by greedy k-centre, each the farthest from those before it.

    Gonzalez (1985); as the coreset of PatchCore in Roth et al. (2022, §3.2, algorithm 1), who
    also project before they select. The covering radius, which is the largest distance of any
    row to its nearest selected one, is at most twice the smallest that ``count`` rows can have.

    What is computed is defined to the bit on a CPU. A distance is the sum of squared
    differences in float32, added in one fixed order, as in :meth:`MemoryBank.search`. The row
    with the largest distance to its nearest selected row is next; of rows equally far, the
    lowest; no row is selected twice. The number of threads and the number formats of the machine
    do not change the selection. With ``project``, the same holds for the projected rows.

    On other devices every step is one pass over the rows, which sums the squared differences in
    the device's own order: rows whose distances differ by less than its rounding may change
    places.

    Parameters
    ----------
    rows : float32 array of shape (N, D)
        N at most 2³². They may be mapped from a file.
    count : int
        How many rows to select, 1 to N.
    seed : int
        Of the first row, if not given, and of the projection.
    start : int, optional
        Number of the first row; drawn if not given.
    project : int or None
        Dimensions to project the rows to before distances are taken; None for the rows' own
        distances. Rows that are no longer than this are not projected. The released code of
        PatchCore projects to 128; here the default is None, which covers better and costs
        little more.
    device : str
        Where it is computed. "cpu" needs PyTorch for ``project`` only.
    progress : callable, optional
        Called with "coreset" and the number of rows selected so far.

    Returns
    -------
    int64 array of shape (count,)
        Row numbers in the order of selection.

    Raises
    ------
    OptionError
        If an option is out of its range, or a row is not finite.
    """
    if rows.ndim != 2 or rows.dtype != np.float32 or not rows.shape[1]:
        raise OptionError(
            f"rows: {rows.dtype} of shape {rows.shape}; give float32 patch features of shape (N, D)"
        )
    if not 1 <= count <= len(rows):
        raise OptionError(
            f"count: cannot select {count} of {len(rows)} rows; give 1 to the number of rows"
        )
    if start is None:
        # What torch.randint draws with this seed, which it was drawn by when models began.
        drawn = np.random.RandomState(seed).randint(2**32, dtype=np.uint32)
        start = int(drawn) % len(rows)
    if not 0 <= start < len(rows):
        raise OptionError(f"start: {start} is not one of the rows 0 to {len(rows) - 1}")
    if project is not None:
        rows = random_projection(rows, project, seed)
    if device != "cpu":
        return pass_per_step(rows, count, start, device, progress)
    return _Greedy(rows, count, start).run(progress)


def _check_finite(rows: Floats) -> None:
    if not lengths(rows).max() < NORM_LIMIT:
        raise OptionError(
            f"rows: values must be finite, with norms below {NORM_LIMIT:.0e}; "
            "check the images and the backbone's weights"
        )


def pass_per_step(
    rows: Floats,
    count: int,
    start: int,
    device: str,
    progress: Callable[[str, int], None] | None,
) -> Whole:
    """Select with one pass over the rows per step and no wait for the device in between."""
    import torch

    _check_finite(rows)
    with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
        there = torch.tensor(rows, device=device)
        picked = torch.full((count,), start, device=device)
        nearest = there.new_full((len(there),), torch.inf)
        for done in range(1, count):
            last = picked[done - 1 : done]
            # Differences, not products: no digits are lost where rows are alike.
            far = torch.cdist(
                there, there.index_select(0, last), compute_mode="donot_use_mm_for_euclid_dist"
            )
            torch.minimum(nearest, far[:, 0], out=nearest)
            nearest.index_fill_(0, last, -1)
            picked[done] = nearest.argmax()
            if progress:
                progress("coreset", done + 1)
    found: Whole = picked.cpu().numpy()
    return found


class _Greedy:
    """The selection in progress: from the row ``start``, or from distances ``near`` (N,).

    A row's key is exact as of the first ``seen`` selected rows. Further ones can only lower it,
    so a key that is not up to date is a bound from above: such a row needs no look until all
    keys above its own have come down.

    ``keys`` (N,) int64 are the squared distance to the nearest of the selected rows that a row has
    been compared with, and its number, or ``_TAKEN``; ``seen`` (N,) int32 tells how many these
    are. Of ``picked`` (count,) int64 the first ``done`` are selected.
    """

    def __init__(
        self, rows: Floats, count: int, start: int = 0, near: Floats | None = None
    ) -> None:
        self.rows = rows
        n, dim = rows.shape
        self.room = max(_COMPETING_BYTES // (4 * dim), 64)
        self.ahead = max(2 * self.room, _AHEAD)
        self.block = min(max(_BLOCK_BYTES // (4 * dim), 64), 4096)
        self.centre: Floats = rows[:: max(1, n // 1024)].mean(0)
        self.precision = "auto"
        self.picked = np.full(count, start)
        self.done = 1 if near is None else 0
        self.seen = np.full(n, self.done, np.int32)
        self.keys = np.empty(n, np.int64)
        for some in batches(n, self.block):
            part = np.arange(some.start, some.stop)
            if near is None:
                block = np.array(rows[some])
                _check_finite(block)
                self.keys[some] = _pack(exact_distances(block, rows[start]), part)
            else:
                self.keys[some] = _pack(near[some], part)
        if near is None:
            self.keys[start] = _TAKEN

    def run(self, progress: Callable[[str, int], None] | None) -> Whole:
        """Select round by round.

        A round brings the rows with the largest keys up to date. Those still above every other
        key compete among themselves, in the cache, for as long as one of them stays there: no
        other row can be the farthest before that.
        """
        while self.done < len(self.picked):
            top = _largest(self.keys, self.ahead + 1)
            bar = int(top[self.ahead]) if len(top) > self.ahead else _TAKEN
            top = top[: self.ahead]
            ids = _rows(top[top != _TAKEN])
            self._bring_up_to_date(ids)
            keys = np.sort(self.keys[ids])[::-1]
            if len(keys) > self.room:
                bar = max(bar, int(keys[self.room]))
            keys = keys[: self.room]
            self._compete(keys[keys > bar], bar, progress)
        return self.picked

    def _compete(self, keys: Whole, bar: int, progress: Callable[[str, int], None] | None) -> None:
        """Select the plain way among rows that are up to date, down to the key ``bar``."""
        ids = _rows(keys)
        rows = self.rows[ids]
        work = np.empty_like(rows)
        while len(keys) and self.done < len(self.picked):
            best = int(keys.argmax())
            if keys[best] <= bar:
                break
            self.picked[self.done] = ids[best]
            self.done += 1
            np.copyto(work, rows)
            keys = np.minimum(keys, _pack(exact_distances(work, rows[best]), ids))
            keys[best] = _TAKEN
            if progress:
                progress("coreset", self.done)
        self.keys[ids] = keys
        self.seen[ids] = self.done

    def _bring_up_to_date(self, ids: Whole) -> None:
        """Compare rows with the selected ones that they have not been compared with."""
        # A distance of 0 cannot come down.
        ids = ids[(self.seen[ids] < self.done) & (self.keys[ids] > _LAST_ROW)]
        # Rows that have seen equally many share a matrix product without waste.
        ids = ids[self.seen[ids].argsort(kind="stable")]
        for some in batches(len(ids), self.block):
            part = ids[some]
            block = self.rows[part]
            far = distances_of(self.keys[part])
            unseen = math.ceil((self.done - int(self.seen[part[0]])) / _STEP) * _STEP
            for start in range(max(self.done - unseen, 0), self.done, _CENTRES):
                chosen = self.picked[start : min(start + _CENTRES, self.done)]
                far = self._lowered(far, block, self.rows[chosen])
            self.keys[part] = _pack(far, part)
            self.seen[part] = self.done

    def _lowered(self, far: Floats, block: Floats, centres: Floats) -> Floats:
        """The smaller of ``far`` (n,) and the exact distances from ``block`` to ``centres``."""
        if sys.modules.get("torch") is not None:
            from offnominal.memory.search import lowering

            far, self.precision = lowering.lowered(
                far, block, centres, self.centre, self.precision, self.block
            )
            return far
        return lowered(far, block, centres, self.centre, self.block)


def _pack(distances: Floats, ids: Whole) -> Whole:
    """Keys of rows at these squared distances, at least 0."""
    keys = np.ascontiguousarray(distances).view(np.int32).astype(np.int64) << _ROW_BITS
    packed: Whole = keys | (_LAST_ROW - ids)
    return packed


def _rows(keys: Whole) -> Whole:
    ids: Whole = _LAST_ROW - (keys & _LAST_ROW)
    return ids


def _largest(keys: Whole, count: int) -> Whole:
    """The largest keys, descending."""
    if count < len(keys):
        keys = np.partition(keys, len(keys) - count)[len(keys) - count :]
    return np.sort(keys)[::-1]


def farthest_rows(rows: Floats, bank: MemoryBank, count: int) -> Whole:
    """Select rows greedily, each the farthest from the bank and from those selected before it.

    It goes on where greedy k-centre selection (Gonzalez, 1985) stopped.

    Parameters
    ----------
    rows : float32 array of shape (n, dim)
        Rounded as the bank stores its rows.
    bank : MemoryBank
        With at least one row.
    count : int
        How many, 1 to n.

    Returns
    -------
    int64 array of shape (count,)
        Numbers of the rows, in the order of selection; of rows equally far, the lowest first.
    """
    rows = as_stored(rows, bank.storage)
    near = bank.search(rows)[0][:, 0]
    return _Greedy(rows, count, near=near).run(None)


def cover(rows: Floats, near: Floats, radius: float) -> Whole:
    """Select rows greedily until none is farther than a radius from what is selected.

    Parameters
    ----------
    rows : float32 array of shape (n, dim)
        Few of them: each selected row takes a pass over those that are still too far.
    near : float32 array of shape (n,)
        Squared distances to the nearest of what was selected before; infinite where nothing was.
    radius : float
        Squared.

    Returns
    -------
    int64 array of shape (count,)
        Numbers of the rows, in the order of selection; of rows equally far, the lowest first.
    """
    left = np.flatnonzero(near > radius)
    rows, near = rows[left], near[left]
    picked = []
    while len(left):
        farthest = int(near.argmax())
        picked.append(left[farthest])
        near = np.minimum(near, np.square(rows - rows[farthest]).sum(1))
        far = near > radius
        far[farthest] = False
        left, rows, near = left[far], rows[far], near[far]
    return np.array(picked, np.int64)


def random_projection(rows: Floats, dim: int, seed: int = 0) -> Floats:
    """Multiply rows by a Gaussian matrix, which keeps squared distances on average.

    Johnson and Lindenstrauss (1984); with independent entries of variance 1/dim the squared
    distance of a pair keeps its mean and has a relative standard deviation of √(2/dim).

    Parameters
    ----------
    rows : float32 array of shape (N, D)
    dim : int
        Length of a projected row, at least 1.
    seed : int
        Of the matrix.

    Returns
    -------
    float32 array of shape (N, dim)
        ``rows`` itself where ``dim`` is not below D.

    Raises
    ------
    OptionError
        If ``dim`` is below 1.
    """
    if dim < 1:
        raise OptionError(f"project: {dim} is not a number of dimensions; give 1 or more, or None")
    if dim >= rows.shape[1]:
        return rows
    import torch

    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows.shape[1], dim, generator=generator).numpy() / np.float32(dim**0.5)
    projected = np.empty((len(rows), dim), np.float32)
    # In blocks, since the rows may be mapped from a file.
    for part in batches(len(rows), _PROJECTED):
        np.matmul(rows[part], matrix, out=projected[part])
    return projected
