"""A bank searched by an inverted file of FAISS: nearly exact, for millions of rows of one texture.

Rows are sorted into cells around centroids (k-means), and a query looks into the nearest few cells
only (Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", 2011, section 4).
How many is settled on queries that are held back, so that the true nearest row is found as often
as asked for. What the index proposes by 8-bit codes is compared anew with the rows as they are
stored, so a distance is never wrong: it is that of a row, now and then of the second nearest.

The index lies here and not beside the detectors, which search through a bank and know nothing of
how. FAISS is imported on first use. A model file holds centroids and each row's cell as plain
arrays, from which the index is made again: what FAISS writes itself is never read.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.extras import needs
from offnominal.memory.bank import MemoryBank
from offnominal.memory.search.cutting import batches, sample
from offnominal.memory.storage import as_stored, check_features

__all__ = ["IVFBank", "parse_search"]

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]

_DEFAULT = 0.99
_SPEC = re.compile(r"ivf(?:,recall=(0?\.\d+|1(?:\.0*)?))?")
_LEAST = 10_000  # rows below which an exact search takes no longer
_PER_CENTROID = 64  # rows that k-means sees for each centroid
_HELD_BACK = 1000  # queries: half to tune by, half to tell by
_CANDIDATES = 32  # that are compared with stored rows, for each neighbour asked for
_BLOCK = 2**26  # bytes of rows that are gathered at once


def parse_search(search: str) -> float | None:
    """The recall that ``ivf`` or ``ivf,recall=0.99`` asks for; None for ``exact``.

    Raises
    ------
    OptionError
        If it is neither.
    """
    if search == "exact":
        return None
    found = _SPEC.fullmatch(search)
    if found is None or (recall := float(found[1] or _DEFAULT)) < 0.5:
        raise OptionError(
            f"--search {search}: give exact, or ivf,recall=0.99 with a recall from 0.5 to 1"
        )
    return recall


class IVFBank(MemoryBank):
    """A memory bank that searches exactly until :meth:`build`, and by an inverted file after it.

    ``recall`` is the share of queries, on [0.5, 1], whose true nearest row is to be found; for the
    others see :class:`MemoryBank`.
    """

    def __init__(
        self,
        recall: float,
        memory: int = 512 * 2**20,
        storage: Literal["fp32", "fp16", "int8"] = "fp32",
    ) -> None:
        super().__init__(memory=memory, storage=storage)
        self.recall = recall
        self.probes = 0  # cells that a query looks into; 0: rows are searched exactly
        self.centroids = np.empty((0, 0), np.float32)
        self.cell = np.empty(0, np.int32)  # of each row, as far as they were assigned
        self._index: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes an index of its own."""
        return {**super().__getstate__(), "_index": None}

    def build(self) -> dict[str, Any]:
        """Sort all rows into cells, and settle how many cells a query looks into.

        Returns
        -------
        dict
            ``cells``, 0 with fewer than 10,000 rows, which are searched exactly; ``probes``; and of
            ``queries`` that nothing was settled by: ``recall``, ``change`` and ``most``, the share
            that distances came out too long, on average and at most.

        Raises
        ------
        MissingExtraError
            Without FAISS.
        """
        faiss = needs("faiss", "scale", f"--search ivf,recall={self.recall:g}")
        rows = len(self)
        report = {"cells": 0, "probes": 0, "queries": 0, "recall": 1.0, "change": 0.0, "most": 0.0}
        if rows < _LEAST:
            return report
        cells = max(1, min(int(4 * rows**0.5), rows // _PER_CENTROID))
        seen = self.take(sample(rows, _PER_CENTROID * cells))
        kmeans = faiss.Kmeans(self.dim, cells, niter=10, seed=0, min_points_per_centroid=1)
        kmeans.train(seen)
        self.centroids = np.array(kmeans.centroids, np.float32).reshape(cells, self.dim)
        self.cell, self._index = np.empty(0, np.int32), None
        self._ready()
        asked = sample(rows, _HELD_BACK)
        truth = self._nearest_others(asked)

        def longer(some: slice, probes: int) -> Floats:
            """By how much, as a share, distances come out longer than they are."""
            found, true = self._nearest_others(asked[some], probes), truth[some]
            more = np.sqrt(found) / np.maximum(np.sqrt(true), np.float32(1e-12)) - 1
            return np.where(found <= true * np.float32(1 + 1e-5), np.float32(0), more)

        tuned, told = slice(0, None, 2), slice(1, None, 2)
        self.probes = _least(lambda n: (longer(tuned, n) == 0).mean() >= self.recall, cells)
        change = longer(told, self.probes)
        report |= {"cells": cells, "probes": self.probes, "queries": len(change)}
        report |= {"change": float(change.mean()), "most": float(change.max())}
        return report | {"recall": float((change == 0).mean())}

    def _nearest_others(self, asked: Whole, probes: int = 0) -> Floats:
        """Squared distances from rows to the nearest of another reference, or of their only one."""
        own, found = self.reference[asked], np.empty(len(asked), np.float32)
        for number in np.unique(own).tolist():
            here = np.flatnonzero(own == number)
            k, skip = (1, number) if self.left(number) else (2, None)
            queries = self.take(asked[here])
            if probes:
                squared, _ = self._proposed(queries, k, skip, probes)
            else:
                squared, _ = super().search(queries, k, skip)
            found[here] = squared[:, -1]
        return found

    # -- searching ----------------------------------------------------------------------------

    def search(
        self,
        queries: NDArray[np.floating],
        k: int = 1,
        skip: int | None = None,
        among: Collection[int] | None = None,
    ) -> tuple[Floats, Whole]:
        """As :meth:`MemoryBank.search`; distances are exact, of rows that mostly are the nearest.

        All rows are searched among some references, and where cells give fewer than ``k``.
        """
        if (
            not self.probes
            or among is not None
            or not 1 <= k <= self.left(skip)
            or not len(queries)
        ):
            return super().search(queries, k, skip, among)
        check_features(queries, "queries", self.dim)
        asked = as_stored(queries, self.storage)
        squared, index = self._proposed(asked, k, skip, self.probes)
        if (few := ~np.isfinite(squared[:, -1])).any():
            squared[few], index[few] = super().search(queries[few], k, skip)
        return squared, index

    def _proposed(
        self, asked: Floats, k: int, skip: int | None, probes: int
    ) -> tuple[Floats, Whole]:
        """Squared distances (Q, k) and rows of what the index proposes; infinite where too few."""
        faiss, index = self._ready()
        hidden = self.inactive | (frozenset() if skip is None else {skip})
        more: dict[str, Any] = {"nprobe": probes}
        if hidden:
            bits = np.packbits(~self.is_of(hidden), bitorder="little")
            more["sel"] = faiss.IDSelectorBitmap(bits)
        count = min(_CANDIDATES * k, len(self))
        parameters = faiss.SearchParametersIVF(**more)
        _, rows = index.search(np.ascontiguousarray(asked), count, params=parameters)
        squared = np.full(rows.shape, np.inf, np.float32)
        for some in batches(len(asked), max(1, _BLOCK // (4 * self.dim * count))):
            who, which = (rows[some] >= 0).nonzero()
            apart = self.take(rows[some][who, which]) - asked[some][who]
            squared[some][who, which] = np.einsum("nd,nd->n", apart, apart)
        order = np.lexsort((rows, squared), axis=1)[:, :k]
        return np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)

    def _ready(self) -> tuple[Any, Any]:
        """FAISS, and the index of the rows as they are now."""
        faiss = needs("faiss", "scale", "a model that was fitted with --search ivf")
        index = self._index
        if index is None or index.ntotal > len(self):
            index = faiss.index_factory(self.dim, f"IVF{len(self.centroids)},SQ8")
            index.quantizer.add(self.centroids)
            index.train(self.take(sample(len(self), _PER_CENTROID * len(self.centroids))))
        step = max(1, _BLOCK // (4 * self.dim))
        for some in batches(len(self), step, index.ntotal):
            rows = np.ascontiguousarray(self.take(some))
            if len(self.cell) < some.stop:  # rows that came
                _, near = index.quantizer.search(rows, 1)
                self.cell = np.concatenate([self.cell[: some.start], near[:, 0].astype(np.int32)])
            number = np.arange(some.start, some.stop, dtype=np.int64)
            cell = self.cell[some].astype(np.int64)
            pointers = (faiss.swig_ptr(each) for each in (rows, number, cell))
            index.add_core(len(rows), *pointers)
        self._index = index
        return faiss, index

    # -- keeping ------------------------------------------------------------------------------

    def _replace(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        if len(self.cell) == len(self):
            self.cell = change(self.cell)
        super()._replace(change)
        self._index = None

    def columns(self) -> dict[str, NDArray[Any]]:
        """All that is kept of the rows, and of their cells."""
        if self.probes and len(self.cell) < len(self):
            self._ready()
        told = {"centroids": self.centroids, "cell": self.cell}
        return super().columns() | told | {"probes": np.array([self.probes], np.int64)}

    def adopt(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take what :meth:`columns` gave, or raise an :class:`OptionError`."""
        rest = dict(columns)
        centroids, cell, probes = (rest.pop(name) for name in ("centroids", "cell", "probes"))
        super().adopt(rest)
        cells = len(centroids)
        shapes = centroids.shape == ((cells, self.dim) if cells else (0, 0))
        fits = shapes and cell.shape == (len(self) if cells else 0,) and probes.shape == (1,)
        fits = fits and bool(np.isfinite(centroids).all()) and 0 <= int(probes[0]) <= cells
        if not fits or not ((cell >= 0) & (cell < cells)).all():
            raise OptionError("memory bank: centroids, cells and probes do not fit; fit anew")
        self.centroids, self.cell = np.array(centroids, np.float32), np.array(cell, np.int32)
        self.probes, self._index = int(probes[0]), None


def _least(enough: Callable[[int], bool], most: int) -> int:
    """The fewest probes that are enough, by doubling and bisection; all where none are."""
    high = 1
    while high < most and not enough(high):
        high = min(2 * high, most)
    low = high // 2
    while high - low > max(1, high // 8):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
