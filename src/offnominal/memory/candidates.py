"""Exact comparison with rows that an approximate index names."""

from typing import Protocol

import torch
from torch import Tensor

from offnominal.memory.search import exact_distances
from offnominal.memory.storage import Stored


class NearestIndex(Protocol):
    """What a search may ask first: rows that are probably the nearest."""

    def __len__(self) -> int:
        """How many rows, from the first, the index knows; the others are searched exactly."""

    def candidates(
        self, queries: Tensor, k: int, skip_rows: list[tuple[int, int]] | None
    ) -> Tensor:
        """Name rows for each query.

        Parameters
        ----------
        queries : Tensor
            (Q, D) float32.
        k : int
            How many rows are wanted of each query; more may be named.
        skip_rows : list of (int, int), optional
            First row and end of stretches that are not wanted.

        Returns
        -------
        Tensor
            (Q, k') int64 row numbers, -1 where there is none; in any order.
        """


def nearest_among(
    rows: Tensor | Stored, queries: Tensor, k: int, named: Tensor, memory: int
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` nearest of the rows named for each query.

    Parameters
    ----------
    rows : Tensor or Stored
        (N, D) float32.
    queries : Tensor
        (Q, D) float32.
    k : int
    named : Tensor
        (Q, k') int64; what is below 0 is no row. A row may be named twice.
    memory : int
        Bytes that may be used at once, as far as one query allows.

    Returns
    -------
    tuple of Tensor
        Squared distances (Q, k) float32, ascending, and rows (Q, k) int64; of equal distances
        the lowest row first; infinity and -1 where fewer than ``k`` different rows were named.
    """
    count = named.shape[1]
    if count < k:
        named = torch.nn.functional.pad(named, (0, k - count), value=-1)
    named = named.sort(1).values
    named[:, 1:].masked_fill_(named[:, 1:] == named[:, :-1], -1)
    named = named.sort(1).values
    distances = queries.new_full(named.shape, torch.inf)
    step = max(1, memory // (12 * queries.shape[1] * named.shape[1]))
    for first in range(0, len(queries), step):
        part = slice(first, first + step)
        picked = rows.index_select(0, named[part].clamp(min=0).flatten())
        picked = picked.view(*named[part].shape, -1)
        distances[part] = exact_distances(picked, queries[part, None])
    distances.masked_fill_(named < 0, torch.inf)
    # Rows ascend already, so a stable order leaves the lowest of equals first.
    order = distances.sort(stable=True, dim=1).indices[:, :k]
    return distances.gather(1, order), named.gather(1, order)
