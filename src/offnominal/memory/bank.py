"""The memory bank: patch features of nominal images, and exact search among them."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.memory.search.chosen import ChosenSearch
from offnominal.memory.search.cutting import Spans, batches
from offnominal.memory.storage import (
    COLUMNS,
    DTYPES,
    StoredRows,
    as_stored,
    check_columns,
    check_features,
    new_columns,
    turn,
    turn_back,
)

if TYPE_CHECKING:
    import torch

_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_LEAST_MEMORY = 2**20
_TOGETHER = 2**12  # rows that are changed at once


class MemoryBank:
    """Rows of patch features, each with the reference, view and patch that it came from.

    Parameters
    ----------
    dim : int
        Length of a row; 0: that of the first rows that are added.
    memory : int
        Bytes that a search may use beside rows, queries and result; at least 1 MiB.
    precision : {"auto", "fp32", "bf16", "fp16"}
        Format of the first stage of the search, which rules out rows that are provably too far.
        "auto" is fp16 on CUDA, bf16 on a CPU that has instructions for it, and fp32 elsewhere; so
        it is wherever PyTorch was not imported. Like ``memory`` it changes the speed, never the
        result.
    storage : {"fp32", "fp16", "int8"}
        How rows are kept. A search is exact among the rows as :meth:`take` gives them, in 8 bits
        but for the last digits of float32; queries are rounded alike.

    Attributes
    ----------
    rows : array of shape (N, dim)
        Float32, float16 or int8, as they are stored. Not to be written into; it may be mapped from
        a file.
    scale : float32 array of shape (N,) or None
        For int8 only: a row's features are its integers times its scale.
    reference, view, patch : array of shape (N,)
        int32, int16 and int32: number of the image that each row came from, -1 where none
        was given; of its view, 0 for the image itself; and place in the view's grid, row-major.
    counts : bool array of shape (N,)
        Whether the row is looked up when its reference is scored against the others.
    loo_distance, loo_reference : array of shape (N,)
        Float32 and int32: squared distance to the nearest row of another reference, and
        that reference; inf and -1 where it was not measured, inf and -2 where there is no other.
        See :mod:`offnominal.memory.leave_one_out`.

    Raises
    ------
    OptionError
        If an option is out of its range.
    """

    rows: NDArray[Any]
    scale: NDArray[np.float32] | None
    reference: NDArray[np.int32]
    view: NDArray[np.int16]
    patch: NDArray[np.int32]
    counts: NDArray[np.bool_]
    loo_distance: NDArray[np.float32]
    loo_reference: NDArray[np.int32]

    def __init__(
        self,
        dim: int = 0,
        memory: int = 512 * 2**20,
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        storage: Literal["fp32", "fp16", "int8"] = "fp32",
    ) -> None:
        if dim < 0:
            raise OptionError(f"dim: {dim} is not a length; give 1 or more, or 0")
        if memory < _LEAST_MEMORY:
            raise OptionError(f"memory: {memory} bytes is too little; give at least 1 MiB (2**20)")
        for name, value, known in (
            ("precision", precision, _PRECISIONS),
            ("storage", storage, tuple(DTYPES)),
        ):
            if value not in known:
                raise OptionError(f"{name}: {value!r} is unknown; choose from {', '.join(known)}")
        self.memory = memory
        self.precision = precision
        self.storage = storage
        self.device = "cpu"
        self.rows = np.empty((0, dim), DTYPES[storage])
        self.scale = np.empty(0, np.float32) if storage == "int8" else None
        for name, (dtype, _) in COLUMNS.items():
            setattr(self, name, np.empty(0, dtype))
        self._inactive: set[int] = set()
        self._search = ChosenSearch()
        self._forget_room()

    def _forget_room(self) -> None:
        # Room to grow: of each column the whole, and the part in use, which is the column.
        self._reserved = 0
        self._room: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the bank has no room to grow, and makes its own."""
        return {name: value for name, value in vars(self).items() if name != "_room"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`__getstate__` gave."""
        vars(self).update(state)
        self._forget_room()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Length of a row; 0 while it is not settled."""
        return int(self.rows.shape[1])

    @property
    def _stored(self) -> StoredRows:
        return StoredRows(self.rows, self.scale)

    @property
    def inactive(self) -> frozenset[int]:
        """References whose rows every search passes over."""
        return frozenset(self._inactive)

    def __repr__(self) -> str:
        """Sizes, for ``print``."""
        return f"MemoryBank(rows={len(self)}, dim={self.dim}, storage={self.storage!r})"

    def columns(self) -> dict[str, NDArray[Any]]:
        """All that is kept of the rows, by name; :meth:`adopt` takes it."""
        named = {name: getattr(self, name) for name in ("rows", "scale", *COLUMNS)}
        return {name: column for name, column in named.items() if column is not None}

    def to(self, device: "str | torch.device") -> Self:
        """Search on this device from now on; rows stay where they are, and CUDA gets a copy."""
        self.device = str(device)
        self._search.forget()
        return self

    def reserve(self, n: int) -> None:
        """Make room for ``n`` rows in all, so that adding does not copy those that are there.

        Without it a bank grows by half at a time, and holds the rows twice while it does. On a
        CPU, room that is not used takes no memory.
        """
        self._reserved = n

    def add(
        self,
        features: NDArray[np.floating],
        reference: int = -1,
        view: int = 0,
        patch: NDArray[np.integer] | None = None,
        counts: NDArray[np.bool_] | bool | None = None,
    ) -> None:
        """Append rows.

        Parameters
        ----------
        features : array of shape (n, dim)
            Of any float dtype; kept as ``storage`` says.
        reference : int
            Number of the image. All rows of one are to be added before those of the next.
        view : int
            Number of the view of that image, 0 to 32767; 0 is the image itself.
        patch : integer array of shape (n,), optional
            Places in the view's grid, row-major; by default 0 to n - 1.
        counts : bool array of shape (n,) or bool, optional
            Which are looked up when their reference is scored against the others; by
            default none.

        Raises
        ------
        OptionError
            If a shape or type is another, or a value is not finite or does not fit.
        """
        check_features(features, "features", self.dim)
        values = new_columns(features, self.storage, reference, view, patch, counts)
        start = len(self)
        for name, value in values.items():
            self._append(name, value, start)

    def _append(self, name: str, value: NDArray[Any], start: int) -> None:
        held, stop = getattr(self, name), start + len(value)
        whole, used = self._room.get(name, (held, None))
        # What was put in the column's place from outside is not written behind.
        if used is not held or stop > len(whole):
            size = max(stop, start * 3 // 2, self._reserved)
            whole = np.empty((size, *value.shape[1:]), held.dtype)
            if start:
                whole[:start] = held
        whole[start:stop] = value
        used = whole[:stop]
        self._set(name, used)
        self._room[name] = whole, used

    def _set(self, name: str, column: NDArray[Any]) -> None:
        if name == "rows":
            column.flags.writeable = False  # a search may have kept something of them
        setattr(self, name, column)

    def truncate(self, n: int) -> None:
        """Keep the first ``n`` rows, as they were before the others were added."""
        lost = set(np.unique(self.reference[n:]).tolist())
        self._replace(lambda column: column[:n])
        self._inactive -= lost - set(np.unique(self.reference).tolist())

    def active(self, reference: int, flag: bool) -> None:
        """Let searches see the rows of a reference, or pass them over."""
        (self._inactive.discard if flag else self._inactive.add)(reference)

    def compact(self) -> None:
        """Remove the rows of inactive references; the others keep their order."""
        self.keep(~self.is_of(self._inactive))
        self._inactive.clear()

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Keep the rows that (N,) bool says, in their order."""
        self._replace(lambda column: column[kept])

    def _replace(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        self._room.clear()
        for name, held in MemoryBank.columns(self).items():
            self._set(name, change(held))

    def rows_of(self, reference: int) -> NDArray[np.int64]:
        """Numbers (n,) of a reference's rows, in the order in which they were added."""
        return np.flatnonzero(self.reference == reference)

    def left(self, skip: int | None = None) -> int:
        """Count the rows that a search sees, without those of the reference ``skip``."""
        return sum(stop - start for start, stop in self._spans(skip))

    def take(self, index: NDArray[np.integer] | slice) -> NDArray[np.float32]:
        """Rows (n, dim) float32 as a search sees them: those of numbers (n,), or a stretch.

        A stretch of float32 rows is not a copy, and not to be written into.
        """
        rows = self._stored[index] if isinstance(index, slice) else self._stored.take(index)
        return turn_back(rows) if self.storage == "int8" else rows

    def standardize_(self, centre: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
        """Subtract ``centre`` (dim,) from every row and divide by ``scale`` (dim,), in place.

        Raises
        ------
        OptionError
            If the rows are not float32: others would be rounded a second time.
        """
        if self.storage != "fp32":
            raise OptionError(
                f"storage: {self.storage} rows cannot be standardised once they are stored; "
                "use --storage fp32"
            )
        whole, used = self._room.get("rows", (self.rows, None))
        mine = used is self.rows
        rows = whole[: len(self)] if mine else np.empty_like(self.rows)
        for some in batches(len(rows), _TOGETHER):
            np.divide(self.rows[some] - centre, scale, out=rows[some])
        if not mine:  # what somebody else gave, as a file that is mapped, is left as it is
            self._set("rows", rows)
        self._search.forget()

    def adopt(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take the columns of a saved bank by their names, as :meth:`columns` gives them.

        ``rows`` may be mapped from a file and is not copied.

        Raises
        ------
        OptionError
            If a column is missing or unknown, of another length or type, or holds values that
            no bank has; nothing is changed then.
        """
        check_columns(columns, MemoryBank.columns(self))
        self._room.clear()
        for name, column in columns.items():
            # The others are small, and written into: what is mapped from a file may not be.
            self._set(name, np.asarray(column).view() if name == "rows" else np.array(column))

    def search(
        self,
        queries: NDArray[np.floating],
        k: int = 1,
        skip: int | None = None,
        among: Collection[int] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the nearest rows, exactly.

        Parameters
        ----------
        queries : array of shape (Q, dim)
            Of any float dtype; rounded as the rows are stored.
        k : int
            How many rows for each query.
        skip : int, optional
            Leave out the rows of this reference, as in a leave-one-out run.
        among : collection of int, optional
            Search the rows of these references only.

        Returns
        -------
        tuple of arrays
            Squared Euclidean distances (Q, k) float32, ascending, and row numbers (Q, k) int64;
            of rows equally far, the lowest first. The same bits come out whatever ``memory``,
            ``precision`` and the number of threads, and with PyTorch or without.

        Raises
        ------
        OptionError
            If the shape is another, a value is not finite, or fewer than ``k`` rows are left.
        """
        check_features(queries, "queries", self.dim)
        spans = self._spans(skip, among)
        left = sum(stop - start for start, stop in spans)
        if not 1 <= k <= left:
            without = "" if skip is None else f" without those of reference {skip}"
            raise OptionError(
                f"k: cannot find {k} nearest rows among {left}{without}; "
                "give k from 1 to the number of rows, or add more nominal images"
            )
        asked = np.ascontiguousarray(as_stored(queries, self.storage))
        if self.storage == "int8":
            asked = turn(asked)
        if not len(asked):
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        search = self._search.among(self._stored, self.device, self.precision)
        return search.find(asked, k, spans, self.memory)

    def distances_below_quantile(
        self, queries: NDArray[np.floating], quantile: float, skip: int | None = None
    ) -> NDArray[np.float32]:
        """Mean cosine distance to the rows nearer than a quantile of the bank.

        The statistic of batched zero-shot AnomalyDINO (Damm et al., 2025, §3.4), for queries
        and rows of unit length, where the cosine distance is half the squared Euclidean one.

        Parameters
        ----------
        queries, skip
            As for :meth:`search`.
        quantile : float
            In (0, 1]. With n rows to compare with, the mean is over the distances strictly
            below the ``int(quantile * n)``-th smallest.

        Returns
        -------
        float32 array of shape (Q,)
            Where no distance is strictly below, the smallest distance.

        Raises
        ------
        OptionError
            As :meth:`search`, and if ``quantile`` is outside (0, 1].
        """
        if not 0 < quantile <= 1:
            raise OptionError(f"quantile: {quantile} is outside (0, 1]")
        kth = max(1, int(quantile * self.left(skip)))
        distances = self.search(queries, kth, skip)[0] / 2
        below = distances < distances[:, -1:]
        count = below.sum(1)
        # Added in float64, so that the order of the sum cannot be seen in the result.
        mean = (distances * below).sum(1, dtype=np.float64) / np.maximum(count, 1)
        return np.where(count > 0, mean, distances[:, 0]).astype(np.float32)

    def is_of(self, references: Iterable[int]) -> NDArray[np.bool_]:
        """(N,) bool: rows of some references."""
        return np.isin(self.reference, np.array(sorted(references), np.int32))

    def _spans(self, skip: int | None = None, among: Collection[int] | None = None) -> Spans:
        """First row and end of every run of rows that a search sees."""
        hidden = self._inactive | (set() if skip is None else {skip})
        if not hidden and among is None:
            return [(0, len(self))] if len(self) else []
        seen = ~self.is_of(hidden)
        if among is not None:
            seen &= self.is_of(among)
        edges = np.flatnonzero(np.diff(seen, prepend=False, append=False)).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))
