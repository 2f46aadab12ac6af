"""Tuning an index until its recall is what was asked for.

**Recall.** Some references, at most an eighth, are held back at first. Their patches are the
queries, as a patch of a new image would be, and the truth is what the bank's exact search finds in
the other references. Only then are they added. (Searching a patch that is in the index already,
and passing over its own image, would flatter a graph, whose links lead from that patch straight to
its neighbours.) A candidate counts as found if it is as near as the true one, so that of rows that
repeat each other any will do. Settings are chosen by one half of the queries and must hold for the
other; the recall that is reported is that of the worse half.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from offnominal.memory.bank import MemoryBank
from offnominal.memory.index import FaissIndex
from offnominal.memory.provenance import runs
from offnominal.memory.search import exact_distances

__all__ = ["HeldBack", "draw_references", "exact_only", "hold_back", "tune"]

Progress = Callable[[str, int], None]

_QUERIES = 2048
_MOST_OWNERS = 64
_HELD_SHARE = 8  # at most an eighth of the references: a graph finds less as it grows
# Candidates per neighbour that are tried. Codes of a byte per number hardly change the order;
# those of product quantisation do.
_NAMED = (2, 4, 8, 16, 32)
_NAMED_PQ = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class HeldBack:
    """Queries that an index does not know, with what exact search finds for them."""

    queries: Tensor  # (n, D) float32
    reach: Tensor  # (n,) float32: squared distance of the last of the true nearest rows


@contextmanager
def exact_only(*banks: MemoryBank) -> Iterator[None]:
    """Search exactly in this block, whatever index the banks have."""
    indexes = [bank.index for bank in banks]
    for bank in banks:
        bank.index = None
    try:
        yield
    finally:
        for bank, index in zip(banks, indexes, strict=True):
            bank.index = index


def draw_references(bank: MemoryBank, draw: torch.Generator) -> Tensor:
    """Mark the rows of references to hold back: enough for some 2,048 queries, if there are.

    Parameters
    ----------
    bank : MemoryBank
    draw : torch.Generator

    Returns
    -------
    Tensor
        (N,) bool: the rows of at most an eighth of the owners, and at least of one.
    """
    owners, rows = torch.unique(bank.owner.cpu(), return_counts=True)
    most = min(_MOST_OWNERS, max(1, len(owners) // _HELD_SHARE))
    order = torch.randperm(len(owners), generator=draw)[:most]
    # From several references each, so that one that is easy does not speak for all.
    share = rows[order].clamp(max=max(128, -(-_QUERIES // most)))
    enough = int((share.cumsum(0) < _QUERIES).sum()) + 1
    return torch.isin(bank.owner, owners[order[:enough]].to(bank.owner))


def hold_back(
    bank: MemoryBank, away: Tensor, known: Tensor, neighbours: int, draw: torch.Generator
) -> HeldBack:
    """Draw queries from some rows of the bank, and find their true nearest rows among others.

    Parameters
    ----------
    bank : MemoryBank
    away, known : Tensor
        (N,) bool: rows to draw from, and rows to search.
    neighbours : int
    draw : torch.Generator
    """
    # Test images come upright, as the first view of a reference does.
    upright = away & (bank.view == 0)
    rows = (upright if upright.any() else away).nonzero()[:, 0]
    order = torch.randperm(len(rows), generator=draw)[:_QUERIES]
    queries = bank.take(rows[order.to(rows.device)])
    with torch.autocast(queries.device.type, enabled=False):
        squared = bank._search_all(queries, neighbours, runs(known))[0]
    return HeldBack(queries, squared[:, -1])


def tune(
    bank: MemoryBank,
    index: FaissIndex,
    held: HeldBack,
    progress: Progress | None,
    least_effort: int = 0,
    least_named: int = 0,
) -> float | None:
    """Choose the cheapest settings with which both halves of the queries reach the target.

    Returns None, or the highest recall there was if it is below the target: then the settings are
    as before.
    """
    counts = [n * index.neighbours for n in (_NAMED_PQ if index.kind == "ivfpq" else _NAMED)]
    counts = [count for count in counts if count >= least_named]
    best, reached, chosen = math.inf, 0.0, (0, 0, 0.0)
    efforts = (effort for effort in index.efforts() if effort >= least_effort)
    for done, effort in enumerate(efforts, start=1):
        if index.cost(effort, counts[0]) >= best:
            break
        # A graph search of some breadth has no more candidates than that.
        most = min(counts[-1], effort) if index.kind == "hnsw" else counts[-1]
        worse = _recall(bank, index, held, effort, most)
        if progress:
            progress("recall", done)
        for count in counts:
            if count > len(worse):
                break
            recall = float(worse[count - 1])
            reached = max(reached, recall)
            if recall >= index.target:
                if index.cost(effort, count) < best:
                    best, chosen = index.cost(effort, count), (effort, count, recall)
                break
    index.queries += len(held.queries)
    if best == math.inf:
        return reached
    index.effort, index.named, recall = chosen
    # Of several measurements, as a bank grows, the lowest is what is promised.
    index.recall = min(index.recall, recall)
    return None


def _recall(bank: MemoryBank, index: FaissIndex, held: HeldBack, effort: int, most: int) -> Tensor:
    """Recall of the worse half of the queries, among the first 1, 2, ..., ``most`` candidates."""
    named = index.ask(held.queries, most, effort, None)
    near = _squared(bank, held.queries, named) <= held.reach[:, None]
    found = near.cumsum(1).clamp(max=index.neighbours).double() / index.neighbours
    return torch.minimum(found[::2].mean(0), found[1::2].mean(0))


def _squared(bank: MemoryBank, queries: Tensor, named: Tensor) -> Tensor:
    """Squared distances (Q, k') to the rows that an index named, with the bits of the bank's."""
    named = named.to(queries.device)
    rows, queries = bank._stored(), bank._as_stored(queries)
    squared = torch.empty(named.shape, device=queries.device)
    step = max(1, bank.memory // (12 * bank.dim * named.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        picked = rows.index_select(0, named[part].clamp(min=0).flatten())
        picked = picked.view(*named[part].shape, -1)
        squared[part] = exact_distances(picked, queries[part, None])
    return squared.masked_fill_(named < 0, torch.inf)
