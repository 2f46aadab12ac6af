"""The search in PyTorch: on a CPU over the bank's own memory, on CUDA over one copy of it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offnominal.memory.search.bound import BlockCache
from offnominal.memory.search.cutting import Spans
from offnominal.memory.search.find import find
from offnominal.memory.search.stored import StoredTensors
from offnominal.memory.storage import StoredRows


class TensorSearch:
    """Searches among some rows, which must not change.

    Parameters
    ----------
    rows : StoredRows
        (N, D).
    device : str
        Where they are searched.
    precision : str
        See :class:`~offnominal.memory.MemoryBank`.
    """

    def __init__(self, rows: StoredRows, device: str, precision: str) -> None:
        self._device, self._precision = torch.device(device), precision
        scale = None if rows.scale is None else self._tensor(rows.scale)
        self._rows = StoredTensors(self._tensor(rows.values), scale)
        self._cache = BlockCache()

    def find(
        self, queries: NDArray[np.float32], k: int, spans: Spans, memory: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As :meth:`MemoryBank.search`, of queries (Q, D) as rows are stored."""
        # Autocast would change the format of the products under the bounds' feet.
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            asked = self._tensor(queries)
            found = find(self._rows, asked, k, spans, self._precision, memory, self._cache)
        distances, index = (each.cpu().numpy() for each in found)
        return distances, index

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # An inference tensor does not tell whether it was changed, and so could not be cached.
        with torch.inference_mode(False):
            return torch.from_numpy(_as_writable(array)).to(self._device)


def _as_writable(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory, as PyTorch wants it; nothing here writes into it."""
    if array.flags.writeable and array.flags.aligned:
        return array
    return np.asarray(_Memory(array)) if array.size else array.copy()


class _Memory:
    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # so that its memory stays
        told = array.__array_interface__
        self.__array_interface__ = {**told, "data": (told["data"][0], False)}
