"""DAGM 2007 (Wieler and Hahn): synthetic textures, with ellipses around the defects as masks.

::

    Class1/Train/0001.PNG
    Class1/Train/Label/0576_label.PNG
    Class1/Test/...

An image is defective when ``Label`` has a file for it. The name of that file is the label; what it
holds is not looked at.
"""

from pathlib import Path

from offnominal.datasets.reading import (
    MaskFolder,
    Options,
    Reading,
    counted,
    images_in,
    subfolders,
    trained_on_defects_note,
)
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError

__all__ = ["read", "recognise"]


def recognise(root: Path) -> str | None:
    """What of this layout lies here, in words, or None."""
    homes = _homes(root)
    return f"{counted(homes, 'folder')} with Train and Test/Label" if homes else None


def read(root: Path, options: Options) -> Reading:
    """Read all classes below `root`, or the one that `root` is; category ``Class1`` and so on.

    Raises
    ------
    DatasetError
        If there is no class.
    """
    homes = _homes(root)
    if not homes:
        raise DatasetError(
            f"{root}: no class in DAGM layout; each needs Train, Test and Test/Label"
        )
    reading = Reading([], [])
    for home in homes:
        if options.wants(home.name):
            _read_class(home, home.name, reading)
    return reading


def _homes(root: Path) -> list[Path]:
    def is_class(folder: Path) -> bool:
        return (folder / "Train").is_dir() and (folder / "Test" / "Label").is_dir()

    return [root] if is_class(root) else [f for f in subfolders(root) if is_class(f)]


def _read_class(home: Path, category: str, reading: Reading) -> None:
    learned = 0
    for folder, split in (("Train", "train"), ("Test", "test")):
        masks = MaskFolder(home / folder / "Label")
        for image in images_in(home / folder):
            mask = masks.find(Path(image.name))
            defective = mask is not None
            kind = "defect" if defective else "good"
            reading.samples.append(Sample(image, int(defective), mask, kind, category, split))
            learned += defective and split == "train"
        reading.notes += [f"{category}/{folder}: {note}" for note in masks.notes()]
    if learned:
        reading.notes.append(f"{category}: {trained_on_defects_note(learned)}")
