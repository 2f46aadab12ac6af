"""The rows of a further image that a coreset takes in."""

import torch
from torch import Tensor

from offnominal.memory import MemoryBank
from offnominal.memory.search import exact_distances

__all__ = ["farthest_rows"]

_AHEAD = 64  # rows brought up to date at once
_CENTRES = 64  # selected rows that they are compared with at once


def farthest_rows(rows: Tensor, bank: MemoryBank, count: int) -> Tensor:
    """Select rows greedily, each the farthest from the bank and from those selected before it.

    It goes on where greedy k-centre selection (Gonzalez, 1985) stopped. A row's distance to the
    nearest row selected only falls, so a row is brought up to date when it comes to the front, and
    most rows never are.

    Parameters
    ----------
    rows : Tensor of shape (n, dim), float32
    bank : MemoryBank
        With at least one row.
    count : int
        How many, 1 to n.

    Returns
    -------
    Tensor of shape (count,), int64
        Numbers of the rows, in the order of selection; of rows equally far, the lowest first.
    """
    near = bank.search(rows, 1)[0][:, 0].clone()
    taken = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    chosen: list[int] = []
    while len(chosen) < count:
        first = int((near == near.max()).nonzero()[0])
        if int(taken[first]) == len(chosen):
            chosen.append(first)
            near[first] = -1  # never again
            taken[first] = count
            continue
        stale = near.masked_fill(taken >= len(chosen), -1)
        front = stale.topk(min(_AHEAD, len(rows))).indices
        front = front[stale[front] >= 0]
        for start in range(int(taken[front].min()), len(chosen), _CENTRES):
            centres = rows[chosen[start : start + _CENTRES]]
            pairs = rows[front][:, None].repeat(1, len(centres), 1)
            near[front] = torch.minimum(near[front], exact_distances(pairs, centres).amin(1))
        taken[front] = len(chosen)
    return torch.tensor(chosen, device=rows.device)
