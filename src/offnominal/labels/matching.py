"""Which image an entry of annotations means, told by its name and its folders."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from offnominal.labels.formats.entry import Entry, Problem, Tell
from offnominal.paths import IMAGE_SUFFIXES

__all__ = ["match"]


def match(
    entries: Sequence[Entry], images: Sequence[Path], tell: Tell
) -> tuple[dict[Path, Entry], list[Entry]]:
    """The entry of each image.

    A name without folders, or with others, finds the only image of that name; with folders, its
    own or those in which a file of one image lies, it finds the one that agrees in most of them.
    Capitals and suffixes count only where they must.

    Parameters
    ----------
    entries : sequence of Entry
    images : sequence of Path
    tell : callable
        Told of names that fit several images, and of images that several entries name.

    Returns
    -------
    dict of Path to Entry
    list of Entry
        Those that mean none of the images.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_name[image.name.lower()].append(image)
        by_name[image.stem.lower()].append(image)
    names = Counter(_parts(entry.names[0])[-1].lower() for entry in entries)
    claims: dict[Path, list[tuple[int, Entry]]] = defaultdict(list)
    left: list[Entry] = []
    for entry in entries:
        found, agreed, shared = _candidates(entry, by_name, names)
        if (shared and agreed < 2) or not found:
            left.append(entry)
        elif len(found) > 1:
            what = f"fits {len(found)} images, {found[0]} and {found[1]}"
            tell(Problem(entry.where, what, "name them with their folders, or rename one"))
        else:
            claims[found[0]].append((agreed, entry))
    chosen: dict[Path, Entry] = {}
    for image, own in claims.items():
        best = max(agreed for agreed, _ in own)
        first, *others = [entry for agreed, entry in own if agreed == best]
        left += [entry for agreed, entry in own if agreed < best]
        chosen[image] = first
        for other in others:
            what = f"is of {image.name}, of which {first.where} is already"
            tell(Problem(other.where, what, "keep one of the two"))
    return chosen, left


def _candidates(
    entry: Entry, by_name: dict[str, list[Path]], names: Counter[str]
) -> tuple[list[Path], int, bool]:
    """Images that an entry may mean, in how many parts they agree, and whether others of its name.

    Others count only where folders can tell them apart.
    """
    folders = () if entry.folder is None else entry.folder.absolute().parts
    for name in entry.names:
        parts = [*folders, *_parts(name)]
        last = parts[-1].lower()
        stem, dot, suffix = last.rpartition(".")
        for wanted in (last, stem) if f"{dot}{suffix}" in IMAGE_SUFFIXES else (last,):
            if wanted in by_name:
                found = list(dict.fromkeys(by_name[wanted]))
                agreed = {image: _agreeing(parts, image) for image in found}
                best = max(agreed.values())
                found = [image for image in found if agreed[image] == best]
                for other in (name, *entry.names):  # capitals, and suffixes that only one name has
                    own = [i for i in found if _parts(other)[-1] in (i.name, i.stem)]
                    found = own if own else found
                return found, best, len(parts) > 1 and names[last] > 1
    return [], 0, False


def _agreeing(parts: list[str], image: Path) -> int:
    """How many of the last parts of a name and of an image's path are the same, the name's own."""
    count = 1
    for one, other in zip(parts[-2::-1], image.absolute().parts[-2::-1], strict=False):
        if one.lower() != other.lower():
            break
        count += 1
    return count


def _parts(name: str) -> list[str]:
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return parts or [""]
