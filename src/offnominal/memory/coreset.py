"""Coreset: the rows that a greedy k-centre selection keeps.

The plain algorithm keeps, for every row, the distance to the nearest row selected so far, and
selects the farthest row next: one pass over all rows per selected row. Here most of those passes
are put off, and most rows never need them. The selection is the same, row for row.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from offnominal.errors import OptionError
from offnominal.memory.exact import NORM_LIMIT
from offnominal.memory.projection import random_projection
from offnominal.memory.screen import product_dtype, screen
from offnominal.memory.search import exact_distances

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
# Exact comparisons per row above which the bounds of a short number format are too loose.
_CROWDED = 4


def select_coreset(
    rows: Tensor,
    count: int,
    *,
    seed: int = 0,
    start: int | None = None,
    project: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Tensor:
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
    rows : Tensor
        (N, D) float32, N at most 2³². On a CPU they may be mapped from a file.
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
    progress : callable, optional
        Called with "coreset" and the number of rows selected so far.

    Returns
    -------
    Tensor
        (count,) int64 row numbers in the order of selection, on the rows' device.

    Raises
    ------
    OptionError
        If an option is out of its range, or a row is not finite.
    """
    if rows.ndim != 2 or rows.dtype != torch.float32 or not rows.shape[1]:
        raise OptionError(
            f"rows: a {rows.dtype} tensor of shape {tuple(rows.shape)}; "
            "give float32 patch features of shape (N, D)"
        )
    if not 1 <= count <= len(rows):
        raise OptionError(
            f"count: cannot select {count} of {len(rows)} rows; give 1 to the number of rows"
        )
    if start is None:
        generator = torch.Generator().manual_seed(seed)
        start = int(torch.randint(len(rows), (1,), generator=generator))
    if not 0 <= start < len(rows):
        raise OptionError(f"start: {start} is not one of the rows 0 to {len(rows) - 1}")
    # Autocast would change the format of the products under the bounds' feet.
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        if project is not None:
            rows = random_projection(rows, project, seed)
        if rows.device.type != "cpu":
            _check_finite(rows)
            return _pass_per_step(rows, count, start, progress)
        return _Greedy(rows, count, start).run(progress)


def _check_finite(rows: Tensor) -> None:
    if not torch.linalg.vector_norm(rows, dim=1).amax() < NORM_LIMIT:
        raise OptionError(
            f"rows: values must be finite, with norms below {NORM_LIMIT:.0e}; "
            "check the images and the backbone's weights"
        )


def _pass_per_step(
    rows: Tensor, count: int, start: int, progress: Callable[[str, int], None] | None
) -> Tensor:
    """Select with one pass over the rows per step and no wait for the device in between."""
    picked = torch.full((count,), start, device=rows.device)
    nearest = rows.new_full((len(rows),), torch.inf)
    for done in range(1, count):
        last = picked[done - 1 : done]
        # Differences, not products: no digits are lost where rows are alike.
        far = torch.cdist(
            rows, rows.index_select(0, last), compute_mode="donot_use_mm_for_euclid_dist"
        )
        torch.minimum(nearest, far[:, 0], out=nearest)
        nearest.index_fill_(0, last, -1)
        picked[done] = nearest.argmax()
        if progress:
            progress("coreset", done + 1)
    return picked


class _Greedy:
    """The selection in progress.

    A row's key is exact as of the first ``seen`` selected rows. Further ones can only lower it,
    so a key that is not up to date is a bound from above: such a row needs no look until all
    keys above its own have come down.

    Attributes
    ----------
    keys : Tensor
        (N,) int64: squared distance to the nearest of the selected rows that the row has been
        compared with, and the row's number; ``_TAKEN`` once it is selected.
    seen : Tensor
        (N,) int32: how many selected rows those are.
    picked : Tensor
        (count,) int64: the selected rows; the first ``done`` are valid.
    """

    def __init__(self, rows: Tensor, count: int, start: int) -> None:
        self.rows = rows
        n, dim = rows.shape
        self.room = max(_COMPETING_BYTES // (4 * dim), 64)
        self.ahead = max(2 * self.room, _AHEAD)
        self.block = min(max(_BLOCK_BYTES // (4 * dim), 64), 4096)
        self.dtype = product_dtype("auto", rows.device)
        self.centre = rows[:: max(1, n // 1024)].mean(0)
        self.seen = torch.ones(n, dtype=torch.int32)
        self.picked = torch.full((count,), start)
        self.done = 1
        self.keys = torch.empty(n, dtype=torch.int64)
        for first in range(0, n, self.block):
            block = rows[first : first + self.block].clone()
            _check_finite(block)
            part = torch.arange(first, first + len(block))
            self.keys[part] = _pack(exact_distances(block, rows[start]), part)
        self.keys[start] = _TAKEN

    def run(self, progress: Callable[[str, int], None] | None) -> Tensor:
        """Select round by round.

        A round brings the rows with the largest keys up to date. Those still above every other
        key compete among themselves, in the cache, for as long as one of them stays there: no
        other row can be the farthest before that.
        """
        while self.done < len(self.picked):
            top = self.keys.topk(min(self.ahead + 1, len(self.keys))).values
            bar = int(top[self.ahead]) if len(top) > self.ahead else _TAKEN
            top = top[: self.ahead]
            ids = _row(top[top != _TAKEN])
            self._bring_up_to_date(ids)
            keys = self.keys[ids].sort(descending=True).values
            if len(keys) > self.room:
                bar = max(bar, int(keys[self.room]))
            keys = keys[: self.room]
            self._compete(keys[keys > bar], bar, progress)
        return self.picked

    def _compete(self, keys: Tensor, bar: int, progress: Callable[[str, int], None] | None) -> None:
        """Select the plain way among rows that are up to date, down to the key ``bar``."""
        ids = _row(keys)
        rows = self.rows[ids]
        work = torch.empty_like(rows)
        while len(keys) and self.done < len(self.picked):
            best = int(keys.argmax())
            if keys[best] <= bar:
                break
            self.picked[self.done] = ids[best]
            self.done += 1
            work.copy_(rows)
            keys = torch.minimum(keys, _pack(exact_distances(work, rows[best]), ids))
            keys[best] = _TAKEN
            if progress:
                progress("coreset", self.done)
        self.keys[ids] = keys
        self.seen[ids] = self.done

    def _bring_up_to_date(self, ids: Tensor) -> None:
        """Compare rows with the selected ones that they have not been compared with."""
        # A distance of 0 cannot come down.
        ids = ids[(self.seen[ids] < self.done) & (self.keys[ids] > _LAST_ROW)]
        # Rows that have seen equally many share a matrix product without waste.
        ids = ids[self.seen[ids].argsort()]
        for first in range(0, len(ids), self.block):
            part = ids[first : first + self.block]
            block = self.rows[part]
            far = _distance(self.keys[part])
            unseen = math.ceil((self.done - int(self.seen[part[0]])) / _STEP) * _STEP
            for start in range(max(self.done - unseen, 0), self.done, _CENTRES):
                chosen = self.picked[start : min(start + _CENTRES, self.done)]
                self._lower(far, block, self.rows[chosen])
            self.keys[part] = _pack(far, part)
            self.seen[part] = self.done

    def _lower(self, far: Tensor, block: Tensor, centres: Tensor) -> None:
        """Lower ``far`` (n,), in place, to the exact distances from ``block`` to ``centres``.

        A matrix product with a bounded error rules out the pairs that cannot lower anything.
        """
        everyone = torch.arange(len(block))
        blocks = [(0, len(centres))]
        screened = screen(centres, block, blocks, self.centre, self.dtype, 1)
        near = screened.maxima[:, 0]
        # The most promising of each row first: it rules out most of the others.
        best, which = near.max(1)
        who = (best >= screened.threshold(far, everyone)[:, 0]).nonzero()[:, 0]
        which = which[who]
        far[who] = torch.minimum(far[who], exact_distances(block[who], centres[which]))
        near[who, which] = -torch.inf
        left, which = (near[who] >= screened.threshold(far[who], who)).nonzero().unbind(1)
        if len(left) > _CROWDED * len(block) and self.dtype != torch.float32:
            self.dtype = torch.float32
            return self._lower(far, block, centres)
        for first in range(0, len(left), self.block):
            row = who[left[first : first + self.block]]
            column = which[first : first + self.block]
            exact = exact_distances(block[row], centres[column])
            far.scatter_reduce_(0, row, exact, "amin")
        return None


def _pack(distances: Tensor, ids: Tensor) -> Tensor:
    """Keys of rows at these squared distances (float32, at least 0)."""
    keys: Tensor = distances.contiguous().view(torch.int32).long() << _ROW_BITS
    return keys.bitwise_or(_LAST_ROW - ids)


def _row(keys: Tensor) -> Tensor:
    ids: Tensor = _LAST_ROW - (keys & _LAST_ROW)
    return ids


def _distance(keys: Tensor) -> Tensor:
    squares: Tensor = (keys >> _ROW_BITS).to(torch.int32).view(torch.float32)
    return squares
