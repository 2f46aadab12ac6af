"""The layout of MVTec AD, and the variants of it that other data sets use.

::

    CATEGORY/train/good/000.png
    CATEGORY/validation/good/000.png                 (MVTec LOCO AD, MVTec AD 2)
    CATEGORY/test/good/001.png
    CATEGORY/test/DEFECT/002.png
    CATEGORY/ground_truth/DEFECT/002_mask.png        (or 002.png, 002_GT.bmp, or a folder 002)

MVTec AD 2 has ``test_public`` in place of ``test``, with ``ground_truth`` inside it. A folder of
good images may also be called ``ok`` (BTAD) or ``normal``.
"""

from pathlib import Path

from offnominal.datasets.reading import (
    GOOD_NAMES,
    MaskFolder,
    Options,
    Reading,
    counted,
    images_below,
    images_in,
    subfolders,
    such_as,
    trained_on_defects_note,
)
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError

__all__ = ["read", "recognise"]

_UNLABELLED = ("test_private", "test_private_mixed")


def recognise(root: Path) -> str | None:
    """What of this layout lies here, in words, or None."""
    homes = _homes(root)
    if not homes:
        return None
    where = "here" if homes == [root] else f"in {counted(homes, 'folder')}"
    return f"train/good or test/good {where}"


def read(root: Path, options: Options) -> Reading:
    """Read all categories below `root`, or the one that `root` is.

    Raises
    ------
    DatasetError
        If there is no category, or one has no images to test on.
    """
    reading = Reading([], [])
    homes = _homes(root)
    if not homes:
        raise DatasetError(
            f"{root}: no category in MVTec layout; each needs train/good, or test/good, and "
            "test/DEFECT with its images"
        )
    for folder in subfolders(root):
        if folder not in homes and any((folder / part).is_dir() for part in ("train", "test")):
            reading.notes.append(
                f"{folder.name} has train or test, but no folder called good in it: not used"
            )
    for home in homes:
        if options.wants(home.name):
            _read_category(home, home.name, reading)
    return reading


def _homes(root: Path) -> list[Path]:
    if _is_category(root):
        return [root]
    return [folder for folder in subfolders(root) if _is_category(folder)]


def _is_category(folder: Path) -> bool:
    return any(
        inner.name.lower() in GOOD_NAMES
        for part in ("train", "test", "test_public")
        for inner in subfolders(folder / part)
    )


def _read_category(home: Path, category: str, reading: Reading) -> None:
    def add(split: str, folder: Path, masks: MaskFolder | None) -> None:
        for kind in subfolders(folder):
            good = kind.name.lower() in GOOD_NAMES
            if masks is not None and kind == masks.folder:
                continue
            for image in images_below(kind):
                mask = None if good or not masks else masks.find(image.relative_to(folder))
                name = "good" if good else kind.name
                samples.append(Sample(image, int(not good), mask, name, category, split))

    samples: list[Sample] = []
    public = (home / "test_public").is_dir()
    test = home / ("test_public" if public else "test")
    masks = MaskFolder((test if public else home) / "ground_truth")
    add("train", home / "train", None)
    add("validation", home / "validation", None)
    add("test", test, masks)
    if not any(s.split == "test" for s in samples):
        raise DatasetError(
            f"{home}: no images to test on; put them into {test.name}/good and {test.name}/DEFECT, "
            "or leave this category out with --categories"
        )
    reading.samples += samples
    reading.notes += [f"{category}: {note}" for note in _notes(home, test, masks, samples)]


def _notes(home: Path, test: Path, masks: MaskFolder, samples: list[Sample]) -> list[str]:
    notes = masks.notes()
    loose = [image for part in ("train", test.name) for image in images_in(home / part)]
    if loose:
        notes.append(
            f"{counted(loose, 'image')} directly in train or {test.name}, {such_as(loose)}: not "
            "used, since images belong into folders named good or after their defect"
        )
    if validation := [s for s in samples if s.split == "validation"]:
        notes.append(
            f"{counted(validation, 'image')} for validation: neither learned from nor tested"
        )
    if learned := sum(s.split == "train" and s.label for s in samples):
        notes.append(trained_on_defects_note(learned))
    notes += [
        f"{name} has no public labels: not used" for name in _UNLABELLED if (home / name).is_dir()
    ]
    return notes
