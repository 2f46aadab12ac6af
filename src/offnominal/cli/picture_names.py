"""Names of the pictures of a run's images, below its folder of results."""

import os
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

__all__ = ["picture_names"]

_LONGEST = 255 - len("~9999.tiff")  # bytes of a file's name


def picture_names(images: list[Path], taken: Iterable[str] = ()) -> dict[Path, str]:
    """A name for the pictures of each image, below the folder of results; no two are the same.

    Without suffix unless that would make two of one name, and without the folders that all have in
    common. Nothing leads upwards, drives of Windows are folders, and what is too long is cut.
    Names that are ``taken`` by pictures of other images are not given again.
    """
    whole = {path: Path(os.path.abspath(path)) for path in images}  # noqa: PTH100 (links stay)
    parts = {path: _below(place) for path, place in whole.items()}
    levels = zip(*(one[:-1] for one in parts.values()), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    plain = {
        path: os.fsencode("/".join(one[common:])).decode("utf-8", "backslashreplace")
        for path, one in parts.items()
    }
    bare = {path: str(Path(name).with_suffix("")) for path, name in plain.items()}
    often = Counter(name.lower() for name in [*bare.values(), *plain.values()])
    names: dict[Path, str] = {}
    there = {name.lower() for name in taken}
    for path in images:
        alone = often[bare[path].lower()] == 1 + (bare[path] == plain[path])
        name = unique = _cut(bare[path] if alone else plain[path])
        number = 2
        while unique.lower() in there:
            unique, number = f"{name}~{number}", number + 1
        there.add(unique.lower())
        names[path] = unique
    return names


def _below(place: Path) -> tuple[str, ...]:
    """The parts of an absolute path, a drive or a share as a folder like any other."""
    drive = "".join(char if char.isalnum() else "_" for char in place.drive).strip("_")
    return (drive, *place.parts[1:]) if drive else place.parts[1:]


def _cut(name: str) -> str:
    """A name whose last part leaves room for a suffix; what is cut is told by its digest."""
    import hashlib

    folder, slash, last = name.rpartition("/")
    raw = os.fsencode(last)
    if len(raw) <= _LONGEST:
        return name
    short = raw[: _LONGEST - 12].decode("utf-8", "ignore")
    return f"{folder}{slash}{short}-{hashlib.sha256(raw).hexdigest()[:8]}"
