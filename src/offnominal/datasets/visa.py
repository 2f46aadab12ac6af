"""VisA as it is distributed (Zou et al., ECCV 2022).

::

    OBJECT/Data/Images/Normal/0000.JPG
    OBJECT/Data/Images/Anomaly/000.JPG
    OBJECT/Data/Masks/Anomaly/000.png     holds class numbers: every level but 0 is defective
    OBJECT/image_anno.csv                 image,label,mask: kinds of defect
    split_csv/1cls.csv                    object,split,label,image,mask: the one-class split

The one-class layout that VisA's own script writes is MVTec layout, and is read as that.
"""

import csv
from pathlib import Path

from offnominal.datasets.reading import (
    MaskFolder,
    Options,
    Reading,
    counted,
    divide,
    division_note,
    images_in,
    subfolders,
    such_as,
)
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError

__all__ = ["read", "recognise"]

Table = dict[tuple[str, ...], str]


def recognise(root: Path) -> str | None:
    """What of this layout lies here, in words, or None."""
    homes = _homes(root)
    return f"{counted(homes, 'folder')} with Data/Images/Normal" if homes else None


def read(root: Path, options: Options) -> Reading:
    """Read all objects below `root`, or the one that `root` is.

    The label comes from the folder, the split from ``split_csv/1cls.csv``; without that file the
    good images are divided by a hash of their names.

    Raises
    ------
    DatasetError
        If a table lacks a column, or names an image that is not there.
    """
    reading = Reading([], [])
    homes = _homes(root)
    if not homes:
        raise DatasetError(f"{root}: no object in VisA layout; each needs Data/Images/Normal")
    for home in homes:
        category = home.name
        if not options.wants(category):
            continue
        split_file = home.parent / "split_csv" / "1cls.csv"
        images = [
            image
            for kind in ("Normal", "Anomaly")
            for image in images_in(home / "Data/Images" / kind)
        ]
        splits = _table(split_file, "split", category, images)
        kinds = _table(home / "image_anno.csv", "label", category, images)
        _read_object(home, category, images, splits, kinds, options, reading)
    return reading


def _homes(root: Path) -> list[Path]:
    if (root / "Data/Images/Normal").is_dir():
        return [root]
    return [folder for folder in subfolders(root) if (folder / "Data/Images/Normal").is_dir()]


def _read_object(
    home: Path,
    category: str,
    images: list[Path],
    splits: Table | None,
    kinds: Table | None,
    options: Options,
    reading: Reading,
) -> None:
    masks = MaskFolder(home / "Data/Masks/Anomaly")
    good = [image for image in images if image.parent.name == "Normal"]
    learns: dict[Path, bool] = {}
    if splits is None:
        sides = divide(good, lambda image: image.name, options.train_share)
        learns = dict(zip(good, sides, strict=True))
        train, share = sum(sides), options.train_share
        reading.notes.append(
            division_note(f"{category} (no split_csv/1cls.csv)", train, len(good) - train, share)
        )
    unlisted = []
    for image in images:
        defective = image.parent.name == "Anomaly"
        if splits is None:
            split = "train" if learns.get(image) else "test"
        elif (listed := splits.get(_key(image))) is None:
            unlisted.append(image)
            continue
        else:
            split = listed
        mask = masks.find(Path(image.name)) if defective else None
        kind = ((kinds or {}).get(_key(image)) or "anomaly") if defective else "good"
        reading.samples.append(Sample(image, int(defective), mask, kind, category, split, 1))
    if unlisted:
        reading.notes.append(
            f"{category}: {counted(unlisted, 'image')} not in 1cls.csv, {such_as(unlisted)}: "
            "not used"
        )
    reading.notes += [f"{category}: {note}" for note in masks.notes()]


def _key(path: Path) -> tuple[str, ...]:
    return path.parts[-2:]


def _table(path: Path, column: str, category: str, images: list[Path]) -> Table | None:
    """A column of a table by folder and name of the image, or None if there is no such file."""
    if not path.is_file():
        return None
    known = {_key(image) for image in images}
    table: Table = {}
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if missing := {"image", column} - set(rows.fieldnames or ()):
            raise DatasetError(f"{path}: no column {missing.pop()!r}; copy the file again")
        for row in rows:
            image = Path(row["image"] or "")
            if image.parts[:1] != (category,):
                continue
            if _key(image) not in known:
                raise DatasetError(
                    f"{path}:{rows.line_num}: no such image {image}; unpack the data set again"
                )
            table[_key(image)] = (row[column] or "").strip()
    return table
