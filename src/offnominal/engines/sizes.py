"""One graph for all sizes, or one that is made for a size: what engines keep of each.

A graph that knows its size runs up to a third faster, and takes a moment to be made; one for any
size is there at once for each of a hundred shapes.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["BySize", "Size"]

Size = tuple[int, int]
Made = TypeVar("Made")

_ROOM = 2**28  # bytes of graphs that are made for a size
_MOST = 8
_OFTEN = 50  # a size that came so often is worth a graph of its own


class BySize(Generic[Made]):
    """Graphs by the size of what they take.

    The first size has its own; another one that of any size, until it has come fifty times.

    Parameters
    ----------
    make : callable
        Gives a graph for a size, or for any where it is None.
    weight : int
        Bytes that a graph takes.
    """

    def __init__(self, make: Callable[[Size | None], Made], weight: int) -> None:
        self._make = make
        self._most = max(1, min(_MOST, _ROOM // max(weight, 1)))
        self._own: dict[Size, Made] = {}
        self._seen: dict[Size, int] = {}
        self._any: Made | None = None
        self._making = threading.RLock()  # of what several threads want one is made

    def prepare(self, size: Size) -> None:
        """Make the first graph, for a size that is about to come."""
        with self._making:
            if not self._own:
                self._own[size] = self._make(size)

    def __getitem__(self, size: Size) -> Made:
        """The graph that takes a size."""
        if size in self._own:
            return self._own[size]
        with self._making:
            return self._found(size)

    def _found(self, size: Size) -> Made:
        if size in self._own:
            return self._own[size]
        self._seen[size] = self._seen.get(size, 0) + 1
        often = self._seen[size] >= _OFTEN or not self._own
        if often and len(self._own) < self._most:
            self._own[size] = self._make(size)
            return self._own[size]
        if self._any is None:
            self._any = self._make(None)
        return self._any
