"""What the readers of all layouts share: listing files, pairing masks, dividing good images."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError
from offnominal.paths import IMAGE_SUFFIXES, walk

__all__ = ["GOOD_NAMES", "MaskFolder", "Options", "Reading", "counted", "images_below"]
__all__ += ["images_in", "listed", "slug", "subfolders", "such_as"]

GOOD_NAMES = frozenset({"good", "ok", "normal"})
"""Names, in lower case, of folders that hold good images."""

# What stands after the image's name in the name of its mask, the usual one first.
_MASK_ENDINGS = ("_mask", "", "_gt", "_label", "_segmentation", "-mask", "_ground_truth")


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
    """What a reader found: samples, and notes in words on what it decided on its own."""

    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
            self.notes.append(
                f"{category}{which.format(counted(numbers, 'good image'))}: the good images were "
                f"divided here, {train} to learn from and {len(numbers) - train} to test on, by a "
                f"hash of their names (train share {share:g}); figures from another division differ"
            )


def _unit(key: str) -> float:
    """A number in [0, 1) from a text."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / 2**48


def listed(folder: Path, wanted: Callable[[Path], bool] = Path.exists) -> list[Path]:
    """What is wanted of a folder, sorted, without hidden names; nothing if there is no folder."""
    if not folder.is_dir():
        return []
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and wanted(p))
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be listed ({error.strerror}); check the rights"
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in one, sorted, without hidden ones; none if it does not exist."""
    return listed(folder, Path.is_dir)


def images_in(folder: Path) -> list[Path]:
    """Images directly in a folder, sorted, without hidden ones; none if it does not exist."""
    return listed(folder, lambda path: path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def images_below(folder: Path) -> list[Path]:
    """Images in a folder and in all folders below it, sorted by path."""
    return sorted(walk(folder)) if folder.is_dir() else []


class MaskFolder:
    """The masks of a folder, found by the name of their image.

    An image ``a/007.png`` finds ``a/007_mask.png``, ``a/007.png``, ``a/007_GT.bmp`` and the like,
    whatever the suffix, or a folder ``a/007`` of several masks. Case does not matter. Only files
    whose name has the `ending` are masks. `anywhere`: where the places do not match, a mask of the
    right name is taken from any place, if there is only one.
    """

    def __init__(self, folder: Path, ending: str = "", anywhere: bool = False) -> None:
        self.anywhere = anywhere
        self.taken: set[Path] = set()
        self.ambiguous: list[Path] = []
        self._by_place: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        self.files = [f for f in images_below(folder) if f.stem.lower().endswith(ending)]
        for file in self.files:
            self._by_place.setdefault(_place(file.relative_to(folder)), []).append(file)
            self._by_stem.setdefault(file.stem.lower(), []).append(file)
        for home in sorted({file.parent for file in self.files} - {folder}):
            self._by_place.setdefault(home.relative_to(folder).as_posix().lower(), []).append(home)

    def find(self, relative: Path) -> Path | None:
        """The mask of an image, whose place below its own folder is given."""
        place, stem = _place(relative), relative.stem.lower()
        found = [p for ending in _MASK_ENDINGS for p in self._by_place.get(place + ending, ())]
        sure = bool(found)
        if not found and self.anywhere:
            found = [p for ending in _MASK_ENDINGS for p in self._by_stem.get(stem + ending, ())]
        if len(found) > 1:
            self.ambiguous.append(relative)
        if not found or (len(found) > 1 and not sure):
            return None
        self.taken.update(found)
        return found[0]

    def notes(self) -> list[str]:
        """What to say of masks that fit no image, or of images that several fit."""
        notes = []
        left = [f for f in self.files if f not in self.taken and f.parent not in self.taken]
        if left:
            notes.append(
                f"{counted(left, 'mask')} without an image of that name, {such_as(left)}: not used"
            )
        if self.ambiguous:
            notes.append(
                f"several masks fit {counted(self.ambiguous, 'image')}, {such_as(self.ambiguous)}: "
                "NAME_mask is taken before NAME, and none from other folders"
            )
        return notes


def _place(relative: Path) -> str:
    return relative.with_suffix("").as_posix().lower()


def counted(items: Sequence[object], noun: str) -> str:
    """``3 masks``, ``1 mask``."""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def such_as(items: Iterable[object]) -> str:
    """``such as a.png``, the first of them."""
    return f"such as {next(iter(items))}"


def slug(name: str) -> str:
    """A name that serves as a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "dataset"
