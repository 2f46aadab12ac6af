"""Which search a process uses: that in PyTorch where it is there, otherwise that in NumPy."""

import sys
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from offnominal.extras import is_there
from offnominal.memory.search.arrays import ArraySearch
from offnominal.memory.storage import StoredRows

if TYPE_CHECKING:
    from offnominal.memory.search.tensors import TensorSearch

__all__ = ["ChosenSearch", "keep_torch_out"]

_IMPORT = 4.0  # seconds that importing PyTorch takes, and a little more
_KEPT_OUT = threading.Event()


def keep_torch_out() -> None:
    """From now on no search of this process imports PyTorch: an exported model is judged by."""
    _KEPT_OUT.set()


class ChosenSearch:
    """The search among one bank's rows as they are, kept with what it keeps of them.

    PyTorch's products in bfloat16 are fast, but to import it takes longer than most searches. So
    where it is installed, and the processor has the instructions, it is imported once searches in
    NumPy have taken about as long as that: by the main thread, before a search, and never in a
    process that judges by an exported model, or in others' threads, as a server has them.
    """

    def __init__(self) -> None:
        self._made: tuple[NDArray[Any], ArraySearch | TensorSearch] | None = None

    def __reduce__(self) -> tuple[type["ChosenSearch"], tuple[()]]:
        """A copy of the bank makes its own."""
        return ChosenSearch, ()

    def forget(self) -> None:
        """Rows were changed in place, or are to be searched elsewhere."""
        self._made = None

    def among(self, rows: StoredRows, device: str, precision: str) -> "ArraySearch | TensorSearch":
        """What searches among these rows on a device; see :class:`~offnominal.MemoryBank`."""
        with_torch = _is_imported() or device != "cpu" or self._pays()
        if self._made is not None:
            values, known = self._made
            if values is rows.values and isinstance(known, ArraySearch) != with_torch:
                return known
        made = _in_torch(rows, device, precision) if with_torch else ArraySearch(rows)
        self._made = rows.values, made
        return made

    def _pays(self) -> bool:
        """Whether searches have taken so long that importing PyTorch is worth it, and it can be."""
        known = self._made[1] if self._made is not None else None
        if not isinstance(known, ArraySearch) or known.seconds < _IMPORT:
            return False
        if _KEPT_OUT.is_set() or threading.current_thread() is not threading.main_thread():
            return False
        return _has_fast_torch()


def _is_imported() -> bool:
    """Whether PyTorch is there as a whole: another thread may be importing it at this moment."""
    torch = sys.modules.get("torch")
    spec = getattr(torch, "__spec__", None)
    return torch is not None and not getattr(spec, "_initializing", False)


@cache
def _has_fast_torch() -> bool:
    from offnominal.engines.machine import has_bf16

    return is_there("torch") and has_bf16()


def _in_torch(rows: StoredRows, device: str, precision: str) -> "TensorSearch":
    from offnominal.memory.search.tensors import TensorSearch

    return TensorSearch(rows, device, precision)
