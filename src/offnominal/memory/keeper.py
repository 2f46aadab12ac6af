"""What a bank keeps of its rows for the search, and that it is of the rows as they are."""

import threading
import weakref

from torch import Tensor

from offnominal.memory.screen import KeptBlocks
from offnominal.memory.sketch import Sketch, fast_integer_products
from offnominal.memory.storage import Stored

__all__ = ["SearchKeeper", "room_for_blocks"]

# Rows, and their length, below which sketches save too little.
_FEWEST, _SHORTEST = 2**16, 96
# Pairs of a query and a row that are compared in the time that it takes to make the sketches: so
# many for each row, and so many for finding the directions.
_PER_ROW, _ONCE = 512, 2**26
# Of the memory of a search, in eighths.
_SHARE = 7


def room_for_blocks(memory: int) -> int:
    """Bytes of a search's memory that encoded blocks of the rows may keep."""
    return memory // 4


class SearchKeeper:
    """What a search has made of the rows of a bank and the next one can use.

    These are sketches, made when searching without them has cost as much as making them, or
    blocks encoded for products. Both are derived from the rows: never saved, and no part of the
    result of a search.
    """

    def __init__(self) -> None:
        # Searches may run side by side; only one of them makes the sketches.
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._pairs = 0
        # Searches in which the sketches did not pay, in a row, and for how many they are left out.
        self._misses = self._pause = 0
        self._sketch: Sketch | None = None
        self._blocks: KeptBlocks | None = None
        # Weak, since nobody else must hold the rows when they grow.
        self._rows: weakref.ref[Tensor] | None = None
        self._version = 0

    def __reduce__(self) -> tuple[type["SearchKeeper"], tuple[()]]:
        """A copy of the bank makes its own."""
        return SearchKeeper, ()

    def valid(self, held: Tensor) -> bool:
        """Whether what is known is of this very tensor as it is now."""
        if self._rows is None or self._rows() is not held:
            return False
        return self._version == held._version

    def follow(self, held: Tensor, kept: Tensor | None = None) -> None:
        """Go on with another tensor: the same rows and more, or those ``kept`` (m,) int64."""
        if kept is not None and self._sketch is not None:
            self._sketch.keep(kept)
        self._blocks = None
        self._rows, self._version = weakref.ref(held), held._version

    def sketch(
        self, rows: Tensor | Stored, queries: int, memory: int, at_once: bool = False
    ) -> Sketch | None:
        """Sketches of all rows; None where they do not pay or fit in.

        Parameters
        ----------
        rows : Tensor or Stored
            (N, D) float32.
        queries : int
            How many there are to search for.
        memory : int
            Bytes of the search.
        at_once : bool
            Make them whatever it costs.
        """
        held = rows if isinstance(rows, Tensor) else rows.rows
        # PyTorch does not count changes in place of an inference tensor.
        if held.device.type != "cpu" or held.is_inference() or not fast_integer_products():
            return None
        with self._lock:
            return self._current(rows, held, queries, memory, at_once)

    def _current(
        self, rows: Tensor | Stored, held: Tensor, queries: int, memory: int, at_once: bool
    ) -> Sketch | None:
        if not self.valid(held):
            self._start()
            self.follow(held)
        self._pairs += queries * len(rows)
        self._pause = max(0, self._pause - 1)
        if not at_once and (
            self._pause
            or len(rows) < _FEWEST
            or rows.shape[1] < _SHORTEST
            or 8 * Sketch.length(rows.shape[1]) * len(rows) > _SHARE * memory
            or (self._sketch is None and self._pairs < _PER_ROW * len(rows) + _ONCE)
        ):
            return None
        if self._sketch is None:
            self._sketch = Sketch(rows)
        elif len(self._sketch.codes) < len(rows):
            self._sketch.extend(rows)
        return self._sketch

    def blocks(
        self, rows: Tensor | Stored, spans: list[tuple[int, int]], memory: int
    ) -> KeptBlocks | None:
        """Room for encoded blocks of all rows; None where some are left out, or too many there.

        Parameters
        ----------
        rows : Tensor or Stored
            (N, D) float32.
        spans : list of (int, int)
            Stretches of rows to search.
        memory : int
            Bytes of the search.
        """
        held = rows if isinstance(rows, Tensor) else rows.rows
        if held.device.type != "cpu" or held.is_inference() or spans != [(0, len(rows))]:
            return None
        room = room_for_blocks(memory)
        if 2 * rows.shape[1] * len(rows) > room:
            return None
        with self._lock:
            if not self.valid(held):
                self._start()
                self.follow(held)
            if self._blocks is None:
                self._blocks = KeptBlocks(room)
            return self._blocks

    def note(self, paid: bool) -> None:
        """Take notice of whether the sketches paid in a search; else do without for a while."""
        self._misses = 0 if paid else self._misses + 1
        self._pause = 0 if paid else 2**self._misses
