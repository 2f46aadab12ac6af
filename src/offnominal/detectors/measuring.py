"""Thresholds of banked detectors: references against the bank without their own rows.

Nearest-neighbour distances only shrink as a bank grows, so scores against a bank without one image
are at or above those against the whole, and the conformal promise holds.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from offnominal.detectors.growing import Rescored
from offnominal.detectors.reach import (
    ALONE,
    NOT_COUNTED,
    Cells,
    Found,
    Learned,
    addresses,
    rows_at,
    rows_of,
    span,
)
from offnominal.detectors.thresholds import Scored, pack, unpack
from offnominal.memory import MemoryBank

if TYPE_CHECKING:
    from offnominal.detectors.banked import Banked
    from offnominal.detectors.base import Progress
    from offnominal.detectors.places import Layout

__all__ = [
    "cells_of",
    "detour",
    "grown",
    "learned_before",
    "measure",
    "own_rows",
    "reach",
    "set_thresholds",
    "settled",
    "shrunk",
]


_TOGETHER = 2**14  # patches that are looked up at once
_AHEAD = (16, 128)  # nearest rows among which one of another image is looked for


def cells_of(detector: "Banked", layout: "Layout") -> list[Cells]:
    """Where every view's patches stand in a :class:`Found`: view by view, bank by bank."""
    cells: list[Cells] = []
    start = 0
    for tile in range(len(layout.frames)):
        for bank, count in enumerate(detector._counts(layout)):
            cells.append(Cells(tile, bank, start, start + count))
            start += count
    return cells


def own_rows(detector: "Banked", owner: int, cells: Cells) -> tuple[Tensor, Tensor]:
    """Rows of an upright view of a reference, and their places among its cells."""
    bank = detector._banks[cells.bank]
    start, stop = span(bank, owner)
    rows = start + (bank.view[start:stop] == cells.tile).nonzero()[:, 0]
    return rows, cells.start + bank.patch[rows].long()


def search_others(
    detector: "Banked",
    number: int,
    queries: Tensor,
    skip: int | None,
    bank: MemoryBank | None = None,
) -> tuple[Tensor, Tensor]:
    """Distances (n,) of rows to the nearest of the others, and the addresses (n, 2) of those."""
    bank = bank or detector._banks[number]
    start, stop = (0, 0) if skip is None else span(bank, skip)
    left = len(bank) - (stop - start)
    if not left:
        alone = torch.full((len(queries), 2), ALONE, dtype=torch.int32, device=queries.device)
        return queries.new_full((len(queries),), torch.inf), alone
    squared, rows = bank.search(queries, detector._neighbours(number, left), skip)
    return detector._distance(number, squared), addresses(bank, rows[:, 0])


def reach(detector: "Banked", owner: int, learned: Learned) -> Found:
    """Measure a reference, whose rows are in the banks, against the others."""
    count, device = len(learned.counted), detector._device
    distance = torch.zeros(count, device=device)
    nearest = torch.full((count, 2), NOT_COUNTED, dtype=torch.int32, device=device)
    for cells in cells_of(detector, detector._layout(learned.size)):
        rows, places = own_rows(detector, owner, cells)
        kept = learned.counted[places]
        rows, places = rows[kept], places[kept]
        if len(rows):
            queries = detector._banks[cells.bank].take(rows)
            found = search_others(detector, cells.bank, queries, owner)
            distance[places], nearest[places] = found
    return Found(distance, nearest)


def learned_before(detector: "Banked", owner: int) -> Learned:
    """What was known of a reference when it was learned, as far as it can be measured anew."""
    counted = detector.reaches.of(owner).nearest[:, 0] != NOT_COUNTED
    return Learned(detector.reaches.size_of(owner), counted)


def measure(
    detector: "Banked", learned: Mapping[int, Learned], progress: "Progress | None"
) -> None:
    """Measure new references against all others, and keep what was found."""
    found = []
    for number, (owner, one) in enumerate(learned.items(), start=1):
        found.append((owner, one.size, detector._reach(owner, one)))
        start, stop = span(detector.bank, owner)
        if progress and stop - start < len(detector.bank):
            progress("threshold", number)
    detector.reaches.append(found)


def grown(
    detector: "Banked", owners: Collection[int], progress: "Progress | None" = None
) -> Rescored:
    """Bring the other references up to date with rows that came."""
    older = _measured(detector, owners)
    if not detector._keeps_all or not older:
        return "none" if not older else "kept"
    if not detector._only_nearest:
        return _anew(detector, older, progress)
    fresh = [rows_of(bank, owners) for bank in detector._banks]
    for batch in _batches(detector, older, lambda found: found.nearest[:, 0] != NOT_COUNTED):
        queries = detector._banks[batch.bank].take(torch.cat([one.rows for one in batch.held]))
        came = search_others(detector, batch.bank, queries, None, fresh[batch.bank])
        for one, distance, nearest in batch.split(*came):
            nearer = distance < one.found.distance[one.places]
            # Views of the columns: what is written here is kept.
            one.found.distance[one.places[nearer]] = distance[nearer]
            one.found.nearest[one.places[nearer]] = nearest[nearer]
        if progress:
            progress("threshold", batch.done)
    return "affected"


def shrunk(
    detector: "Banked", owners: Collection[int], progress: "Progress | None" = None
) -> Rescored:
    """Bring the other references up to date with rows that went."""
    others = _measured(detector, owners)
    if not detector._keeps_all or not others:
        return "none" if not others else "kept"
    if not detector._only_nearest:
        return _anew(detector, others, progress)
    gone = torch.tensor(sorted(owners), dtype=torch.int32, device=detector._device)
    for batch in _batches(detector, others, lambda found: torch.isin(found.nearest[:, 0], gone)):
        queries = detector._banks[batch.bank].take(torch.cat([one.rows for one in batch.held]))
        left = _search_without_own(detector, batch, queries)
        for one, distance, nearest in batch.split(*left):
            one.found.distance[one.places] = distance
            one.found.nearest[one.places] = nearest
        if progress:
            progress("threshold", batch.done)
    return "affected"


class _Held(NamedTuple):
    """Some patches of a reference in one bank."""

    owner: int
    found: Found
    rows: Tensor
    places: Tensor


class _Batch(NamedTuple):
    """Patches of several references in one bank, to be looked up together."""

    bank: int
    held: list[_Held]
    done: int

    def split(self, distance: Tensor, nearest: Tensor) -> Iterator[tuple[_Held, Tensor, Tensor]]:
        """What was found for each reference."""
        counts = [len(one.rows) for one in self.held]
        parts = torch.split(distance, counts), torch.split(nearest, counts)
        return zip(self.held, *parts, strict=True)


def _batches(
    detector: "Banked", owners: list[int], wanted: Callable[[Found], Tensor]
) -> Iterator[_Batch]:
    """The patches of references that a mask of their cells picks, so many at a time."""
    waiting: list[list[_Held]] = [[] for _ in detector._banks]
    for done, owner in enumerate(owners, start=1):
        found = detector.reaches.of(owner)
        mask = wanted(found)
        for cells in cells_of(detector, detector._layout(detector.reaches.size_of(owner))):
            if mask[cells.start : cells.stop].any():
                rows, places = own_rows(detector, owner, cells)
                kept = mask[places]
                waiting[cells.bank].append(_Held(owner, found, rows[kept], places[kept]))
        for bank, held in enumerate(waiting):
            enough = done == len(owners) or sum(len(one.rows) for one in held) >= _TOGETHER
            if held and enough:
                yield _Batch(bank, held, done)
                waiting[bank] = []


def _search_without_own(
    detector: "Banked", batch: _Batch, queries: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`search_others` for patches of several references, each without its own rows.

    The first of the nearest rows that is not a patch's own image's is the nearest of the others.
    Only where very many of them are its own is each image searched for by itself.
    """
    bank = detector._banks[batch.bank]
    counts = torch.tensor([len(one.rows) for one in batch.held])
    owners = torch.tensor([one.owner for one in batch.held], dtype=torch.int32)
    owner = owners.repeat_interleave(counts).to(queries.device)
    distance = queries.new_empty(len(queries))
    nearest = torch.empty((len(queries), 2), dtype=torch.int32, device=queries.device)
    left = torch.arange(len(queries), device=queries.device)
    for ahead in _AHEAD:
        squared, rows = bank.search(queries[left], min(ahead, len(bank)))
        others = bank.owner[rows] != owner[left, None]
        first = others.int().argmax(1, keepdim=True)
        # Where none is another image's these are wrong, and are found in the next round.
        distance[left] = detector._distance(batch.bank, squared.gather(1, first))
        nearest[left] = addresses(bank, rows.gather(1, first)[:, 0])
        left = left[~others.any(1)]
        if not len(left):
            return distance, nearest
    for one in torch.unique(owner[left]).tolist():
        here = left[owner[left] == one]
        distance[here], nearest[here] = search_others(detector, batch.bank, queries[here], one)
    return distance, nearest


def _measured(detector: "Banked", without: Collection[int]) -> list[int]:
    """References that thresholds are set from, but for some and those forgotten."""
    known = set(detector._owners) - set(without)
    return [owner for owner in detector.reaches.owners if owner in known]


def _anew(detector: "Banked", owners: list[int], progress: "Progress | None") -> Rescored:
    for number, owner in enumerate(owners, start=1):
        found = detector._reach(owner, learned_before(detector, owner))
        detector.reaches.put(owner, found)
        if progress:
            progress("threshold", number)
    return "all"


def settled(detector: "Banked", owner: int) -> Found:
    """What a reference's patches are from the rest of the bank as it now is."""
    found = detector.reaches.of(owner)
    if detector._keeps_all:
        return found
    gone = [reference["owner"] for reference in detector.forgotten_]
    away = torch.isin(found.nearest[:, 0], found.nearest.new_tensor(gone))
    if not away.any():
        return found
    [attic] = detector._attics
    return detour(detector, owner, found, away, attic)


def detour(detector: "Banked", owner: int, found: Found, away: Tensor, source: MemoryBank) -> Found:
    """Bound distances to rows that now lie in ``source``: by way of them to rows of the bank.

    Where the bank keeps only a part of a reference's rows, its distances cannot be measured again.
    But the way from a patch to its former nearest row and on to the nearest that is left is no
    shorter than the direct one, so the bound is never too low.
    """
    places, inverse = torch.unique(found.nearest[away], dim=0, return_inverse=True)
    queries = source.take(rows_at(source, places.to(source.owner.device)))
    start, stop = span(detector.bank, owner)
    if stop - start == len(detector.bank):
        return found._replace(distance=torch.full_like(found.distance, torch.inf))
    squared, rows = detector.bank.search(queries, 1, owner)
    gap, nearest = squared[:, 0].sqrt(), addresses(detector.bank, rows[:, 0])
    return detector._bounded(found, away, gap[inverse], nearest[inverse])


def set_thresholds(detector: "Banked") -> None:
    """Set the thresholds from the references, or from held-out scores that still hold."""
    gone = {reference["owner"] for reference in detector.forgotten_}
    if detector.calibrated_with_ is not None:
        if set(detector.calibrated_with_) <= set(detector._owners):
            if detector.calibration_ != "held-out":
                detector._set_good(unpack(detector.aside_patches_, detector.aside_), "held-out")
                put_aside(detector, [])
            return
        if detector.calibration_ == "held-out":
            # A smaller bank would score the held-out images higher than it once did.
            put_aside(detector, unpack(detector.good_patches_, detector.good_))
    scored = []
    for owner in detector.reaches.owners:
        if owner in gone:
            continue
        found = settled(detector, owner)
        if bool(found.distance.isfinite().all()):
            size = detector.reaches.size_of(owner)
            layout = detector._layout(size)
            merged = detector._joined(layout, found.distance)
            scored.append(Scored(merged, size, layout.views.cover, found.term))
    detector._set_references(scored)


def put_aside(detector: "Banked", scored: list[Scored]) -> None:
    """Keep held-out patch scores that are not in force; none: keep none."""
    patches, detector.aside_ = pack(scored)
    detector.aside_patches_ = patches.to(detector._device)
