"""The columns of a memory bank, which are buffers of its module: growing, shrinking, loading."""

from typing import Any

import torch
from torch import Tensor

from offnominal.memory.provenance import running_numbers
from offnominal.memory.room import Room


class Columns:
    """Buffers of one length, of which ``rows`` and ``owner`` give the length.

    Parameters
    ----------
    buffers : dict
        The module's own, shared with it; those that are None are left alone.
    """

    def __init__(self, buffers: dict[str, Tensor | None]) -> None:
        self.buffers = buffers
        self.rooms = {name: Room() for name, held in buffers.items() if held is not None}

    def append(self, values: dict[str, Tensor]) -> None:
        """Append (n, ...) rows to every column."""
        self.complete()
        for name, room in self.rooms.items():
            room.append(self.buffers, name, values[name])

    def keep(self, index: Tensor) -> None:
        """Reduce every column to the rows ``index`` (m,) int64, ascending."""
        for name, room in self.rooms.items():
            room.keep(self.buffers, name, index)

    def complete(self) -> None:
        """Fill in what an old file did not say: view 0, and running numbers as patches.

        Files of before views and patches were kept have only rows and owners. The patches of
        an image are then numbered in the order in which they were added.
        """
        rows, owner = self._column("rows"), self._column("owner")
        if len(owner) != len(rows):
            return  # in the middle of a load
        if len(self._column("view")) != len(rows):
            self.buffers["view"] = torch.zeros_like(owner, dtype=torch.int16)
        if len(self._column("patch")) != len(rows):
            self.buffers["patch"] = running_numbers(owner)

    def restore(self, before: dict[str, Tensor | None]) -> None:
        """Undo changes of dtype since ``before``, but not moves to a device."""
        for name in self.rooms:
            moved, held = self._column(name), before[name]
            if held is not None and moved.dtype != held.dtype:
                self.buffers[name] = held.to(moved.device)

    def receive(self, state: dict[str, Any], prefix: str) -> list[str]:
        """Make the buffers as large as those in a state dict, and complete that of an old file.

        Returns
        -------
        list of str
            What is wrong with the state dict; nothing was changed then.
        """
        rows, owner = state.get(prefix + "rows"), state.get(prefix + "owner")
        if rows is None or owner is None:
            return []  # PyTorch itself says what is missing
        state.setdefault(prefix + "view", torch.zeros_like(owner, dtype=torch.int16))
        state.setdefault(prefix + "patch", running_numbers(owner))
        given = {name: state.get(prefix + name, rows[:0]) for name in self.rooms}
        wrong = []
        for name, column in given.items():
            wanted = self._column(name)
            shape = (len(rows), *wanted.shape[1:])
            if (column.dtype, column.shape) != (wanted.dtype, shape):
                wrong.append(
                    f"{prefix}{name}: {column.dtype} {tuple(column.shape)} where this bank takes "
                    f"{wanted.dtype} {shape}"
                )
        for name, column in given.items() if not wrong else ():
            self.buffers[name] = self._column(name).new_empty(column.shape)
        return wrong

    def _column(self, name: str) -> Tensor:
        column = self.buffers[name]
        assert column is not None
        return column
