"""VisA as it is distributed (Zou et al., ECCV 2022).

::

    OBJECT/Data/Images/Normal/0000.JPG
    OBJECT/Data/Images/Anomaly/000.JPG
    OBJECT/Data/Masks/Anomaly/000.png     holds class numbers: every level but 0 is defective
    OBJECT/image_anno.csv                 image,label,mask: kinds of defect
    split_csv/1cls.csv                    object,split,label,image,mask: the one-class split

The one-class layout that VisA's own script writes is MVTec layout, and is read as that.
"""

from pathlib import Path

from offnominal.datasets.pairing import MaskFolder
from offnominal.datasets.reading import (
    Options,
    Reading,
    counted,
    images_in,
    subfolders,
    such_as,
)
from offnominal.datasets.sample import Sample
from offnominal.datasets.tables import plain, read_csv
from offnominal.errors import DatasetError

__all__ = ["fits", "read"]

Table = dict[tuple[str, ...], str]


def fits(root: Path) -> bool:
    """Whether this layout lies here."""
    return bool(_homes(root))


def read(root: Path, options: Options) -> Reading:
    """Read all objects below `root`, or the one that `root` is.

    The label comes from the folder, the split from ``split_csv/1cls.csv``; without that file the
    good images are divided by a hash of their names. All images of the tables have to be there.
    """
    reading, homes = Reading(), _homes(root)
    if not homes:
        raise DatasetError(f"{root}: no object in VisA layout; each needs Data/Images/Normal")
    for home in homes:
        if options.wants(home.name):
            _read_object(home, home.name, reading)
    why = " (no split_csv/1cls.csv)"
    reading.divide(lambda sample: sample.image.name, options.train_share, why)
    return reading


def _homes(root: Path) -> list[Path]:
    homes = [f for f in (root, *subfolders(root)) if (f / "Data/Images/Normal").is_dir()]
    return homes[:1] if root in homes else homes


def _read_object(home: Path, category: str, reading: Reading) -> None:
    masks = MaskFolder(home / "Data/Masks/Anomaly")
    normal, anomalous = (
        images_in(home / "Data/Images" / kind, reading.passed) for kind in ("Normal", "Anomaly")
    )
    images = [*normal, *anomalous]
    splits = _table(
        home.parent / "split_csv" / "1cls.csv", "split", category, images, reading.notes
    )
    kinds = _table(home / "image_anno.csv", "label", category, images, reading.notes) or {}
    unlisted = []
    for image in images:
        label = int(image.parent.name == "Anomaly")
        split = "test" if label else ""
        if splits is not None:
            if _key(image) not in splits:
                unlisted.append(image)
                continue
            split = splits[_key(image)]
        mask = masks.find(Path(image.name)) if label else None
        kind = (kinds.get(_key(image)) or "anomaly") if label else "good"
        reading.samples.append(Sample(image, label, mask, kind, category, split, 1))
    if unlisted:
        reading.notes.append(
            f"{category}: {counted(unlisted, 'image')} not in 1cls.csv, {such_as(unlisted)}: "
            "not used"
        )
    reading.notes += [f"{category}: {note}" for note in masks.notes()]


def _key(path: Path) -> tuple[str, ...]:
    return path.parts[-2:]


def _table(
    path: Path, column: str, category: str, images: list[Path], notes: list[str]
) -> Table | None:
    """A column of a table by folder and name of the image, or None if there is no such file."""
    if not path.is_file():
        return None
    known = {_key(image) for image in images}
    table: Table = {}
    for line, row in read_csv(path, notes):
        where = f"{path}:{line}"
        if missing := {"image", column} - set(row):
            raise DatasetError(f"{path}: no column {missing.pop()!r}; copy the file again")
        image, value = Path(row["image"]), row[column]
        if image.parts[:1] != (category,):
            continue
        if _key(image) not in known:
            raise DatasetError(f"{where}: no such image {image}; unpack the data set again")
        if column == "split" and value not in ("train", "test"):
            raise DatasetError(f"{where}: split {plain(value)}; it must be train or test")
        if table.setdefault(_key(image), value) != value:
            raise DatasetError(f"{where}: {image} is there twice, once as {table[_key(image)]}")
    return table
