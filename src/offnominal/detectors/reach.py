"""How far the patches of references are from the rest of the bank, kept so that growing is quick.

A threshold is set from references, each scored against the bank without its own rows. With the
distance of every patch and the row it was measured to, a bank that grows or shrinks takes little:
new rows can only be nearer, so the smaller of two distances holds, and rows that go matter only to
the patches that were nearest to them.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from offnominal.detectors.thresholds import Size
from offnominal.memory import MemoryBank
from offnominal.memory.storage import Stored, encode, turn_back

__all__ = [
    "ALONE",
    "NOT_COUNTED",
    "Cells",
    "Compared",
    "Found",
    "Learned",
    "Reaches",
    "addresses",
    "as_stored",
    "bring_back",
    "part_of",
    "rows_at",
    "rows_of",
    "span",
]

NOT_COUNTED = -1  # of a patch that the mask leaves out: its score is 0 whatever the bank
ALONE = -2  # of a patch with no row of another image to be compared with


class Found(NamedTuple):
    """What one reference's patches are from the rest of the bank.

    Attributes
    ----------
    distance : Tensor of shape (cells,), float32
        One cell for each patch of each view in each bank. Infinite where there is no other image,
        0 where a patch does not count.
    nearest : Tensor of shape (cells, 2), int32
        Owner of the nearest row, and its number among that owner's rows. The owner is negative
        where there is none.
    term : float or None
        What the image score takes beside.
    """

    distance: Tensor
    nearest: Tensor
    term: float | None = None


class Learned(NamedTuple):
    """What is known of a reference once its rows are in the banks.

    Attributes
    ----------
    size : (H, W)
        Of the image.
    counted : Tensor of shape (cells,), bool
        Which of its patches the mask lets count, in the order of :class:`Cells`.
    rows : list of Tensor or None
        All patch features (n, dim) of each upright view, where the bank keeps a part of them only.
    """

    size: Size
    counted: Tensor
    rows: list[Tensor] | None = None


class Cells(NamedTuple):
    """Where the patches of one view in one bank stand in a :class:`Found`."""

    tile: int
    bank: int
    start: int
    stop: int


class Compared(NamedTuple):
    """A view's patches and their nearest rows, each a tensor of shape (gh, gw).

    Attributes
    ----------
    scores : float32
        Patch scores.
    distance : float32
        To the nearest row.
    row : int64
        Its number.
    bank : int64
        Number of the bank that it lies in.
    """

    scores: Tensor
    distance: Tensor
    row: Tensor
    bank: Tensor


class Reaches(nn.Module):
    """One :class:`Found` for each reference that thresholds are set from, in two long columns."""

    distance: Tensor
    nearest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("distance", torch.empty(0))
        self.register_buffer("nearest", torch.empty((0, 2), dtype=torch.int32))
        self.entries = []

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Owner, size of the image, cells and term of each, as plain values for the saved file."""
        return list(self._entries.values())

    @entries.setter
    def entries(self, entries: list[dict[str, Any]]) -> None:
        self._entries = {entry["owner"]: dict(entry) for entry in entries}
        stops = list(accumulate(entry["cells"] for entry in entries))
        self._cells = {
            entry["owner"]: slice(stop - entry["cells"], stop)
            for entry, stop in zip(entries, stops, strict=True)
        }

    @property
    def owners(self) -> list[int]:
        """Whose they are."""
        return list(self._entries)

    def size_of(self, owner: int) -> Size:
        """Size (H, W) of an image."""
        height, width = self._entries[owner]["size"]
        return height, width

    def of(self, owner: int) -> Found:
        """What one reference's patches are from; views of the columns."""
        here = self._cells[owner]
        return Found(self.distance[here], self.nearest[here], self._entries[owner]["term"])

    def put(self, owner: int, found: Found) -> None:
        """Replace what is known of a reference."""
        here = self._cells[owner]
        self.distance[here] = found.distance
        self.nearest[here] = found.nearest
        self._entries[owner]["term"] = found.term

    def append(self, several: Sequence[tuple[int, Size, Found]]) -> None:
        """Add further references."""
        self.distance = torch.cat([self.distance, *(f.distance for _, _, f in several)])
        self.nearest = torch.cat([self.nearest, *(f.nearest for _, _, f in several)])
        self.entries += [
            {"owner": owner, "size": list(size), "cells": len(found.distance), "term": found.term}
            for owner, size, found in several
        ]

    def drop(self, owners: Collection[int]) -> None:
        """Forget some references."""
        kept = [self.of(owner) for owner in self.owners if owner not in owners]
        self.distance = torch.cat([self.distance[:0], *(found.distance for found in kept)])
        self.nearest = torch.cat([self.nearest[:0], *(found.nearest for found in kept)])
        self.entries = [entry for entry in self.entries if entry["owner"] not in owners]

    def copy(self) -> "Reaches":
        """Another that shares no state that changes."""
        other = Reaches()
        other.distance, other.nearest = self.distance.clone(), self.nearest.clone()
        other.entries = self.entries
        return other


def as_stored(rows: Tensor, storage: str) -> Tensor:
    """Rows (n, dim) as a bank would give them back.

    A reference's own patches are looked up as the bank keeps them. A new part's must be rounded
    alike, or its scores would not be drawn as theirs are, and no promise would hold.
    """
    if storage == "fp32":
        return rows
    stored = Stored(*encode(rows, storage))[:]
    return turn_back(stored) if storage == "int8" else stored


def span(bank: MemoryBank, owner: int) -> tuple[int, int]:
    """First row and end of an image's rows, which lie together and in the order of the images."""
    start, stop = torch.searchsorted(bank.owner, bank.owner.new_tensor([owner, owner + 1])).tolist()
    return start, stop


def addresses(bank: MemoryBank, rows: Tensor) -> Tensor:
    """Owner of each row (n,), and its number among that owner's rows: (n, 2) int32."""
    owner = bank.owner[rows]
    return torch.stack([owner, (rows - torch.searchsorted(bank.owner, owner)).int()], 1)


def rows_at(bank: MemoryBank, places: Tensor) -> Tensor:
    """Row numbers (n,) of what :func:`addresses` gives."""
    owner = places[:, 0].contiguous()
    return torch.searchsorted(bank.owner, owner) + places[:, 1]


def part_of(bank: MemoryBank, index: Tensor | slice) -> MemoryBank:
    """A bank of some rows, to the bit; of a slice it shares the memory."""
    part = MemoryBank(bank.dim, bank.memory, bank.precision, bank.storage)
    for name, column in bank.named_buffers():
        setattr(part, name, column[index])
    return part


def rows_of(bank: MemoryBank, owners: Iterable[int]) -> MemoryBank:
    """A bank of some images' rows."""
    wanted = torch.tensor(sorted(owners), dtype=torch.int32, device=bank.owner.device)
    return part_of(bank, torch.isin(bank.owner, wanted).nonzero()[:, 0])


def bring_back(bank: MemoryBank, returning: MemoryBank) -> None:
    """Put rows back among those of the other images, so that images are in their order again."""
    pieces: list[MemoryBank] = []
    done = 0
    for owner in torch.unique(returning.owner).tolist():
        start, _ = span(bank, owner)
        pieces += [
            part_of(bank, slice(done, start)),
            part_of(returning, slice(*span(returning, owner))),
        ]
        done = start
    pieces.append(part_of(bank, slice(done, len(bank))))
    whole = part_of(bank, slice(0, 0))
    for piece in pieces:
        whole.extend(piece)
    bank.index = None
    for name, column in whole.named_buffers():
        setattr(bank, name, column)
