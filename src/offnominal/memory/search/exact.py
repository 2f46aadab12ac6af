"""The last stage of the search: exact distances, and keeping the nearest.

Only what is computed here decides. A distance and the row it belongs to are one integer: the
bits of a non-negative float32 are ordered as its value is, so a smaller key is a smaller distance
or, at a tie, a lower row.
"""

import torch
from torch import Tensor

from offnominal.memory.search.cutting import batches
from offnominal.memory.search.stored import StoredTensors

_ROW_BITS = 32
NOTHING = (0x7F800000 << _ROW_BITS) | 0xFFFFFFFF
"""Key of no row, infinitely far."""


def distances_of(keys: Tensor) -> Tensor:
    """Squared distances, float32, of keys (int64)."""
    return (keys >> _ROW_BITS).to(torch.int32).view(torch.float32)


def rows_of(keys: Tensor) -> Tensor:
    """Row numbers of keys, int64."""
    return keys & 0xFFFFFFFF


def exact_distances(rows: Tensor, queries: Tensor) -> Tensor:
    """Squared distances, the same bits for the same pair wherever it is computed.

    The squares are added in a fixed tree of element-wise additions, each correctly rounded; a
    library's sum may change its order with the shape of its input or the number of threads.

    Parameters
    ----------
    rows : Tensor
        (..., D) float32. Overwritten.
    queries : Tensor
        (..., D) float32, of a shape that broadcasts to that of ``rows``.

    Returns
    -------
    Tensor
        (...) float32, at least 0.
    """
    squares = rows.sub_(queries)
    squares.mul_(squares)
    width = squares.shape[-1]
    while width > 1:
        half = width // 2
        squares.narrow(-1, 0, half).add_(squares.narrow(-1, width - half, half))
        width -= half
    return squares[..., 0]


def compare(
    rows: StoredTensors, queries: Tensor, best: Tensor, who: Tensor, index: Tensor, at_once: int
) -> None:
    """Compare queries with groups of rows exactly, and keep the nearest.

    Parameters
    ----------
    rows : StoredTensors
        (N, D).
    queries : Tensor
        (Q, D) float32.
    best : Tensor
        (Q, k) int64 keys, ascending; changed in place. A row must not be compared twice.
    who : Tensor
        (n,) int64: which query.
    index : Tensor
        (n, G) int64: which rows; those below 0 are none.
    at_once : int
        Rows compared at once.
    """
    k, group = best.shape[1], index.shape[1]
    pairs = max(1, at_once // group)
    for part in batches(len(who), 64 * pairs):
        keys = [
            _keys(rows, queries[who[p]], index[p], k) for p in batches(part.stop, pairs, part.start)
        ]
        found = torch.cat(keys)
        if k == 1:
            best[:, 0].scatter_reduce_(0, who[part], found[:, 0], "amin")
            continue
        concerned = torch.zeros(len(best), dtype=torch.bool, device=best.device)
        concerned[who[part]] = True
        ids = concerned.nonzero()[:, 0]
        place = (concerned.cumsum(0) - 1)[who[part]]
        known = torch.arange(len(ids), device=ids.device)[:, None].expand(-1, k)
        best[ids] = _smallest(
            torch.cat([best[ids].flatten(), found.flatten()]),
            torch.cat([known.flatten(), place[:, None].expand_as(found).flatten()]),
            k,
        )


def _keys(rows: StoredTensors, queries: Tensor, index: Tensor, k: int) -> Tensor:
    """Keys of the rows of one group per query, at most the k smallest of each."""
    picked = rows.take(index.clamp(min=0).flatten()).view(*index.shape, -1)
    bits = exact_distances(picked, queries[:, None]).contiguous().view(torch.int32)
    keys = bits.to(torch.int64) << _ROW_BITS | index
    keys.masked_fill_(index < 0, NOTHING)
    if k == 1:
        return keys.amin(1, keepdim=True)
    return keys.topk(k, largest=False).values if k < index.shape[1] else keys


def _smallest(keys: Tensor, owner: Tensor, k: int) -> Tensor:
    """Of each owner 0, 1, … (each with at least ``k`` keys) the ``k`` smallest keys, ascending."""
    keys, order = keys.sort()
    owner, rank = owner[order].sort(stable=True)
    first = torch.searchsorted(owner, torch.arange(int(owner[-1]) + 1, device=owner.device))
    return keys[rank][first[:, None] + torch.arange(k, device=owner.device)]
