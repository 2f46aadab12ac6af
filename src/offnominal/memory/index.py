"""An index of a bank's rows, by FAISS: which rows are probably the nearest, without a look at all.

It only names candidates. The bank compares them exactly with the rows that it stores, so a
distance is either the true one or, where the index missed the nearest row, a larger one. How often
it misses is what the recall says.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offnominal.errors import ModelFileError
from offnominal.memory.index_choice import Kind, load_faiss

__all__ = ["FaissIndex", "Spans", "rows_for_faiss"]

Spans = list[tuple[int, int]]

# Beyond a quarter of the lists, or so many neighbours at hand, exact search is as quick.
_LIST_SHARE = 4
_MOST_BREADTH = 1024
# Rows that a step of a graph search compares: about half of the 32 links are seen already.
_HOP = 16
# Picking one row out of the bank costs about as much as reading so many in a stretch.
_PICKING = 8


class FaissIndex:
    """Names probable nearest rows; kinds and settings are in :mod:`offnominal.memory.index_build`.

    Parameters
    ----------
    kind : {"ivf", "hnsw", "ivfpq", "disk"}
    faiss_index : faiss.Index
        Filled with the rows of the bank, in their order.
    neighbours : int
        How many nearest rows the recall counts.
    target : float
        Recall that was asked for.

    Attributes
    ----------
    effort : int
        Lists that are looked through (``nprobe``), or breadth of the search (``efSearch``).
    named : int
        Candidates for each query.
    recall : float
        Share of the true nearest rows that these settings found on held-back queries, once they
        are tuned.
    queries : int
        How many held-back queries that was measured with.
    built : int
        Rows when the index was trained.
    numbers : int
        One more than the highest number of an entry.
    rows : int32 array of shape (n,) or None
        Row of the bank that each entry of the index is, -1 where it was removed; None: entries
        have the numbers of the rows.
    lists : (Path, int, str) or None
        File that the lists are read from, its length in bytes and its SHA-256; None: they are in
        memory.
    """

    def __init__(self, kind: Kind, faiss_index: Any, neighbours: int, target: float) -> None:
        self.kind = kind
        self.faiss = faiss_index
        self.neighbours = neighbours
        self.target = target
        self.effort = 1
        self.named = neighbours
        self.recall = 1.0
        self.queries = 0
        self.built = self.numbers = int(faiss_index.ntotal)
        self.rows: npt.NDArray[np.int32] | None = None
        self.lists: tuple[Path, int, str] | None = None

    def __len__(self) -> int:
        """How many rows of the bank, from the first, the index knows."""
        return int(self.faiss.ntotal if self.rows is None else (self.rows >= 0).sum())

    @property
    def dim(self) -> int:
        """Length of a row."""
        return int(self.faiss.d)

    @property
    def setting(self) -> str:
        """Type and settings in FAISS' own names, for a report."""
        what = "efSearch" if self.kind == "hnsw" else "nprobe"
        lists = "" if self.kind == "hnsw" else f" of {self.faiss.nlist} lists"
        return f"{what} {self.effort}{lists}, {self.named} candidates"

    @property
    def on_disk(self) -> bool:
        """Whether the lists are read from a file, so that nothing can be added."""
        return self.lists is not None

    def candidates(self, queries: Tensor, k: int, skip_rows: Spans | None) -> Tensor:
        """Name rows for each query; see :class:`offnominal.memory.candidates.NearestIndex`.

        Parameters
        ----------
        queries : Tensor
            (Q, D) float32.
        k : int
            How many rows are wanted of each query. The recall is that of ``neighbours`` or fewer.
        skip_rows : list of (int, int), optional
            First row and end of stretches that are not wanted.

        Returns
        -------
        Tensor
            (Q, k') int64 row numbers on the CPU, -1 where there is none.

        Raises
        ------
        ModelFileError
            If the index names a row that does not exist, which a damaged one may.
        """
        return self.ask(queries, self.named * -(-k // self.neighbours), self.effort, skip_rows)

    def ask(self, queries: Tensor, count: int, effort: int, skip_rows: Spans | None) -> Tensor:
        """As :meth:`candidates`, with settings of the caller's."""
        faiss = load_faiss()
        selector = self._selector(faiss, skip_rows or [])
        if self.kind == "hnsw":
            settings = faiss.SearchParametersHNSW(efSearch=max(effort, count), sel=selector)
        else:
            settings = faiss.SearchParametersIVF(nprobe=effort, sel=selector)
        count = min(count, int(self.faiss.ntotal))
        found = self.faiss.search(rows_for_faiss(queries), count, params=settings)[1]
        if found.size and not -1 <= found.min() <= found.max() < self.numbers:
            raise ModelFileError(
                f"the index of the bank is damaged: it names entry {found.max()} of "
                f"{self.numbers}; fit anew"
            )
        if self.rows is not None:
            found = np.where(found < 0, -1, self.rows[found].astype(np.int64))
        return torch.from_numpy(found)

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, D) that follow those it knows.

        Lists on disk are left as they are: the bank searches later rows exactly.
        """
        if not self.on_disk:
            first = len(self)
            self.add_as(rows, np.arange(first, first + len(rows)))

    def add_as(self, rows: Tensor, numbers: npt.NDArray[np.int64]) -> None:
        """Take in rows (n, D) whose numbers in the bank are ``numbers`` (n,)."""
        faiss = load_faiss()
        if self.kind == "hnsw":
            # Threads would link the graph in an order that differs from run to run.
            faiss.omp_set_num_threads(1)
            if self.rows is None:
                self.rows = np.empty(0, np.int32)
        if self.rows is None:
            self.faiss.add_with_ids(rows_for_faiss(rows), numbers)
            self.numbers = max(self.numbers, int(numbers[-1]) + 1)
        else:
            self.faiss.add(rows_for_faiss(rows))
            self.rows = np.append(self.rows, numbers.astype(np.int32))
            self.numbers = len(self.rows)

    def forget(self, kept: Tensor) -> None:
        """Follow the bank where it removes rows: entries stay, and are passed over from now on.

        Parameters
        ----------
        kept : Tensor
            (N,) bool: which of the bank's rows remain, of all before the removal.
        """
        self.renumber(torch.where(kept, kept.cumsum(0) - 1, -1))

    def renumber(self, places: Tensor) -> None:
        """Follow the bank where its rows move or go.

        Parameters
        ----------
        places : Tensor
            (N,) int64: where each of the bank's rows is now, of all before the change; -1 where it
            is gone, whose entry stays and is passed over from now on.
        """
        numbers = places.cpu().numpy().astype(np.int32)
        if self.rows is None:
            self.rows = numbers[: self.numbers]
        else:
            self.rows = np.where(self.rows < 0, -1, numbers[self.rows])

    def outgrown(self, rows: int) -> bool:
        """Whether the bank, now of so many rows, has changed by half since the training."""
        gone = int(self.faiss.ntotal) - len(self)
        return abs(rows + gone - self.built) + gone > self.built / 2

    def efforts(self) -> Iterator[int]:
        """Settings of ``effort`` that are worth a try, from quick to thorough."""
        most = _MOST_BREADTH if self.kind == "hnsw" else max(1, self.faiss.nlist // _LIST_SHARE)
        effort = 8 if self.kind == "hnsw" else 1
        while effort <= most:
            yield effort
            # 1, 2, 3, 4, 6, 8, 12, ...: steps of about the square root of 2.
            power = effort & -effort
            effort += power // 2 if effort == power and effort > 1 else power

    def cost(self, effort: int, named: int) -> float:
        """Bytes read for a query, about: what settings are compared by, the same on any machine."""
        picking = _PICKING * named * 4 * self.dim
        if self.kind == "hnsw":
            return effort * _HOP * _PICKING * self.dim + picking
        scanned = float(effort * self.faiss.ntotal / self.faiss.nlist * self.faiss.code_size)
        return scanned + picking

    def _selector(self, faiss: Any, skip_rows: Spans) -> Any:
        """What FAISS asks whether an entry counts; None where all do."""
        if not skip_rows and (self.rows is None or (self.rows >= 0).all()):
            return None
        allowed = np.ones(self.numbers, np.bool_)
        for start, stop in skip_rows:
            allowed[start:stop] = False
        if self.rows is not None:
            allowed = allowed[self.rows] & (self.rows >= 0)
        return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def rows_for_faiss(rows: Tensor) -> npt.NDArray[np.float32]:
    """Rows (n, D) as the float32 array that FAISS reads, without a copy where none is needed."""
    found: npt.NDArray[np.float32] = rows.detach().float().cpu().contiguous().numpy()
    return found
