"""Room for a table's columns to grow, without the old and the new in memory at once."""

import math
import mmap
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Room:
    """Memory behind one buffer of a module; the buffer is the used part of it.

    Appending costs O(1) a row, since the room grows by half. On a CPU under Linux it is moved
    by the page tables, not copied, and what is not used takes no memory: a buffer of 2 GB grows
    within 2 GB. Elsewhere, and while somebody else still holds the buffer, growing copies.

    The buffer may be replaced from outside at any time (a move, a load, an assignment): the next
    append then copies it into new room, and never writes into what was handed out.
    """

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        self._whole: Tensor | None = None
        self._used: Tensor | None = None

    def __reduce__(self) -> tuple[type["Room"], tuple[()]]:
        """A copy of the module starts with no room, and makes it when it grows."""
        return Room, ()

    def append(self, buffers: dict[str, Any], name: str, values: Tensor) -> None:
        """Lengthen ``buffers[name]`` by ``values``, converted to its dtype and device.

        Parameters
        ----------
        buffers : dict
            Of the module, where nothing but the module should hold the tensor ``name``.
        name : str
        values : Tensor
            (n, ...), of the same width as the buffer.
        """
        start = len(buffers[name])
        stop = start + len(values)
        whole = self._whole
        if whole is None or buffers[name] is not self._used or stop > len(whole):
            del whole
            whole = self._grow(buffers, name, max(stop, start * 3 // 2))
        whole[start:stop] = values
        self._whole = whole
        self._use(buffers, name, stop)

    def keep(self, buffers: dict[str, Any], name: str, index: Tensor, block: int = 2**16) -> None:
        """Reduce ``buffers[name]`` to the rows ``index`` (m,) int64, ascending."""
        if not self._alone(buffers, name):
            held = buffers[name]
            self._whole = self._allocate(held, len(index))
            for first in range(0, len(index), block):
                part = index[first : first + block]
                torch.index_select(held, 0, part, out=self._whole[first : first + len(part)])
            self._use(buffers, name, len(index))
            return
        whole = self._whole
        assert whole is not None
        for first in range(0, len(index), block):
            part = index[first : first + block]
            # Rows only ever move down, so those still to be read are not overwritten.
            whole[first : first + len(part)] = whole[part]
        self._use(buffers, name, len(index))

    def _use(self, buffers: dict[str, Any], name: str, size: int) -> None:
        assert self._whole is not None
        self._used = buffers[name] = self._whole[:size]

    def _grow(self, buffers: dict[str, Any], name: str, size: int) -> Tensor:
        used, like = len(buffers[name]), buffers[name].new_empty((0, *buffers[name].shape[1:]))
        if self._alone(buffers, name):
            assert self._map is not None
            self._used = self._whole = None
            buffers[name] = like
            self._map.resize(_bytes(like, size))
            return self._view(like, size)
        held = buffers[name]
        whole = self._allocate(held, size)
        whole[:used] = held
        return whole

    def _allocate(self, like: Tensor, size: int) -> Tensor:
        if like.device.type != "cpu":
            self._map = None
            return like.new_empty((size, *like.shape[1:]))
        flags = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANON}
        self._map = mmap.mmap(-1, _bytes(like, size), **flags)
        return self._view(like, size)

    def _view(self, like: Tensor, size: int) -> Tensor:
        # By way of NumPy, whose arrays keep the map from moving as long as they live.
        assert self._map is not None
        raw = torch.from_numpy(np.frombuffer(self._map, np.uint8, size * _width(like)))
        return raw.view(like.dtype).view(size, *like.shape[1:])

    def _alone(self, buffers: dict[str, Any], name: str) -> bool:
        """Whether nobody else holds the memory, so that it may be moved or overwritten."""
        if self._map is None or buffers[name] is not self._used:
            return False
        assert self._whole is not None
        like = self._whole.new_empty((0, *self._whole.shape[1:]))
        used, size = len(buffers[name]), len(self._whole)
        self._used = self._whole = buffers[name] = None
        try:
            self._map.resize(len(self._map))
        except (BufferError, OSError, SystemError, ValueError):
            alone = False
        else:
            alone = True
        self._whole = self._view(like, size)
        self._use(buffers, name, used)
        return alone


def _width(like: Tensor) -> int:
    """Bytes of a row."""
    return like.element_size() * math.prod(like.shape[1:])


def _bytes(like: Tensor, size: int) -> int:
    """Bytes of a map: one to spare, since a map cannot be empty."""
    return size * _width(like) + 1
