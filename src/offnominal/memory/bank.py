"""The memory bank: patch features of nominal images, and exact search among them."""

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from offnominal.errors import OptionError
from offnominal.memory.screen import NORM_LIMIT, product_dtype
from offnominal.memory.search import Plan, nearest

_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_LEAST_MEMORY = 2**20


class MemoryBank(nn.Module):
    """Rows of patch features, each with the number of the image it came from.

    Parameters
    ----------
    dim : int
        Length of a row.
    memory : int
        Bytes that a search may use beside the rows, the queries and the result; at least
        1 MiB. It changes the speed, never the result.
    precision : {"auto", "fp32", "bf16", "fp16"}
        Format of the first stage of the search, which rules out rows that are provably too
        far. It changes the speed, never the result. "auto" is fp16 on CUDA, bf16 on a CPU that
        has instructions for it, fp32 elsewhere.

    Attributes
    ----------
    rows : Tensor
        (N, dim) float32.
    owner : Tensor
        (N,) int32: number of the image that each row came from; -1 where none was given.

    Raises
    ------
    OptionError
        If an option is out of its range.
    """

    rows: Tensor
    owner: Tensor

    def __init__(
        self,
        dim: int,
        memory: int = 512 * 2**20,
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
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
        self.dim = dim
        self.memory = memory
        self.precision = precision
        self.register_buffer("rows", torch.empty((0, dim)))
        self.register_buffer("owner", torch.empty((0,), dtype=torch.int32))
        # The buffers are the used part of some room that grows by half, so that adding costs
        # O(1) a row. They are elsewhere after a move, a load or an assignment from outside.
        self._room = (self.rows, self.owner)
        self._in_room = self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"rows={len(self)}, dim={self.dim}, precision={self.precision!r}"

    def add(self, features: Tensor, owner: int = -1) -> None:
        """Append rows.

        Parameters
        ----------
        features : Tensor
            (n, dim), any float dtype; kept as float32 on the bank's device.
        owner : int
            Number of the image they come from.

        Raises
        ------
        OptionError
            If the shape is another, or a value is not finite.
        """
        self._check(features, "features")
        if not len(features):
            return
        # Outside inference mode, so that the rows can still be moved and loaded into later.
        with torch.inference_mode(False), torch.no_grad():
            start, stop = len(self), len(self) + len(features)
            self._grow(stop)
            rows, owners = self._room
            rows[start:stop] = features
            owners[start:stop] = owner
            self.rows, self.owner = rows[:stop], owners[:stop]
            self._in_room = self.rows

    def _grow(self, size: int) -> None:
        if self.rows is self._in_room and size <= len(self._room[0]):
            return
        size = max(size, len(self) * 3 // 2)
        rows, owners = self.rows.new_empty((size, self.dim)), self.owner.new_empty((size,))
        rows[: len(self)] = self.rows
        owners[: len(self)] = self.owner
        self._room = (rows, owners)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the rows with the module, but keep them float32 when it is made half."""
        rows = self.rows
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in PyTorch
        if self.rows.dtype != rows.dtype:
            self.rows = rows.to(self.rows.device)
        if self.rows is not self._in_room:
            self._room, self._in_room = (self.rows, self.owner), self.rows
        return self

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
            whatever ``memory``, ``precision`` and the number of threads.

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
        plan = Plan.within(self.memory, max(len(queries), 1), left, self.dim, k, device)
        # Autocast would change the format of the products under the bounds' feet.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return nearest(
                self.rows,
                queries.to(self.rows).contiguous(),
                k,
                spans,
                product_dtype(self.precision, device),
                plan,
            )

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
        kept = torch.nn.functional.pad((self.owner != skip).to(torch.int8), (1, 1))
        edges = kept.diff().nonzero().flatten().tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
    ) -> None:
        """Take as many rows as the state dict has; with ``assign=True``, without a copy."""
        error_msgs: list[str] = args[-1]
        rows, owner = state_dict.get(prefix + "rows"), state_dict.get(prefix + "owner")
        if rows is not None and owner is not None:
            wanted = (torch.float32, torch.int32)
            if (rows.dtype, owner.dtype) != wanted or (*owner.shape, self.dim) != rows.shape:
                error_msgs.append(
                    f"{prefix}rows, {prefix}owner: {rows.dtype} {tuple(rows.shape)} and "
                    f"{owner.dtype} {tuple(owner.shape)} are not a memory bank; "
                    f"expected float32 (N, {self.dim}) and int32 (N,)"
                )
                return
            self.rows = self.rows.new_empty(rows.shape)
            self.owner = self.owner.new_empty(owner.shape)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
