"""The memory bank: patch features of nominal images, and exact search among them."""

from collections.abc import Callable, Collection, Mapping
from typing import Literal, Self

import torch
from torch import Tensor, nn

from offnominal.errors import OptionError
from offnominal.memory.search.bound import BlockCache
from offnominal.memory.search.find import Spans, find
from offnominal.memory.storage import (
    COLUMNS,
    DTYPES,
    StoredRows,
    as_stored,
    check_columns,
    check_features,
    encode,
    turn,
    turn_back,
)

_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_LEAST_MEMORY = 2**20


class MemoryBank(nn.Module):
    """Rows of patch features, each with the reference, view and patch that it came from.

    Parameters
    ----------
    dim : int
        Length of a row; 0: that of the first rows that are added.
    memory : int
        Bytes that a search may use beside rows, queries and result; at least 1 MiB.
    precision : {"auto", "fp32", "bf16", "fp16"}
        Format of the first stage of the search, which rules out rows that are provably too far.
        "auto" is fp16 on CUDA, bf16 on a CPU that has instructions for it, and fp32 elsewhere.
        Like ``memory`` it changes the speed, never the result.
    storage : {"fp32", "fp16", "int8"}
        How rows are kept. A search is exact among the rows as :meth:`take` gives them, in 8 bits
        but for the last digits of float32; queries are rounded alike.

    Attributes
    ----------
    rows : Tensor
        (N, dim) float32, float16 or int8, as they are stored.
    scale : Tensor or None
        (N,) float32, for int8 only: a row's features are its integers times its scale.
    reference, view, patch : Tensor
        (N,) int32, int16 and int32: number of the image that each row came from, -1 where none
        was given; of its view, 0 for the image itself; and place in the view's grid, row-major.
    counts : Tensor
        (N,) bool: whether the row is looked up when its reference is scored against the others.
    loo_distance, loo_reference : Tensor
        (N,) float32 and int32: squared distance to the nearest row of another reference, and
        that reference; inf and -1 where it was not measured, inf and -2 where there is no other.
        See :mod:`offnominal.memory.leave_one_out`.

    Raises
    ------
    OptionError
        If an option is out of its range.
    """

    rows: Tensor
    scale: Tensor | None
    reference: Tensor
    view: Tensor
    patch: Tensor
    counts: Tensor
    loo_distance: Tensor
    loo_reference: Tensor

    def __init__(
        self,
        dim: int = 0,
        memory: int = 512 * 2**20,
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        storage: Literal["fp32", "fp16", "int8"] = "fp32",
    ) -> None:
        super().__init__()
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
        self.register_buffer("rows", torch.empty((0, dim), dtype=DTYPES[storage]))
        self.register_buffer("scale", torch.empty(0) if storage == "int8" else None)
        for name, (dtype, _) in COLUMNS.items():
            self.register_buffer(name, torch.empty((0,), dtype=dtype))
        self._inactive: set[int] = set()
        self._cache = BlockCache()
        # Room to grow: of each column the whole, and the part in use, which is the buffer.
        self._reserved = 0
        self._room: dict[str, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Length of a row; 0 while it is not settled."""
        return self.rows.shape[1]

    @property
    def _stored(self) -> StoredRows:
        return StoredRows(self.rows, self.scale)

    @property
    def inactive(self) -> frozenset[int]:
        """References whose rows every search passes over."""
        return frozenset(self._inactive)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"rows={len(self)}, dim={self.dim}, storage={self.storage!r}"

    def reserve(self, n: int) -> None:
        """Make room for ``n`` rows in all, so that adding does not copy those that are there.

        Without it a bank grows by half at a time, and holds the rows twice while it does. On a
        CPU, room that is not used takes no memory.
        """
        self._reserved = n

    def add(
        self,
        features: Tensor,
        reference: int = -1,
        view: int = 0,
        patch: Tensor | None = None,
        counts: Tensor | bool | None = None,
    ) -> None:
        """Append rows.

        Parameters
        ----------
        features : Tensor
            (n, dim), any float dtype; kept as ``storage`` says, on the bank's device.
        reference : int
            Number of the image. All rows of one are to be added before those of the next.
        view : int
            Number of the view of that image, 0 to 32767; 0 is the image itself.
        patch : Tensor, optional
            (n,) integers: places in the view's grid, row-major; by default 0 to n - 1.
        counts : Tensor or bool, optional
            (n,) bool: which are looked up when their reference is scored against the others; by
            default none.

        Raises
        ------
        OptionError
            If a shape or type is another, or a value is not finite or does not fit.
        """
        check_features(features, "features", self.dim)
        n = features.shape[:1]
        patch = torch.arange(len(features)) if patch is None else patch
        counts = counts if isinstance(counts, Tensor) else torch.full(n, bool(counts))
        for name, column, fits, kind in (
            ("patch", patch, not patch.is_floating_point(), "integers"),
            ("counts", counts, counts.dtype == torch.bool, "truth values"),
        ):
            if column.shape != n or not fits:
                raise OptionError(
                    f"{name}: a {column.dtype} tensor of shape {tuple(column.shape)}; "
                    f"give {len(features)} {kind}, one for each row"
                )
        if not 0 <= view <= torch.iinfo(torch.int16).max:
            raise OptionError(f"view: {view} is not from 0 to 32767")
        # Outside inference mode, so that the rows can still be moved and loaded into later.
        with torch.inference_mode(False), torch.no_grad():
            rows, scale = encode(features, self.storage)
            values = {
                "rows": rows,
                "scale": scale,
                "reference": torch.full(n, reference),
                "view": torch.full(n, view),
                "patch": patch,
                "counts": counts,
                "loo_distance": torch.full(n, torch.inf),
                "loo_reference": torch.full(n, -1),
            }
            start = len(self)
            for name, value in values.items():
                if value is not None:
                    self._append(name, value, start)

    def _append(self, name: str, value: Tensor, start: int) -> None:
        held, stop = self.get_buffer(name), start + len(value)
        whole, used = self._room.get(name, (held, None))
        # What was put in the buffer's place from outside is not written behind.
        if used is not held or stop > len(whole):
            size = max(stop, start * 3 // 2, self._reserved)
            whole = held.new_empty((size, *value.shape[1:]))
            if start:
                whole[:start] = held
        whole[start:stop] = value
        self._buffers[name] = used = whole[:stop]
        self._room[name] = whole, used

    def truncate(self, n: int) -> None:
        """Keep the first ``n`` rows, as they were before the others were added."""
        lost = set(torch.unique(self.reference[n:]).tolist())
        self._replace(lambda column: column[:n])
        self._inactive -= lost - set(torch.unique(self.reference).tolist())

    def active(self, reference: int, flag: bool) -> None:
        """Let searches see the rows of a reference, or pass them over."""
        (self._inactive.discard if flag else self._inactive.add)(reference)

    def compact(self) -> None:
        """Remove the rows of inactive references; the others keep their order."""
        self.keep(~self.is_of(self._inactive))
        self._inactive.clear()

    def keep(self, kept: Tensor) -> None:
        """Keep the rows that (N,) bool says, in their order."""
        self._replace(lambda column: column[kept])

    def _replace(self, change: Callable[[Tensor], Tensor]) -> None:
        self._room.clear()
        with torch.inference_mode(False), torch.no_grad():
            for name, held in self._buffers.items():
                if held is not None:
                    self._buffers[name] = change(held)

    def rows_of(self, reference: int) -> Tensor:
        """Numbers (n,) int64 of a reference's rows, in the order in which they were added."""
        return (self.reference == reference).nonzero()[:, 0]

    def left(self, skip: int | None = None) -> int:
        """Count the rows that a search sees, without those of the reference ``skip``."""
        return sum(stop - start for start, stop in self._spans(skip))

    def take(self, index: Tensor | slice) -> Tensor:
        """Rows (n, dim) float32 as a search sees them: those of int64 numbers (n,), or a stretch.

        A stretch of float32 rows is not a copy, and not to be written into.
        """
        rows = self._stored[index] if isinstance(index, slice) else self._stored.take(index)
        return turn_back(rows) if self.storage == "int8" else rows

    def standardize_(self, centre: Tensor, scale: Tensor) -> None:
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
        self.rows.sub_(centre).div_(scale)

    def adopt(self, columns: Mapping[str, Tensor]) -> None:
        """Take the columns of a saved bank: every buffer by its name, as ``state_dict`` gives them.

        ``rows`` may be mapped from a file and is not copied.

        Raises
        ------
        OptionError
            If a column is missing or unknown, of another length or type, or holds values that
            no bank has; nothing is changed then.
        """
        mine = {name: held for name, held in self._buffers.items() if held is not None}
        check_columns(columns, mine)
        self._room.clear()
        with torch.inference_mode(False), torch.no_grad():
            for name, column in columns.items():
                # The others are small, and written into: what is mapped from a file may not be.
                own = column if name == "rows" else column.clone()
                self._buffers[name] = own.to(self.rows.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the rows with the module, but keep their format when it is made half."""
        self._room.clear()
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in PyTorch
        for name, held in before.items():
            if held is not None and self.get_buffer(name).dtype != held.dtype:
                self._buffers[name] = held.to(self.rows.device)
        return self

    def search(
        self,
        queries: Tensor,
        k: int = 1,
        skip: int | None = None,
        among: Collection[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Find the nearest rows, exactly.

        Parameters
        ----------
        queries : Tensor
            (Q, dim), any float dtype; rounded as the rows are stored, on the bank's device.
        k : int
            How many rows for each query.
        skip : int, optional
            Leave out the rows of this reference, as in a leave-one-out run.
        among : collection of int, optional
            Search the rows of these references only.

        Returns
        -------
        tuple of Tensor
            Squared Euclidean distances (Q, k) float32, ascending, and row numbers (Q, k) int64;
            of rows equally far, the lowest first. The same bits come out whatever ``memory``,
            ``precision`` and the number of threads.

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
        device = self.rows.device
        # Autocast would change the format of the products under the bounds' feet.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            queries = as_stored(queries.to(device), self.storage).contiguous()
            if self.storage == "int8":
                queries = turn(queries)
            rows, precision, memory = self._stored, self.precision, self.memory
            return find(rows, queries, k, spans, precision, memory, self._cache)

    def distances_below_quantile(
        self, queries: Tensor, quantile: float, skip: int | None = None
    ) -> Tensor:
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
        Tensor
            (Q,) float32. Where no distance is strictly below, the smallest distance.

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
        mean = ((distances * below).sum(1, dtype=torch.float64) / count).float()
        return torch.where(count > 0, mean, distances[:, 0])

    def is_of(self, references: Collection[int]) -> Tensor:
        """(N,) bool: rows of some references."""
        wanted = torch.tensor(sorted(references), dtype=torch.int32, device=self.reference.device)
        return torch.isin(self.reference, wanted)

    def _spans(self, skip: int | None = None, among: Collection[int] | None = None) -> Spans:
        """First row and end of every run of rows that a search sees."""
        hidden = self._inactive | (set() if skip is None else {skip})
        if not hidden and among is None:
            return [(0, len(self))] if len(self) else []
        seen = ~self.is_of(hidden)
        if among is not None:
            seen &= self.is_of(among)
        edges = nn.functional.pad(seen.to(torch.int8), (1, 1)).diff().nonzero().flatten().tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))
