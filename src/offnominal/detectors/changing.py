"""The steps by which a banked detector grows and shrinks, and goes back.

The functions here are the bodies of :class:`~offnominal.detectors.banked.Banked`'s methods of the
same names.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from offnominal.calibration import Threshold
from offnominal.detectors import indexing, measuring
from offnominal.detectors.growing import Change, Rescored, Version, What, find_reference
from offnominal.detectors.reach import NOT_COUNTED, Found, Learned, bring_back, rows_of
from offnominal.detectors.steps import plain_step, versions
from offnominal.errors import OptionError
from offnominal.images import ImageSource, content_digest, describe

if TYPE_CHECKING:
    from offnominal.detectors.banked import Banked
    from offnominal.detectors.base import Detector, OnError, Progress

__all__ = ["add", "compact", "forget", "history", "merge", "note", "undo"]


class _Before:
    """What a change is told against."""

    def __init__(self, detector: "Banked") -> None:
        self.detector = detector
        self.references = len(detector.references_)
        self.rows = detector.bank_rows
        self.threshold: Threshold | None = detector.threshold

    def change(
        self, what: What, images: Iterable[str], known: Iterable[str] = (), how: Rescored = "none"
    ) -> Change:
        now = self.detector
        return Change(
            what,
            tuple(images),
            tuple(known),
            (self.references, len(now.references_)),
            (self.rows, now.bank_rows),
            (self.threshold, now.threshold),
            "none" if now.calibration_ == "held-out" else how,
        )


def note(detector: "Banked", what: What, owners: Iterable[int], when: datetime | None) -> None:
    """Write a step into the history."""
    step = plain_step(what, owners, len(detector.references_), detector.bank_rows, when)
    detector.history_ = [*detector.history_, step]


def history(detector: "Banked") -> list[Version]:
    """The steps so far, the first one first."""
    names = {r["owner"]: r["file"] for r in [*detector.references_, *detector.forgotten_]}
    return versions(detector.history_, names)


@torch.inference_mode()
def add(
    detector: "Banked",
    images: Iterable[ImageSource],
    on_error: "OnError | None",
    progress: "Progress | None",
    when: datetime | None,
) -> Change:
    """Learn from more good images."""
    detector.load_network()
    before = _Before(detector)
    digests = {reference["digest"] for reference in detector.references_}
    first = _next_owner(detector)
    added: list[dict[str, Any]] = []
    learned: dict[int, Learned] = {}
    known: list[str] = []
    reaches = detector.reaches.copy()
    try:
        for source, image in detector._read(images, on_error):
            digest, owner = content_digest(image), first + len(added)
            if digest in digests:
                known.append(describe(source))
                continue
            digests.add(digest)
            learned[owner] = detector._learn(owner, image)
            added.append(
                {
                    "file": describe(source),
                    "digest": digest,
                    "owner": owner,
                    "size": list(image.shape[:2]),
                }
            )
            if progress:
                progress("features", len(added))
        if not added:
            return before.change("add", [], known)
        measuring.measure(detector, learned, None)
        how = measuring.grown(detector, learned, progress)
    except BaseException:
        with indexing.following(detector):
            for bank in detector._banks:
                bank.forget(range(first, first + len(added) + 1))
        detector.reaches = reaches
        raise
    detector.references_ = [*detector.references_, *added]
    note(detector, "add", learned, when)
    _finish(detector, progress)
    return before.change("add", [one["file"] for one in added], known, how)


@torch.inference_mode()
def forget(
    detector: "Banked",
    image: ImageSource | Sequence[ImageSource],
    when: datetime | None,
    progress: "Progress | None",
) -> Change:
    """Give up references, whose rows go to the attic."""
    detector.load_network()
    single = isinstance(image, str | Path | np.ndarray) or hasattr(image, "getexif")
    several = [image] if single else list(image)  # type: ignore[arg-type]  # just told apart
    found = [
        find_reference(one, detector.references_, detector.sixteen_bit)  # type: ignore[arg-type]
        for one in several
    ]
    owners = {reference["owner"] for reference in found}
    if not owners:
        raise OptionError("name at least one reference to forget")
    if len(owners) == len(detector.references_):
        raise OptionError(
            f"{found[0]['file']}: no reference would be left to compare with; add others first, "
            "or fit anew"
        )
    before = _Before(detector)
    with indexing.following(detector):
        for bank, attic in zip(detector._banks, detector._attics, strict=True):
            bring_back(attic, rows_of(bank, owners))
            bank.forget(owners)
    going = [r for r in detector.references_ if r["owner"] in owners]
    detector.references_ = [r for r in detector.references_ if r["owner"] not in owners]
    detector.forgotten_ = _in_order([*detector.forgotten_, *going])
    note(detector, "forget", sorted(owners), when)
    how = measuring.shrunk(detector, owners, progress)
    _finish(detector, progress)
    return before.change("forget", [one["file"] for one in going], how=how)


@torch.inference_mode()
def undo(detector: "Banked", progress: "Progress | None") -> Change:
    """Take the last step back."""
    if len(detector.history_) < 2:
        first = detector.history_[0]["what"] if detector.history_ else "fit"
        raise OptionError(
            f"nothing to undo: the history begins with {first}, and no step has followed"
        )
    detector.load_network()
    before = _Before(detector)
    step = detector.history_[-1]
    owners = set(step["owners"])
    everything = [*detector.references_, *detector.forgotten_]
    names = [reference["file"] for reference in everything if reference["owner"] in owners]
    if step["what"] == "forget":
        with indexing.following(detector):
            for bank, attic in zip(detector._banks, detector._attics, strict=True):
                bring_back(bank, rows_of(attic, owners))
                attic.forget(owners)
        detector.references_ = _in_order(
            [*detector.references_, *(r for r in detector.forgotten_ if r["owner"] in owners)]
        )
        detector.forgotten_ = [r for r in detector.forgotten_ if r["owner"] not in owners]
        if detector._keeps_all:
            for owner in owners & set(detector.reaches.owners):
                found = detector._reach(owner, measuring.learned_before(detector, owner))
                detector.reaches.put(owner, found)
        how = measuring.grown(detector, owners, progress)
    else:
        with indexing.following(detector):
            for bank in detector._banks:
                bank.forget(owners)
        detector.references_ = [r for r in detector.references_ if r["owner"] not in owners]
        detector.reaches.drop(owners)
        how = measuring.shrunk(detector, owners, progress)
    detector.history_ = detector.history_[:-1]
    _finish(detector, progress)
    return before.change("undo", names, how=how)


@torch.inference_mode()
def merge(
    detector: "Banked",
    other: "Detector",
    when: datetime | None,
    progress: "Progress | None",
) -> Change:
    """Take over the references of another detector."""
    theirs = _alike(detector, other)
    before = _Before(detector)
    digests = {reference["digest"] for reference in detector.references_}
    coming = [r for r in theirs.references_ if r["digest"] not in digests]
    known = [r["file"] for r in theirs.references_ if r["digest"] in digests]
    if not coming:
        return before.change("merge", [], known)
    first = _next_owner(detector)
    renumber = {one["owner"]: first + number for number, one in enumerate(coming)}
    for number, (mine, bank) in enumerate(zip(detector._banks, theirs._banks, strict=True)):
        part = rows_of(bank, renumber).to(detector._device)
        detector._restate(number, part, theirs)
        mine.extend(part, renumber)
    measured = [owner for owner in theirs.reaches.owners if owner in renumber]
    if detector._keeps_all:
        learned = {}
        for owner in measured:
            size, counted, _ = measuring.learned_before(theirs, owner)
            learned[renumber[owner]] = Learned(size, counted.to(detector._device))
        measuring.measure(detector, learned, None)
    else:
        detector.reaches.append([_moved(detector, theirs, owner, renumber) for owner in measured])
    detector.references_ = [
        *detector.references_,
        *(one | {"owner": renumber[one["owner"]]} for one in coming),
    ]
    how = measuring.grown(detector, renumber.values(), progress)
    note(detector, "merge", renumber.values(), when)
    _finish(detector, progress)
    return before.change("merge", [one["file"] for one in coming], known, how)


@torch.inference_mode()
def compact(detector: "Banked") -> Change:
    """Drop the attic, and the history that it was for."""
    detector.load_network()
    before = _Before(detector)
    gone = {reference["owner"] for reference in detector.forgotten_}
    for owner in set(detector.reaches.owners) - gone:
        # Bounds by way of rows that are dropped now take the place of the distances to them.
        detector.reaches.put(owner, measuring.settled(detector, owner))
    names = [reference["file"] for reference in detector.forgotten_]
    detector.reaches.drop(gone)
    detector.forgotten_ = []
    detector._make_attic()
    if detector.calibrated_with_ is not None and detector.calibration_ != "held-out":
        detector.calibrated_with_ = None
        measuring.put_aside(detector, [])
    detector.history_ = []
    note(detector, "compact", detector._owners, None)
    indexing.drop_forgotten(detector)
    return before.change("compact", names)


def _next_owner(detector: "Banked") -> int:
    everything = [*detector.references_, *detector.forgotten_]
    return 1 + max(int(reference["owner"]) for reference in everything)


def _in_order(references: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(references, key=lambda reference: int(reference["owner"]))


def _finish(detector: "Banked", progress: "Progress | None") -> None:
    measuring.set_thresholds(detector)
    indexing.update(detector, progress)


def _alike(detector: "Banked", other: "Detector") -> "Banked":
    """The other detector, if it goes together with this one."""
    other._check_fitted()
    if type(other) is not type(detector):
        raise OptionError(
            f"cannot merge {detector.method} and {other.method}: fit both with the same method"
        )
    theirs = other
    theirs._check_traced()
    mine, yours = detector._must_agree(), theirs._must_agree()
    differ = [
        f"{name} ({mine[name]} and {yours[name]})" for name in mine if mine[name] != yours[name]
    ]
    if differ:
        raise OptionError(
            f"the two cannot be merged, since they differ in {', '.join(differ)}: fit one of them "
            "anew with the other's settings"
        )
    return theirs


def _moved(
    detector: "Banked", theirs: "Banked", owner: int, renumber: dict[int, int]
) -> tuple[int, tuple[int, int], Found]:
    """What is known of another detector's reference, in this one's numbers."""
    device = detector._device
    there = measuring.settled(theirs, owner)
    found = Found(there.distance.to(device), there.nearest.to(device), there.term)
    owners, nearest = found.nearest[:, 0], found.nearest.clone()
    away = torch.isin(owners, owners.new_tensor(sorted(renumber)), invert=True)
    away &= owners > NOT_COUNTED
    for old, new in renumber.items():
        nearest[owners == old, 0] = new
    if away.any():
        # Its nearest rows were those of an image that this detector knows by other rows.
        found = measuring.detour(detector, renumber[owner], found, away, theirs.bank)
        nearest[away] = found.nearest[away]
    return renumber[owner], theirs.reaches.size_of(owner), found._replace(nearest=nearest)
