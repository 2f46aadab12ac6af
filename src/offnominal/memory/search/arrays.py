"""The search without PyTorch, with the same bits.

A float32 product for each block of rows gives, never too small, how near its rows can be: all that
its rounding may have taken from it is added. Only what that does not rule out is compared exactly,
in the order of additions that :mod:`offnominal.memory.search.exact` has.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.memory.search.cutting import Spans, batches, sample
from offnominal.memory.storage import StoredRows, lengths, refuse_infinite

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]

ROW_BITS = 32
NOTHING = (0x7F800000 << ROW_BITS) | 0xFFFFFFFF
"""Key of no row, infinitely far. A distance and its row are one integer: the bits of a non-negative
float32 are ordered as its value is, so a smaller key is a smaller distance or, at a tie, a lower
row."""

_ROUNDOFF = 2.0**-24  # of float32
_FINER = 2.0**-53  # of float64
_TREE = 2.0**-18  # of an exact distance: more than float32 rounds off in at most 64 steps
_TINY = 1e-34  # what is lost below the range of float32
# Comparing with one row exactly costs about as much as this many rows of a product.
_EXACT_COST = 40
_NARROW = 32  # width from which a sum goes on across the pairs


def distances_of(keys: Whole) -> Floats:
    """Squared distances of keys."""
    return (keys >> ROW_BITS).astype(np.int32).view(np.float32)


def exact_distances(rows: Floats, queries: Floats) -> Floats:
    """Squared distances (n,) of pairs (n, D), added in one fixed order; ``rows`` is overwritten."""
    squares = np.subtract(rows, queries, out=rows)
    np.multiply(squares, squares, out=squares)
    width = squares.shape[1]
    while width > _NARROW:
        half = width // 2
        squares[:, :half] += squares[:, width - half : width]
        width -= half
    # The same sums, but along the pairs: a few numbers are no work for a loop of their own.
    across = np.ascontiguousarray(squares[:, :width].T)
    while width > 1:
        half = width // 2
        across[:half] += across[width - half : width]
        width -= half
    total: Floats = across[0]
    return total


@dataclass(frozen=True)
class Plan:
    """How a search is cut into pieces. No choice here changes the result."""

    queries: int  # per pass over the rows
    rows: int  # per product
    compared: int  # pairs compared exactly at once

    @classmethod
    def within(cls, memory: int, n_queries: int, n_rows: int, dim: int, k: int) -> "Plan":
        """Choose sizes whose workspace stays within ``memory`` bytes, as far as 1 row allows."""
        wide = 8 * (dim + 2)
        queries = max(1, min(n_queries, 1024, memory // 8 // max(wide, 32 * k)))
        # A product, which of it is near, and where; also in float64, where many are.
        rows = max(1, min(n_rows, 2048, memory // 4 // (32 * queries), memory // 8 // (2 * wide)))
        return cls(queries, rows, max(1, min(memory // 8, 2**22) // (8 * dim)))


class Block(NamedTuple):
    """A block of rows as a product takes it: less the centre, with two columns for its bound."""

    codes: Floats  # (n, D + 2)
    reach: float  # the largest distance from the centre


class ArraySearch:
    """Searches among some rows, which must not change.

    Parameters
    ----------
    rows : StoredRows
        (N, D).
    """

    def __init__(self, rows: StoredRows) -> None:
        self._rows = rows
        self._centre: Floats | None = None
        self._blocks: dict[tuple[int, int], Block] = {}
        self.seconds = 0.0  # that all searches so far took

    def find(
        self, queries: Floats, k: int, spans: Spans, memory: int, plan: Plan | None = None
    ) -> tuple[Floats, Whole]:
        """As :meth:`MemoryBank.search`, of queries (Q, D) as rows are stored.

        ``memory`` is a bound in bytes; a quarter of it is for blocks that are kept for the next
        search, if those of all rows fit.
        """
        began = time.perf_counter()
        rows, dim, centre = self._rows, queries.shape[1], self._centre
        if centre is None:
            centre = self._centre = rows.take(sample(len(rows), 1024)).mean(0)
        if plan is None:
            left = sum(stop - start for start, stop in spans)
            plan = Plan.within(memory - memory // 4, len(queries), left, dim, k)
        keep = spans == [(0, len(rows))] and 4 * (dim + 2) * len(rows) <= memory // 4
        best = np.full((len(queries), k), NOTHING, np.int64)
        product = np.empty(plan.queries * plan.rows, np.float32)
        for part in batches(len(queries), plan.queries):
            some = _Queries(queries[part], centre, best[part], plan)
            for first, end in spans:
                for start in range(first, end, plan.rows):
                    stop = min(start + plan.rows, end)
                    block = self._blocks.get((start, stop)) or _block(rows[start:stop], centre)
                    if keep:
                        self._blocks[start, stop] = block
                    some.search(rows, start, block, product)
        self.seconds += time.perf_counter() - began
        return distances_of(best), best & 0xFFFFFFFF


def lowered(far: Floats, rows: Floats, others: Floats, centre: Floats, at_once: int) -> Floats:
    """The smaller of ``far`` (n,) and the exact distances of rows (n, D) to the nearest other.

    ``centre`` (D,) is near the middle of all of them; ``at_once`` pairs are compared at a time.
    """
    best = far.view(np.int32).astype(np.int64) << ROW_BITS
    some = _Queries(rows, centre, best[:, None], Plan(len(rows), len(others), at_once))
    space = np.empty(len(rows) * len(others), np.float32)
    some.search(StoredRows(others), 0, _block(others, centre), space)
    return distances_of(best)


def _block(rows: Floats, centre: Floats) -> Block:
    dim = len(centre)
    codes = np.empty((len(rows), dim + 2), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # which is refused below
        np.subtract(rows, centre, out=codes[:, :dim])
    norms = lengths(codes[:, :dim]).astype(np.float64)
    reach = float(norms.max())
    refuse_infinite(reach)
    codes[:, dim] = np.square(norms) * (_loss(dim) - 0.5)
    codes[:, dim + 1] = norms * (1 + 2 * _ROUNDOFF)
    return Block(codes, reach)


def _loss(dim: int) -> float:
    """What rounding takes from a product and its half-norms, of q·b and of b².

    The standard model of floating-point error (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., 2002, §3.1): a sum of n products in any order is off by at most n·u·Σ|xᵢyᵢ|
    to first order, here q·b + b²/2. The half-norms are computed in float32, and so are the centred
    vectors; 2 % cover what is of second order.
    """
    return 1.02 * (dim + 16) * _ROUNDOFF


class _Queries:
    """Some queries (Q, D), with the nearest of the rows that they met, ``best`` (Q, k)."""

    def __init__(self, queries: Floats, centre: Floats, best: Whole, plan: Plan) -> None:
        self.queries, self.centre, self.best, self.plan = queries, centre, best, plan
        dim = queries.shape[1]
        self.left = np.empty((len(queries), dim + 2), np.float32)
        near = np.subtract(queries, centre, out=self.left[:, :dim])
        self.squared = np.einsum("ij,ij->i", near, near, dtype=np.float64)
        self.left[:, dim] = 1
        self.left[:, dim + 1] = np.sqrt(self.squared) * _loss(dim)

    def search(self, rows: StoredRows, start: int, block: Block, space: Floats) -> None:
        """Compare with a block of rows from ``start`` on; ``space`` is for the product."""
        count, k = len(block.codes), self.best.shape[1]
        product = space[: len(self.left) * count].reshape(-1, count)
        np.matmul(self.left, block.codes.T, out=product)
        # As long as a query has not met k rows nothing can be ruled out: the nearest first.
        [new] = (self.best[:, -1] == NOTHING).nonzero()
        if len(new):
            who, which = _largest(product, new, min(k, count))
            self._compare(rows, who, which + start)
            product[who, which] = -np.inf
        limit = self._limit()
        [near] = (product.max(1) >= limit).nonzero()
        if not len(near):
            return
        part = product if len(near) == len(product) else product[near]
        who, which = _where(part >= limit[near, None])
        crowded = np.bincount(who, minlength=len(near)) * _EXACT_COST > max(2 * count, 64 * k)
        if crowded.any():
            own = near[crowded]
            met = product[own] == -np.inf
            self._narrow(rows, start, block, own, met)
            who, which = (each[~crowded[who]] for each in (who, which))
        self._compare(rows, near[who], which + start)

    def _limit(self) -> Floats:
        """Values (Q,) below which a product proves that its row is farther than the k-th."""
        kth = distances_of(self.best[:, -1]).astype(np.float64)
        own = 1 - 8 * _ROUNDOFF
        limit = 0.5 * (self.squared * own - kth * (1 + _TREE)) - _TINY
        low = np.nextafter(limit.astype(np.float32), np.float32(-np.inf))
        # What is at -inf was compared, even where nothing was found so far.
        least: Floats = np.maximum(low, np.finfo(np.float32).min)
        return least

    def _narrow(
        self, rows: StoredRows, start: int, block: Block, who: Whole, met: NDArray[np.bool_]
    ) -> None:
        """Compare queries with a block of which float32 rules out little: in float64.

        ``met`` (n, rows) says what each of the queries ``who`` (n,) was compared with before.
        """
        k = self.best.shape[1]
        stop = start + len(block.codes)
        plain = rows[start:stop]
        wide = plain.astype(np.float64) - self.centre
        twice = np.einsum("ij,ij->i", wide, wide)
        repeated: Whole | None = None
        step = max(1, len(self.queries) // 8)
        for some in batches(len(who), step):
            own = who[some]
            asked = self.queries[own].astype(np.float64) - self.centre
            squared = np.einsum("ij,ij->i", asked, asked)
            far = asked @ wide.T
            far *= -2
            far += twice
            far += squared[:, None]
            far[met[some]] = np.inf
            place, which = _largest(-far, np.arange(len(own)), min(k, far.shape[1]))
            seen = far[place, which] < np.inf
            place, which = place[seen], which[seen]
            self._compare(rows, own[place], which + start)
            far[place, which] = np.inf
            reach = np.square(np.sqrt(squared) + block.reach * (1 + 2.0**-10))
            off = 4 * (wide.shape[1] + 8) * _FINER * reach + 2 * _TINY
            kth = distances_of(self.best[own, -1]).astype(np.float64)
            place, which = _where(far <= np.minimum(kth * (1 + _TREE) + off, 1e38)[:, None])
            if len(place) * _EXACT_COST > far.size:
                # Rows that repeat others are equally far, so only the first k can matter.
                if repeated is None:
                    repeated = _repeated(plain, k)
                first = ~np.isin(which, repeated)
                place, which = place[first], which[first]
            self._compare(rows, own[place], which + start)

    def _compare(self, rows: StoredRows, who: Whole, index: Whole) -> None:
        """Compare queries ``who`` (n,), ascending, with rows exactly, and keep the k nearest."""
        for some in batches(len(who), self.plan.compared):
            own, other = who[some], index[some]
            exact = exact_distances(rows.take(other), self.queries[own])
            keys = (exact.view(np.int32).astype(np.int64) << ROW_BITS) | other
            first = np.flatnonzero(np.diff(own, prepend=-1))
            ids, k = own[first], self.best.shape[1]
            if k == 1:
                nearest = np.minimum.reduceat(keys, first)
                self.best[ids, 0] = np.minimum(self.best[ids, 0], nearest)
                continue
            owner = np.concatenate([np.repeat(ids, k), own])
            every = np.concatenate([self.best[ids].ravel(), keys])
            order = np.lexsort((every, owner))
            lead = np.searchsorted(owner[order], ids)
            self.best[ids] = every[order[lead[:, None] + np.arange(k)]]


def _largest(values: NDArray[np.floating], rows: Whole, count: int) -> tuple[Whole, Whole]:
    """Row and column of the ``count`` largest values in each of some rows."""
    part = values if len(rows) == len(values) else values[rows]
    if count == 1:
        return rows, part.argmax(1)
    size = part.shape[1]
    which = part.argpartition(size - count, axis=1)[:, size - count :] if count < size else (
        np.broadcast_to(np.arange(size), part.shape)
    )  # fmt: skip
    return np.repeat(rows, count), which.ravel()


def _where(mask: NDArray[np.bool_]) -> tuple[Whole, Whole]:
    """Row and column of what is true, row by row."""
    who, which = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return who, which


def _repeated(rows: Floats, k: int) -> Whole:
    """Places of the rows (n, D) that equal k or more earlier ones."""
    plain = np.ascontiguousarray(rows)
    kind = plain.view(np.dtype((np.void, plain.itemsize * plain.shape[1]))).ravel()
    inverse = np.unique(kind, return_inverse=True)[1]
    order = inverse.argsort(kind="stable")
    ordered = inverse[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return order[rank >= k]
