"""Plain folders: one of good images, one of defective ones, perhaps one of masks.

::

    good/000.png
    defects/scratch/001.png          a folder below names the kind of defect
    masks/scratch/001_mask.png       mirrors defects by place, or by name alone

The folders are named one by one, or found under a common one: there the folder called ``good``,
``ok``, ``normal`` or ``no`` holds the good images, ``masks``, ``mask`` or ``ground_truth`` the
masks, and every other folder the defective ones.
"""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from offnominal.datasets.pairing import MaskFolder, set_masks_aside
from offnominal.datasets.reading import (
    GOOD_NAMES,
    Options,
    Reading,
    counted,
    images_below,
    subfolders,
    such_as,
)
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError, OptionError
from offnominal.paths import find_images

__all__ = ["GOOD_FOLDERS", "Paths", "find_defects", "fits", "fixed_part", "pair_masks", "read"]
__all__ += ["read_named"]

Paths = str | Path | Sequence[str | Path]

GOOD_FOLDERS = GOOD_NAMES | {"no"}
# Folders called otherwise, as "label", are masks if their pictures look like it.
_MASKS = re.compile(r"masks?|gt|ground[ _.-]?truth")
# Folders of other layouts: a folder called "good" beside them is not the whole story.
_OTHERS = frozenset({"train", "test", "training", "testing", "data"})


def fits(root: Path) -> bool:
    """Whether this layout lies here."""
    good, defects, _ = _parts(root)
    return (
        len(good) == 1
        and not any(folder.name.lower() in _OTHERS for folder in defects)
        and bool(images_below(good[0]))
        and any(images_below(folder) for folder in defects)
    )


def read(root: Path, options: Options) -> Reading:
    """Read the folders below `root`: one of good images, at least one of defective ones."""
    good, defects, masks = _parts(root)
    if len(good) != 1 or not defects:
        raise DatasetError(
            f"{root}: needs one folder called {', '.join(sorted(GOOD_FOLDERS))}, and others for "
            "the defects; or name the folders with --good and --defects"
        )
    reading = Reading()
    # Every kind has a folder here, so that its place below the root names it.
    found = [i for folder in defects for i in images_below(folder, reading.passed)]
    good_images = find_images([good[0]], reading.passed)
    both, beside = set_masks_aside([*good_images, *found], root, reading.notes)
    images = set(both)
    defects = [folder for folder in defects if any(i.is_relative_to(folder) for i in images)]
    if unclear := [f for f in defects if GOOD_FOLDERS & set(re.findall("[a-z]+", f.name.lower()))]:
        raise DatasetError(
            f"{unclear[0]}: good or defective? Name the folders with --good, --test-good and "
            "--defects"
        )
    kinds = ", ".join(folder.name for folder in defects)
    note = f"good images from {good[0].name}, defective ones from {kinds}"
    reading.notes.insert(0, f"{note}, masks from {masks[0].name}" if masks else note)
    for other in masks[1:]:
        reading.notes.append(f"{other.name} is another folder of masks: not used; name one only")
    pairs = [(image, image.relative_to(root)) for image in found if image in images]
    masks_at = masks[0] if masks else None
    kept = [image for image in good_images if image in images]
    for image in kept:
        beside.find(image.relative_to(root))  # so that their masks are not said to have none
    _join(kept, pairs, masks_at, None, options, root, reading, [beside])
    return reading


def read_named(
    good: Paths,
    defects: Paths,
    masks: str | Path | None,
    test_good: Paths | None,
    options: Options,
) -> Reading:
    """Read folders or patterns that are named one by one.

    Parameters
    ----------
    good, defects : path, pattern, or several
        As `find_images` takes them. A folder below one of `defects` names the kind of defect.
    masks : path or None
        Folder of the masks.
    test_good : path, pattern, several, or None
        Good images to test on. Without them those of `good` are divided, and a note says how.
    options : Options
        Name, which is also the category, and train share.
    """
    reading = Reading()
    found, beside = find_defects(defects, masks, reading)

    def parts(paths: Paths) -> list[Path]:
        every = [(root, find_images([root], reading.passed)) for root in _several(paths)]
        kept = [i for root, own in every
                for i in set_masks_aside(own, fixed_part(root), reading.notes)[0]]  # fmt: skip
        return list(dict.fromkeys(kept))

    tests = None if test_good is None else parts(test_good)
    masks_at = None if masks is None else Path(masks)
    first = fixed_part(_several(good)[0])
    _join(parts(good), found, masks_at, tests, options, first, reading, beside)
    return reading


def find_defects(
    defects: Paths, masks: str | Path | None, reading: Reading
) -> tuple[list[tuple[Path, Path]], list[MaskFolder]]:
    """Defective images, each with its place below the folder named, and the masks among them.

    Parameters
    ----------
    defects : path, pattern, or several
    masks : path or None
        Folder of the masks; images that lie there are no parts.
    reading : Reading
        Gets notes, and files passed over.

    Raises
    ------
    DatasetError
        If there is no such folder of masks.
    OptionError
        If there are no such images.
    """
    if masks is not None and not Path(masks).is_dir():
        raise DatasetError(f"{masks}: no such folder of masks; check --masks")
    found: list[tuple[Path, Path]] = []
    beside = []
    for root in _several(defects):
        base, listed = fixed_part(root), find_images([root], reading.passed)
        if masks is not None and any(image.is_relative_to(masks) for image in listed):
            reading.notes.append(f"{masks} lies among the defects: its images are masks only")
            listed = [image for image in listed if not image.is_relative_to(masks)]
        images, own = set_masks_aside(listed, base, reading.notes)
        found += [(image, image.relative_to(base)) for image in images]
        beside.append(own)
    return found, beside


def pair_masks(
    defects: list[tuple[Path, Path]],
    masks: str | Path | None,
    beside: list[MaskFolder],
    reading: Reading,
) -> list[tuple[Path, Path, Path | None]]:
    """The same images with the mask of each, from the folder or from among them.

    Notes on masks that fit none go to ``reading``.
    """
    names = Counter(relative.stem.lower() for _, relative in defects)
    shared = frozenset(name for name, number in names.items() if number > 1)
    folder = [] if masks is None else [MaskFolder(Path(masks), anywhere=True, shared=shared)]
    for own in beside:
        own.anywhere, own.shared = True, shared
    pairs = []
    for image, relative in defects:
        found = [own for own in (m.find(relative) for m in (*folder, *beside)) if own]
        pairs.append((image, relative, found[0] if found else None))
    for own in (*folder, *beside):
        reading.notes += own.notes()
    return pairs


def _parts(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    folders = subfolders(root)
    good = [f for f in folders if f.name.lower() in GOOD_FOLDERS]
    masks = [f for f in folders if _MASKS.fullmatch(f.name.lower())]
    return good, [f for f in folders if f not in good and f not in masks], masks


def _join(
    good: list[Path],
    defects: list[tuple[Path, Path]],
    masks: Path | None,
    tests: list[Path] | None,
    options: Options,
    base: Path,
    reading: Reading,
    beside: list[MaskFolder],
) -> None:
    category = options.name
    bad = [image for image, _ in defects]
    _refuse_shared(good, bad, "--good and --defects")
    _refuse_shared(tests or [], bad, "--test-good and --defects")
    _refuse_shared(tests or [], good, "--test-good and --good")
    # Without images to test on, those to learn from are divided.
    for images, split in ((good, "" if tests is None else "train"), (tests or [], "test")):
        reading.samples += [Sample(image, 0, None, "good", category, split) for image in images]
    reading.divide(lambda sample: _name(sample.image, base), options.train_share)
    for image, relative, mask in pair_masks(defects, masks, beside, reading):
        kind = relative.parts[0] if len(relative.parts) > 1 else "defect"
        reading.samples.append(Sample(image, 1, mask, kind, category, "test"))


def _refuse_shared(images: list[Path], others: list[Path], options: str) -> None:
    taken = {image.absolute() for image in others}
    if shared := [image for image in images if image.absolute() in taken]:
        raise OptionError(
            f"{counted(shared, 'image')} in both {options}, {such_as(shared)}: name folders that "
            "do not contain each other, and quote patterns"
        )


def _name(image: Path, base: Path) -> str:
    return (image.relative_to(base) if image.is_relative_to(base) else Path(image.name)).as_posix()


def fixed_part(pattern: str | Path) -> Path:
    """A folder itself, or the one above a file, or above the first wildcard of a pattern."""
    path = Path(pattern)
    while not path.exists() and glob.has_magic(str(path)):
        path = path.parent
    return path if path.is_dir() else path.parent


def _several(paths: Paths) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths)
