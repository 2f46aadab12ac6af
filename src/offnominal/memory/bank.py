"""The memory bank: patch features of nominal images, and exact search among them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from offnominal.errors import OptionError
from offnominal.memory.candidates import NearestIndex, nearest_among
from offnominal.memory.columns import Columns
from offnominal.memory.exact import NORM_LIMIT
from offnominal.memory.keeper import SearchKeeper
from offnominal.memory.provenance import PROVENANCE, gaps, runs
from offnominal.memory.search import find
from offnominal.memory.storage import DTYPES, Stored, encode, turn, turn_back

_PRECISIONS = ("auto", "int8", "fp32", "bf16", "fp16")
_LEAST_MEMORY = 2**20
# Beyond so many neighbours an index is not asked.
_FEW = 128


class MemoryBank(nn.Module):
    """Rows of patch features, each with the image, view and patch that it came from.

    Parameters
    ----------
    dim : int
        Length of a row.
    memory : int
        Bytes that a search may use beside the rows, the queries and the result; at least
        1 MiB. It changes the speed, never the result.
    precision : {"auto", "int8", "fp32", "bf16", "fp16"}
        Format of the first stage of the search, which rules out rows that are provably too
        far. It changes the speed, never the result. "auto" is fp16 on CUDA; on a CPU, where it
        has instructions for products of 8-bit integers (VNNI), it is sketches of the rows as
        soon as these pay, else bf16 where it has instructions for that, and fp32 elsewhere.
        "int8" makes the sketches at once.
    storage : {"fp32", "fp16", "int8"}
        How rows are kept. What is stored is the truth: a search is exact among the rows as
        :meth:`take` gives them, in 8 bits but for the last digits of float32.

    Attributes
    ----------
    rows : Tensor
        (N, dim) float32, float16 or int8, as they are stored.
    scale : Tensor or None
        (N,) float32, for int8 only: a row's features are its integers times its scale.
    owner : Tensor
        (N,) int32: number of the image that each row came from; -1 where none was given.
    view : Tensor
        (N,) int16: number of the view of that image; 0 is the image itself.
    patch : Tensor
        (N,) int32: place in the view's grid, in row-major order.
    index : NearestIndex or None
        Asked for candidates where it is set; they are compared exactly. It is taken away when
        rows are removed, since their numbers change. Not saved.

    Raises
    ------
    OptionError
        If an option is out of its range.
    """

    rows: Tensor
    scale: Tensor | None
    owner: Tensor
    view: Tensor
    patch: Tensor

    def __init__(
        self,
        dim: int,
        memory: int = 512 * 2**20,
        precision: Literal["auto", "int8", "fp32", "bf16", "fp16"] = "auto",
        storage: Literal["fp32", "fp16", "int8"] = "fp32",
    ) -> None:
        super().__init__()
        if dim < 1:
            raise OptionError(f"dim: {dim} is not a length; give 1 or more")
        if memory < _LEAST_MEMORY:
            raise OptionError(f"memory: {memory} bytes is too little; give at least 1 MiB (2**20)")
        if precision not in _PRECISIONS:
            raise OptionError(
                f"precision: {precision!r} is unknown; choose from {', '.join(_PRECISIONS)}"
            )
        if storage not in DTYPES:
            raise OptionError(f"storage: {storage!r} is unknown; choose from {', '.join(DTYPES)}")
        self.dim = dim
        self.memory = memory
        self.precision = precision
        self.storage = storage
        self.index: NearestIndex | None = None
        self.register_buffer("rows", torch.empty((0, dim), dtype=DTYPES[storage]))
        self.register_buffer("scale", torch.empty(0) if storage == "int8" else None)
        for name, dtype in PROVENANCE.items():
            self.register_buffer(name, torch.empty((0,), dtype=dtype))
        self._columns = Columns(self._buffers)
        self._keeper = SearchKeeper()

    def __len__(self) -> int:
        return len(self.rows)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return (
            f"rows={len(self)}, dim={self.dim}, precision={self.precision!r}, "
            f"storage={self.storage!r}"
        )

    def add(
        self, features: Tensor, owner: int = -1, view: int = 0, patch: Tensor | None = None
    ) -> None:
        """Append rows.

        Parameters
        ----------
        features : Tensor
            (n, dim), any float dtype; kept as ``storage`` says, on the bank's device.
        owner : int
            Number of the image they come from.
        view : int
            Number of the view of that image, 0 to 32767; 0 is the image itself.
        patch : Tensor, optional
            (n,) integers: their places in the view's grid, in row-major order; 0 to n - 1 where
            none are given.

        Raises
        ------
        OptionError
            If a shape or type is another, or a value is not finite or does not fit.
        """
        self._check(features, "features")
        if patch is None:
            patch = torch.arange(len(features))
        elif patch.shape != features.shape[:1] or patch.is_floating_point():
            raise OptionError(
                f"patch: a {patch.dtype} tensor of shape {tuple(patch.shape)}; "
                f"give {len(features)} integers, one for each row"
            )
        if not 0 <= view <= torch.iinfo(torch.int16).max:
            raise OptionError(f"view: {view} is not from 0 to 32767")
        # Outside inference mode, so that the rows can still be moved and loaded into later.
        with torch.inference_mode(False), torch.no_grad():
            rows, scale = encode(features, self.storage)
            ones = torch.ones(len(rows), dtype=torch.int32)
            self._append(rows, scale, ones * owner, ones * view, patch)

    def extend(self, other: "MemoryBank", renumber: Mapping[int, int] | None = None) -> None:
        """Append another bank's rows, with what is known of them.

        Parameters
        ----------
        other : MemoryBank
            Of the same ``dim`` and ``storage``; its rows are taken over to the bit.
        renumber : mapping of int to int, optional
            New numbers of its images; those not named keep theirs.

        Raises
        ------
        OptionError
            If ``dim`` or ``storage`` differ.
        """
        if (other.dim, other.storage) != (self.dim, self.storage):
            raise OptionError(
                f"extend: a bank of {other.storage} rows of length {other.dim} does not go into "
                f"one of {self.storage} rows of length {self.dim}; fit both with the same options"
            )
        other._columns.complete()
        owner = other.owner.clone()
        for old, new in (renumber or {}).items():
            owner[other.owner == old] = new
        with torch.inference_mode(False), torch.no_grad():
            self._append(other.rows, other.scale, owner, other.view, other.patch)

    def _append(
        self, rows: Tensor, scale: Tensor | None, owner: Tensor, view: Tensor, patch: Tensor
    ) -> None:
        if len(rows):
            values = {"rows": rows, "owner": owner, "view": view, "patch": patch}
            same = self._keeper.valid(self.rows)
            self._columns.append(values if scale is None else values | {"scale": scale})
            if same:
                self._keeper.follow(self.rows)

    def forget(self, owners: Collection[int]) -> None:
        """Remove the rows of some images; the others keep their order.

        Parameters
        ----------
        owners : collection of int
            Numbers of the images; those that own no row are passed over.
        """
        gone = torch.tensor(sorted(owners), dtype=torch.int32, device=self.owner.device)
        kept = torch.isin(self.owner, gone, invert=True)
        if kept.all():
            return
        self.index = None
        with torch.inference_mode(False), torch.no_grad():
            index = kept.nonzero()[:, 0]
            same = self._keeper.valid(self.rows)
            self._columns.complete()
            self._columns.keep(index)
            if same:
                self._keeper.follow(self.rows, index)

    def take(self, index: Tensor | slice) -> Tensor:
        """Rows as a search sees them.

        Parameters
        ----------
        index : Tensor or slice
            (n,) int64 row numbers, or a stretch of rows.

        Returns
        -------
        Tensor
            (n, dim) float32. A stretch of float32 rows shares its memory with the bank: not to
            be written into.
        """
        rows = self._stored()[index]
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

    def _stored(self) -> Tensor | Stored:
        return self.rows if self.storage == "fp32" else Stored(self.rows, self.scale)

    def _as_stored(self, queries: Tensor) -> Tensor:
        """Queries (Q, dim) where the stored rows are."""
        return turn(queries) if self.storage == "int8" else queries

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the rows with the module, but keep their format when it is made half."""
        self._columns.complete()
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in PyTorch
        self._columns.restore(before)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._columns.complete()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def search(self, queries: Tensor, k: int = 1, skip: int | None = None) -> tuple[Tensor, Tensor]:
        """Find the nearest rows, exactly.

        Parameters
        ----------
        queries : Tensor
            (Q, dim), any float dtype; used as float32 on the bank's device.
        k : int
            How many rows for each query.
        skip : int, optional
            Leave out the rows of this owner, as in a leave-one-out run.

        Returns
        -------
        tuple of Tensor
            Squared Euclidean distances (Q, k) float32, ascending, and row numbers (Q, k) int64.
            Of rows that are equally far, the lowest comes first. The same bits come out
            whatever ``memory``, ``precision`` and the number of threads. Where ``index`` is
            set, a query's rows are the nearest among those that the index names, and among all
            if it names fewer than ``k``.

        Raises
        ------
        OptionError
            If the shape is another, a value is not finite, or fewer than ``k`` rows are left.
        """
        self._check(queries, "queries")
        spans = self._spans(skip)
        left = sum(stop - start for start, stop in spans)
        if not 1 <= k <= left:
            without = "" if skip is None else f" without those of image {skip}"
            raise OptionError(
                f"k: cannot find {k} nearest rows among {left}{without}; "
                "give k from 1 to the number of rows, or add more nominal images"
            )
        device = self.rows.device
        queries = queries.to(device, torch.float32).contiguous()
        # Autocast would change the format of the products under the bounds' feet.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            if self.index is not None and len(queries) and k <= _FEW:
                return self._search_index(self.index, queries, k, spans)
            return self._search_all(queries, k, spans)

    def _search_all(
        self, queries: Tensor, k: int, spans: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        queries = self._as_stored(queries)
        rows, precision, memory = self._stored(), self.precision, self.memory
        return find(rows, queries, k, spans, precision, memory, self._keeper)

    def _search_index(
        self, index: NearestIndex, queries: Tensor, k: int, spans: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """The nearest of those that the index names and of those that it does not know yet."""
        known = len(index)
        skipped = gaps(spans, known)
        named = index.candidates(queries, k, skipped or None).to(self.rows.device)
        fresh = [(max(start, known), stop) for start, stop in spans if stop > known]
        if fresh:
            count = min(k, sum(stop - start for start, stop in fresh))
            named = torch.cat([named, self._search_all(queries, count, fresh)[1]], 1)
        for start, stop in skipped:
            named = named.masked_fill((named >= start) & (named < stop), -1)
        distances, rows = nearest_among(
            self._stored(), self._as_stored(queries), k, named, self.memory
        )
        lacking = (rows < 0).any(1)
        if lacking.any():
            distances[lacking], rows[lacking] = self._search_all(queries[lacking], k, spans)
        return distances, rows

    def distances_below_quantile(
        self, queries: Tensor, quantile: float, skip: int | None = None
    ) -> Tensor:
        """Mean cosine distance to the rows nearer than a quantile of the bank.

        The statistic of batched zero-shot AnomalyDINO (Damm et al., 2025, §3.4), for queries
        and rows of unit length, where the cosine distance is half the squared Euclidean one.

        Parameters
        ----------
        queries : Tensor
            (Q, dim), any float dtype.
        quantile : float
            In (0, 1]. With n rows to compare with, the mean is over the distances strictly
            below the ``int(quantile * n)``-th smallest.
        skip : int, optional
            Leave out the rows of this owner: those of the image that the queries come from.

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
        left = sum(stop - start for start, stop in self._spans(skip))
        kth = max(1, int(quantile * left))
        distances = self.search(queries, kth, skip)[0] / 2
        below = distances < distances[:, -1:]
        count = below.sum(1)
        # Added in float64, so that the order of the sum cannot be seen in the result.
        mean = ((distances * below).sum(1, dtype=torch.float64) / count).float()
        return torch.where(count > 0, mean, distances[:, 0])

    def _check(self, x: Tensor, name: str) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim or not x.is_floating_point():
            raise OptionError(
                f"{name}: a {x.dtype} tensor of shape {tuple(x.shape)}; "
                f"this bank takes floats of shape (n, {self.dim})"
            )
        if len(x) and not torch.linalg.vector_norm(x.float(), dim=1).amax() < NORM_LIMIT:
            raise OptionError(
                f"{name}: values must be finite, with norms below {NORM_LIMIT:.0e}; "
                "check the images and the backbone's weights"
            )

    def _spans(self, skip: int | None) -> list[tuple[int, int]]:
        """First row and end of every run of rows that are not ``skip``'s."""
        if skip is None:
            return [(0, len(self))] if len(self) else []
        return runs(self.owner != skip)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
    ) -> None:
        """Take as many rows as the state dict has; with ``assign=True``, without a copy."""
        error_msgs: list[str] = args[-1]
        wrong = self._columns.receive(state_dict, prefix)
        error_msgs.extend(wrong)
        if not wrong:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
