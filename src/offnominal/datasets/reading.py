"""What the readers of all layouts share: listing files, pairing masks, dividing good images."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError
from offnominal.paths import IMAGE_SUFFIXES

__all__ = [
    "GOOD_NAMES",
    "MaskFolder",
    "Options",
    "Reading",
    "divide",
    "images_below",
    "images_in",
    "slug",
    "subfolders",
    "such_as",
]

T = TypeVar("T")

GOOD_NAMES = frozenset({"good", "ok", "normal"})
"""Names, in lower case, of folders that hold good images."""

# What stands after the image's name in the name of its mask, the usual one first.
_MASK_ENDINGS = ("_mask", "", "_gt", "_label", "_segmentation", "-mask", "_ground_truth")


@dataclass(frozen=True)
class Options:
    """What a reader is asked for.

    Attributes
    ----------
    name : str
        Of the data set; also the category where a layout has none of its own.
    only : frozenset of str or None
        Categories wanted; None for all.
    train_share : float
        Share of the good images to learn from, where the layout does not say which.
    frame_step : int
        Take every n-th frame of a clip.
    preset : str
        The preset that was named, or empty.
    """

    name: str
    only: frozenset[str] | None = None
    train_share: float = 0.5
    frame_step: int = 1
    preset: str = ""

    def wants(self, category: str) -> bool:
        """Whether a category is asked for."""
        return self.only is None or category in self.only


@dataclass
class Reading:
    """What a reader found: samples, and notes in words on what it decided on its own."""

    samples: list[Sample]
    notes: list[str]


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in one, sorted, without hidden ones; none if it does not exist."""
    return _listed(folder, lambda path: path.is_dir())


def images_in(folder: Path) -> list[Path]:
    """Images directly in a folder, sorted, without hidden ones; none if it does not exist."""
    return _listed(folder, lambda path: path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def images_below(folder: Path) -> list[Path]:
    """Images in a folder and in all folders below it, sorted by path."""
    found: list[Path] = []
    waiting, seen = [folder], set()
    while waiting:
        here = waiting.pop()
        # A link to a folder above would otherwise be followed round and round.
        if (real := here.resolve()) not in seen:
            seen.add(real)
            found += images_in(here)
            waiting += subfolders(here)
    return sorted(found)


def _listed(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and wanted(p))
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be listed ({error.strerror}); check the rights"
        ) from error


class MaskFolder:
    """The masks of a folder, found by the name of their image.

    An image ``a/007.png`` finds ``a/007_mask.png``, ``a/007.png``, ``a/007_GT.bmp`` and the like,
    whatever the suffix, or a folder ``a/007`` of several masks. Case does not matter.

    Parameters
    ----------
    folder : Path
        Searched with all folders below it; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[Path] = set()
        self.ambiguous: list[Path] = []
        self._by_place: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        self.files = images_below(folder)
        for file in self.files:
            self._by_place.setdefault(_place(file, folder), []).append(file)
            self._by_stem.setdefault(file.stem.lower(), []).append(file)
        for home in sorted({file.parent for file in self.files} - {folder}):
            self._by_place.setdefault(home.relative_to(folder).as_posix().lower(), []).append(home)

    def find(self, relative: Path, anywhere: bool = False) -> Path | None:
        """The mask of an image.

        Parameters
        ----------
        relative : Path
            The image's place below its own folder.
        anywhere : bool, default False
            Where the places do not match, take a mask of the right name from any place, if there
            is only one.
        """
        stem = relative.with_suffix("").as_posix().lower()
        found = [p for ending in _MASK_ENDINGS for p in self._by_place.get(stem + ending, ())]
        if not found and anywhere:
            name = relative.stem.lower()
            found = [p for ending in _MASK_ENDINGS for p in self._by_stem.get(name + ending, ())]
            if len(found) > 1:
                self.ambiguous.append(relative)
                return None
        if not found:
            return None
        if len(found) > 1:
            self.ambiguous.append(relative)
        self.taken.update(found)
        return found[0]

    def left(self) -> list[Path]:
        """Masks that no image asked for."""
        return [f for f in self.files if f not in self.taken and f.parent not in self.taken]

    def notes(self) -> list[str]:
        """What to say of masks that fit no image, or of images that several fit."""
        notes = []
        if left := self.left():
            notes.append(
                f"{counted(left, 'mask')} without an image of that name, {such_as(left)}: not used"
            )
        if self.ambiguous:
            notes.append(
                f"several masks fit {counted(self.ambiguous, 'image')}, {such_as(self.ambiguous)}: "
                "NAME_mask is taken before NAME, and none from other folders"
            )
        return notes


def _place(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix().lower()


def divide(items: Sequence[T], key: Callable[[T], str], share: float) -> list[bool]:
    """Which good images to learn from; the others are for testing.

    An item's side depends on the SHA-256 of its key alone, so that adding images does not move the
    others. Only where a side would stay empty does the nearest item change sides.

    Parameters
    ----------
    items : sequence
        The good images.
    key : callable
        What is hashed: the file's place in the data set, or what must stay together.
    share : float
        In [0, 1]; about this share is to learn from.

    Returns
    -------
    list of bool
        True for those to learn from, in the order of `items`.
    """
    places = [_unit(key(item)) for item in items]
    distinct = sorted(set(places))
    border = share
    if 0 < share < 1 and len(distinct) == 1:
        border = 1.0
    elif 0 < share < 1 and distinct:
        # Half-open, so that a border on the largest place leaves that one for testing.
        border = min(max(share, (distinct[0] + distinct[1]) / 2), distinct[-1])
    return [place < border for place in places]


def _unit(key: str) -> float:
    """A number in [0, 1) from a text."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / 2**48


def division_note(what: str, train: int, test: int, share: float) -> str:
    """The sentence that says how good images were divided."""
    return (
        f"{what}: the good images were divided here, {train} to learn from and {test} to test on, "
        f"by a hash of their names (train share {share:g}); figures from another division differ"
    )


def trained_on_defects_note(count: int) -> str:
    """The sentence on defective images in a training split."""
    s = "image" if count == 1 else "images"
    return f"{count} defective {s} in the training split: left out, nothing learns from defects"


def counted(items: Sequence[object], noun: str) -> str:
    """``3 masks``, ``1 mask``."""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def such_as(items: Iterable[object], most: int = 1) -> str:
    """``such as a.png``."""
    return "such as " + ", ".join(str(item) for _, item in zip(range(most), items, strict=False))


def slug(name: str) -> str:
    """A name that serves as a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "dataset"
