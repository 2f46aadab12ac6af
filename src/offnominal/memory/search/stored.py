"""Rows of a bank as tensors, decoded where they are read."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StoredTensors:
    """What :class:`~offnominal.memory.storage.StoredRows` is to arrays.

    Attributes
    ----------
    values : Tensor
        (N, D) float32, float16 or int8.
    scale : Tensor or None
        (N,) float32, of int8 rows: a row is its integers times its scale.
    """

    values: Tensor
    scale: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> Tensor:
        """A stretch of rows (n, D) float32; of float32 rows no copy."""
        if self.scale is None:
            return self.values[part].float()
        return self.values[part].float().mul_(self.scale[part][:, None])

    def take(self, index: Tensor) -> Tensor:
        """A copy of the rows ``index`` (n,) int64, as (n, D) float32."""
        picked = self.values.index_select(0, index).float()
        if self.scale is None:
            return picked
        return picked.mul_(self.scale.index_select(0, index)[:, None])
