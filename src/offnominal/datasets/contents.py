"""What the files of a data set hold, so that results are known to be of these very pictures."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from offnominal.datasets.masks import mask_files
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError
from offnominal.scans.places import colour_of

__all__ = ["Contents", "named", "read_contents", "relative"]

_State = tuple[int, int, int]  # size and times: as long as they stay, so does what a file holds


@dataclass(frozen=True)
class Contents:
    """What the files of some samples held when they were read.

    Attributes
    ----------
    files : dict of str to str
        Digest of each file, by its path relative to the root; empty where it could not be read.
    digest : str
        Of all of them, and of what each is said to be: equal wherever the root lies.
    """

    files: dict[str, str]
    digest: str
    _states: dict[Path, tuple[str, _State | None]]

    def changed(self) -> list[Path]:
        """The files that no longer hold what they did; only those of another state are read."""
        return [
            path
            for path, (digest, state) in self._states.items()
            if _state(path) != state and _digest(path) != digest
        ]

    def unlike(self, files: Mapping[str, str]) -> list[str]:
        """The files that others hold otherwise, or that only one of the two has."""
        names = self.files.keys() | files.keys()
        return sorted(name for name in names if self.files.get(name) != files.get(name))


def read_contents(
    samples: Iterable[Sample], root: Path, progress: Callable[[int], None] | None = None
) -> Contents:
    """Read every image and mask of some samples; ``progress`` hears how many are done."""
    chosen = list(samples)
    masks = {sample.mask: _mask_files(sample.mask) for sample in chosen if sample.mask is not None}
    colours = {sample.image: colour_of(sample.image) for sample in chosen}
    paths = [sample.image for sample in chosen]
    paths += [path for path in colours.values() if path is not None]
    paths += [path for found in masks.values() for path in found]
    states: dict[Path, tuple[str, _State | None]] = {}
    with ThreadPoolExecutor() as pool:  # reading waits for the disk, and digests leave the lock
        once = list(dict.fromkeys(paths))
        for path, known in zip(once, pool.map(_known, once), strict=True):
            states[path] = known
            if progress:
                progress(len(states))
    files = {relative(path, root): digest for path, (digest, _) in states.items()}
    lines = []
    for sample in chosen:
        own = [] if sample.mask is None else [states[path][0] for path in masks[sample.mask]]
        facts = [sample.label, sample.split, *([sample.mask_threshold, *own] if own else [])]
        if (colour := colours[sample.image]) is not None:
            facts.append(states[colour][0])
        image = relative(sample.image, root), states[sample.image][0]
        lines.append("\t".join(map(str, [*image, *facts])))
    total = hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape"))
    return Contents(files, total.hexdigest()[:16], states)


def relative(path: Path, root: Path) -> str:
    """A file's place under the data set's root, with forward slashes; absolute if outside."""
    inside = path.is_relative_to(root)
    return (path.relative_to(root) if inside else path.absolute()).as_posix()


def named(files: Iterable[object], most: int = 5) -> str:
    """Some files, in words."""
    every = [str(file) for file in files]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def _known(path: Path) -> tuple[str, _State | None]:
    # What changes while it is read is of another state afterwards.
    state = _state(path)
    return _digest(path), state


def _state(path: Path) -> _State | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:  # what cannot be read is left out by whoever reads it
        return ""


def _mask_files(path: Path) -> list[Path]:
    try:
        return mask_files(path)
    except (DatasetError, OSError):
        return []
