"""Exact nearest rows, in bounded memory, with the same bits however the work is cut.

A first stage (:mod:`offnominal.memory.search.bound`) bounds how near each small group of rows can
be. The second, here, computes the distances to every group that those bounds do not rule out, in
float32 and in one fixed order of additions. Only these decide, so neither the size of the
blocks, nor the number of threads, nor the format of the first stage can change the result.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offnominal.memory.search.bound import BlockCache, Bounds, bound, product_dtype
from offnominal.memory.search.cutting import Spans, batches, sample
from offnominal.memory.search.exact import NOTHING, compare, distances_of, rows_of
from offnominal.memory.search.stored import StoredTensors

# Comparing with one row exactly costs about as much as this many rows of a float32 product.
_EXACT_COST = 40
# Rows that a query is compared with exactly in the time that it takes to find the rows' copies.
_REPEATED = 512


@dataclass(frozen=True)
class Plan:
    """How a search is cut into pieces. No choice here changes the result."""

    queries: int  # per pass over the rows
    rows: int  # per matrix product
    blocks: int  # matrix products whose maxima are held at once
    group: int  # consecutive rows of which only the nearest is noted
    compared: int  # rows compared exactly at once
    listed: int  # queries whose candidates are listed at once

    @classmethod
    def within(
        cls, memory: int, n_queries: int, n_rows: int, dim: int, k: int, device: torch.device
    ) -> "Plan":
        """Choose sizes whose workspace stays within ``memory`` bytes, as far as 1 row allows."""
        # On a CPU a block and its products should stay in the caches; a GPU wants large ones.
        cached = device.type == "cpu"
        # Large groups make the first stage cheap, small ones the second, which weighs more in a
        # small bank and for many neighbours.
        group = 2 if k > 100 else 4 if k > 8 else 8 if n_rows <= 2**15 else 16
        queries = max(1, min(n_queries, 1024 if cached else 4096, memory // (64 * k * group)))
        product = min(memory // 16, 2**23 if cached else 2**28)
        rows = min(max(product // (4 * queries), 256), 2**14 if cached else 2**17, n_rows)
        rows = min(rows, max(memory // (40 * dim), 1))
        rows = max(group, rows // group * group)
        # 4 bytes for a maximum, 3 for the mask and a copy of part of it.
        per_block = 7 * queries * rows // group
        blocks = max(1, memory // 2 // max(per_block, 1))
        groups = min(blocks * rows, n_rows + rows) // group
        listed = max(1, min(queries, memory // 4 // (32 * groups + 32 * k * group)))
        compared = min(memory // 8, 2**22 if cached else 2**28) // (8 * dim)
        return cls(queries, rows, blocks, group, max(compared, group), listed)


def find(
    rows: StoredTensors,
    queries: Tensor,
    k: int,
    spans: Spans,
    precision: str,
    memory: int,
    cache: BlockCache,
) -> tuple[Tensor, Tensor]:
    """As :func:`nearest`, within ``memory`` bytes, of which a quarter is for the ``cache``."""
    values, dim = rows.values, queries.shape[1]
    dtype = product_dtype(precision, values.device)
    kept = None
    # Float16 is scaled to the queries, and PyTorch does not count changes of an inference tensor.
    lasting = values.device.type == "cpu" and not values.is_inference() and dtype != torch.float16
    if lasting and spans == [(0, len(rows))] and 2 * dim * len(rows) <= memory // 4:
        kept = cache.of(values, memory // 4)
    left = sum(stop - start for start, stop in spans)
    plan = Plan.within(memory - memory // 4, len(queries), left, dim, k, values.device)
    return nearest(rows, queries, k, spans, dtype, plan, kept)


def nearest(
    rows: StoredTensors,
    queries: Tensor,
    k: int,
    spans: Spans,
    dtype: torch.dtype,
    plan: Plan,
    cache: BlockCache | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` nearest rows of each query.

    Parameters
    ----------
    rows : StoredTensors
        (N, D), N below 2³².
    queries : Tensor
        (Q, D) float32, finite.
    k : int
        At most the number of rows in ``spans``.
    spans : list of (int, int)
        First row and end of each stretch of rows to search, ascending.
    dtype : torch.dtype
        Format of the first stage.
    plan : Plan
        How to cut the work.
    cache : BlockCache, optional
        What earlier searches among the same rows left for this one.

    Returns
    -------
    tuple of Tensor
        Squared Euclidean distances (Q, k) float32, ascending, and rows (Q, k) int64; of equal
        distances the lowest row comes first.
    """
    best = torch.full((len(queries), k), NOTHING, dtype=torch.int64, device=queries.device)
    blocks = [
        (start, min(start + plan.rows, end))
        for first, end in spans
        for start in range(first, end, plan.rows)
    ]
    centre = None if cache is None else cache.centre
    if centre is None:
        centre = rows.take(torch.from_numpy(sample(len(rows), 1024)).to(queries.device)).mean(0)
        if cache is not None:
            cache.centre = centre
    for part in batches(len(queries), plan.queries):
        for some in batches(len(blocks), plan.blocks):
            span = _Span(rows, blocks[some], centre, plan)
            span.search(queries[part], best[part], dtype, cache)
    return distances_of(best), rows_of(best)


class _Span:
    """Some blocks of rows that are bounded together."""

    def __init__(
        self, rows: StoredTensors, blocks: list[tuple[int, int]], centre: Tensor, plan: Plan
    ) -> None:
        self.rows, self.blocks, self.centre, self.plan = rows, blocks, centre, plan
        device = rows.values.device
        groups = math.ceil(max(stop - start for start, stop in blocks) / plan.group)
        bounds = torch.tensor(blocks, device=device)
        steps = torch.arange(groups, device=device) * plan.group
        self.first = (bounds[:, :1] + steps).flatten()
        self.stop = bounds[:, 1:].expand(-1, groups).flatten()
        self.steps = torch.arange(plan.group, device=device)
        self.size = sum(stop - start for start, stop in blocks)

    def search(
        self,
        queries: Tensor,
        best: Tensor,
        dtype: torch.dtype,
        cache: BlockCache | None = None,
        final: bool = False,
    ) -> None:
        """Compare every row of these blocks with the queries; ``best`` (Q, k) changes in place.

        Queries with so many candidates that listing them one by one would take longer than
        narrowing them down are searched again, the ``final`` time: in float32, row by row, and
        without rows that repeat others.
        """
        k = best.shape[1]
        before = best.clone()
        group = self.plan.group
        bounds = bound(self.rows, queries, self.blocks, self.centre, dtype, group, cache)
        pairs, again = 0, torch.zeros(len(queries), dtype=torch.bool, device=best.device)
        everyone = torch.arange(len(queries), device=best.device)
        for ids in torch.split(everyone, self.plan.listed):
            who, which = self._nearest_groups(bounds.maxima, ids, k)
            self._compare(queries, best, ids, who, which)
            who, which = self._candidates(bounds, ids, best)
            if final and len(who) * self.plan.group > _REPEATED * len(ids):
                # To look for copies takes a while, and few banks have any.
                bounds.maxima.flatten(1)[:, self._repeated(k)] = -math.inf
                who, which = self._candidates(bounds, ids, best)
            if not final:
                counts = who.bincount(minlength=len(ids)) * self.plan.group
                crowded = counts * _EXACT_COST > max(self.size, 1024 * self.plan.group)
                again[ids] = crowded
                pairs += int(counts[crowded].sum())
                who, which = who[~crowded[who]], which[~crowded[who]]
            self._compare(queries, best, ids, who, which)
        ids = again.nonzero().flatten()
        if pairs <= self.size * (1.5 + len(ids) / _EXACT_COST):
            # Narrowing costs a pass over the rows and a share of each query: not worth it.
            for part in torch.split(ids, self.plan.listed):
                self._compare(queries, best, part, *self._candidates(bounds, part, best))
            return
        del bounds
        narrowed = before[ids]
        plan = replace(self.plan, group=1)
        for batch in batches(len(self.blocks), max(1, plan.blocks // self.plan.group)):
            span = _Span(self.rows, self.blocks[batch], self.centre, plan)
            span.search(queries[ids], narrowed, torch.float32, final=True)
        best[ids] = narrowed

    def _nearest_groups(self, maxima: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """List the ``k`` most promising groups of each query, and cross them off."""
        part = maxima[int(ids[0]) : int(ids[-1]) + 1].flatten(1)
        which = part.topk(min(k, part.shape[1])).indices
        part.scatter_(1, which, -math.inf)
        who = torch.arange(len(ids), device=ids.device)[:, None].expand_as(which)
        return who.flatten(), which.flatten()

    def _candidates(self, bounds: Bounds, ids: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        """List the groups that may hold a row as near as the k-th best so far."""
        kth = distances_of(best[ids, -1])
        near = bounds.maxima[ids] >= bounds.threshold(kth, ids)[:, :, None]
        who, which = near.flatten(1).nonzero().unbind(1)
        return who, which

    def _compare(
        self, queries: Tensor, best: Tensor, ids: Tensor, who: Tensor, which: Tensor
    ) -> None:
        """Compare queries ``ids[who]`` with groups ``which`` exactly, and keep the k nearest."""
        for part in batches(len(who), 64 * max(1, self.plan.compared // self.plan.group)):
            index = self.first[which[part], None] + self.steps
            index.masked_fill_(index >= self.stop[which[part], None], -1)
            compare(self.rows, queries, best, ids[who[part]], index, self.plan.compared)

    def _repeated(self, k: int) -> Tensor:
        """Mark the groups whose every row equals ``k`` or more earlier rows of its block.

        Equal rows are equally far from any query, so only the first ``k`` of them can matter.
        Without this a bank that repeats itself would be compared row by row.
        """
        repeated = torch.ones(len(self.first), dtype=torch.bool, device=self.first.device)
        per_block = len(self.first) // len(self.blocks)
        for number, (start, stop) in enumerate(self.blocks):
            kind = torch.unique(self.rows[start:stop], dim=0, return_inverse=True)[1]
            kind, order = kind.sort(stable=True)
            rank = torch.arange(len(kind), device=kind.device) - torch.searchsorted(kind, kind)
            repeated[number * per_block + order[rank < k] // self.plan.group] = False
        return repeated
