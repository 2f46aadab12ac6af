"""What the readers of all layouts share: listing files, pairing masks, dividing good images."""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError
from offnominal.paths import FOUND_SUFFIXES, IMAGE_SUFFIXES, PassedOver, is_kept_by_system, walk

__all__ = ["GOOD_NAMES", "MASK_SUFFIXES", "Options", "Reading", "counted", "images_below"]
__all__ += ["images_in", "listed", "slug", "subfolders", "such_as"]

GOOD_NAMES = frozenset({"good", "ok", "normal"})
"""Names, in lower case, of folders that hold good images."""

MASK_SUFFIXES = IMAGE_SUFFIXES | {".gif", ".pgm", ".pbm"}
"""Of masks, in lower case."""


@dataclass(frozen=True)
class Options:
    """What a reader is asked for."""

    name: str  # of the data set; also the category where a layout has none of its own
    layout: str  # to read it in; for a medical set, the preset's name
    only: frozenset[str] | None = None  # categories wanted; None for all
    train_share: float = 0.5  # of the good images, where the layout does not say which to learn
    frame_step: int = 1  # take every n-th frame of a clip

    def wants(self, category: str) -> bool:
        """Whether a category is asked for."""
        return self.only is None or category in self.only


@dataclass
class Reading:
    """What a reader found: samples, notes in words on what it decided on its own, other files."""

    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passed: PassedOver = field(default_factory=PassedOver)

    def divide(self, key: Callable[[Sample], str], share: float, which: str = "") -> None:
        """Give the good images without a split one, by category, with a note.

        An image's side depends on the SHA-256 of its key alone, so that adding images does not move
        the others: of the file's place in the data set, or of what must stay together. Only where a
        side would stay empty does the nearest image change sides. About `share` is to learn from.
        After the category's name the note says `which`; ``{}`` becomes the number of images.
        """
        undivided: dict[str, list[int]] = {}
        for number, sample in enumerate(self.samples):
            if not sample.split:
                undivided.setdefault(sample.category, []).append(number)
        for category, numbers in sorted(undivided.items()):
            places = [_unit(key(self.samples[number])) for number in numbers]
            distinct = sorted(set(places))
            border = share
            if 0 < share < 1 and len(distinct) == 1:
                border = 1.0
            elif 0 < share < 1:
                # Half-open, so that a border on the largest place leaves that one for testing.
                border = min(max(share, (distinct[0] + distinct[1]) / 2), distinct[-1])
            train = sum(place < border for place in places)
            for number, place in zip(numbers, places, strict=True):
                split = "train" if place < border else "test"
                self.samples[number] = replace(self.samples[number], split=split)
            if not 0 < share < 1:
                continue  # all on one side, as was asked for
            self.notes.append(
                f"{category}{which.format(counted(numbers, 'good image'))}: the good images were "
                f"divided here, {train} to learn from and {len(numbers) - train} to test on, by a "
                f"hash of their names (train share {share:g}); figures from another division differ"
            )


def _unit(key: str) -> float:
    """A number in [0, 1) from a text."""
    return int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:6]) / 2**48


def listed(folder: Path, wanted: Callable[[Path], bool] = Path.exists) -> list[Path]:
    """What is wanted of a folder, sorted; nothing if there is no folder.

    Hidden names do not count, nor folders where systems keep thumbnails and what was thrown away.
    """
    if not folder.is_dir():
        return []
    try:
        return sorted(p for p in folder.iterdir() if not is_kept_by_system(p.name) and wanted(p))
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be listed ({error.strerror}); check the rights"
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in one, sorted, without hidden ones; none if it does not exist."""
    return listed(folder, Path.is_dir)


def images_in(
    folder: Path,
    passed: PassedOver | None = None,
    suffixes: Collection[str] = FOUND_SUFFIXES,
) -> list[Path]:
    """Images directly in a folder, sorted, as `walk` has them; none if it does not exist."""
    return sorted(walk(folder, passed, suffixes, deep=False)) if folder.is_dir() else []


def images_below(
    folder: Path,
    passed: PassedOver | None = None,
    suffixes: Collection[str] = FOUND_SUFFIXES,
) -> list[Path]:
    """Images in a folder and in all folders below it, sorted by path."""
    return sorted(walk(folder, passed, suffixes)) if folder.is_dir() else []


def counted(items: Sequence[object], noun: str) -> str:
    """``3 masks``, ``1 mask``."""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def such_as(items: Iterable[object]) -> str:
    """``such as a.png, b.png``, the first of them."""
    return f"such as {', '.join(map(str, islice(items, 3)))}"


def slug(name: str) -> str:
    """A name that serves as a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "dataset"
