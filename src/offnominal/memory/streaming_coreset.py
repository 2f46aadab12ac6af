"""Coreset of rows that arrive in parts and are never all in memory: merge and reduce."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from offnominal.errors import OptionError
from offnominal.memory.bank import MemoryBank
from offnominal.memory.coreset import select_coreset

_SEARCH_BYTES = 64 * 2**20


class StreamedRows(NamedTuple):
    """What a stream is reduced to.

    Attributes
    ----------
    rows : Tensor
        (count, dim) float32, in the order of selection.
    indices : Tensor
        (count,) int64: numbers of the rows, counted over all that were added.
    owners : Tensor
        (count,) int32: numbers of the images they came from.
    """

    rows: Tensor
    indices: Tensor
    owners: Tensor


class StreamingCoreset:
    """Greedy k-centre over a stream, in memory that depends on ``count`` and not on the stream.

    Rows are collected up to twice ``count``, then the greedy selection keeps ``count`` of them,
    and its covering radius is noted. From then on a row that lies within that radius of one that
    is held is dropped at once; the others are merged in until the next reduction. At most
    ``3 * count`` rows are held at once.

    The threshold that grows with the stream is that of Charikar et al. (1997). It grows as far
    as the data ask and is not doubled, which in many dimensions would be far too coarse, so
    their factor of 8 is not guaranteed.

    Parameters
    ----------
    dim : int
        Length of a row.
    count : int
        Rows to keep in the end.
    seed : int
        As in :func:`select_coreset`.
    project : int or None
        As in :func:`select_coreset`.

    Attributes
    ----------
    added : int
        Rows added so far.

    Raises
    ------
    OptionError
        If an option is out of its range.
    """

    def __init__(self, dim: int, count: int, *, seed: int = 0, project: int | None = None) -> None:
        if count < 1:
            raise OptionError(f"count: cannot select {count} rows; give 1 or more")
        self.count, self.seed, self.project = count, seed, project
        self.added = 0
        self._bank = _small_bank(dim)
        self._indices = torch.empty(0, dtype=torch.int64)
        # Squared distance within which a row counts as covered; none does before a reduction.
        self._covered = -1.0

    def __len__(self) -> int:
        """Rows held at present."""
        return len(self._bank)

    def add(self, rows: Tensor, owner: int = -1) -> None:
        """Take rows in.

        Parameters
        ----------
        rows : Tensor
            (n, dim), any float dtype, any device; kept as float32 on the CPU.
        owner : int
            Number of the image they come from.

        Raises
        ------
        OptionError
            If the shape is another, or a value is not finite.
        """
        rows = rows.detach()
        for first in range(0, len(rows), self.count):
            part = rows[first : first + self.count]
            numbers = torch.arange(self.added, self.added + len(part))
            fresh = part.to(self._bank.rows)
            if self._covered >= 0:
                outside = self._bank.search(fresh)[0][:, 0] > self._covered
                fresh, numbers = fresh[outside], numbers[outside]
            self._bank.add(fresh, owner)
            self._indices = torch.cat([self._indices, numbers])
            self.added += len(part)
            if len(self) > 2 * self.count:
                self._reduce()

    def finish(self, progress: Callable[[str, int], None] | None = None) -> StreamedRows:
        """Select ``count`` rows of those held. More can be added afterwards.

        Parameters
        ----------
        progress : callable, optional
            As in :func:`select_coreset`.

        Raises
        ------
        OptionError
            If fewer than ``count`` rows were added.
        """
        if len(self) < self.count:
            raise OptionError(
                f"count: cannot select {self.count} of {self.added} rows; "
                "add more images or keep fewer rows"
            )
        chosen = self._select(progress)
        return StreamedRows(
            self._bank.rows[chosen], self._indices[chosen], self._bank.owner[chosen]
        )

    def _reduce(self) -> None:
        chosen = self._select()
        dropped = torch.ones(len(self), dtype=torch.bool)
        dropped[chosen] = False
        gone = self._bank.rows[dropped]
        bank = _small_bank(self._bank.dim)
        bank.rows, bank.owner = self._bank.rows[chosen], self._bank.owner[chosen]
        self._bank, self._indices = bank, self._indices[chosen]
        self._covered = max(self._covered, float(bank.search(gone)[0].max()))

    def _select(self, progress: Callable[[str, int], None] | None = None) -> Tensor:
        return select_coreset(
            self._bank.rows,
            self.count,
            seed=self.seed,
            # The first row of a reduction stays first, so that only one is ever drawn.
            start=None if self._covered < 0 else 0,
            project=self.project,
            progress=progress,
        )


def _small_bank(dim: int) -> MemoryBank:
    # For short formats the CPU's library keeps code for every shape of a product, and here the
    # shape changes with every image.
    return MemoryBank(dim, memory=_SEARCH_BYTES, precision="fp32")
