"""A manifest: a table of images, as CSV or as JSON lines.

Columns ``image`` and ``label``, and if wanted ``mask``, ``defect``, ``category`` and ``split``.
Paths are relative to the manifest's folder, or absolute.
"""

import csv
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offnominal.datasets.reading import GOOD_NAMES, Options, Reading
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError

__all__ = ["fits", "read"]

COLUMNS = ("image", "label", "mask", "defect", "category", "split")
_BAD_NAMES = frozenset({"bad", "ng", "defect", "defective", "anomaly", "anomalous", "abnormal"})
_SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
# Names that manifests of published codes use.
_ALIASES = {
    "image_path": "image",
    "mask_path": "mask",
    "class_name": "category",
    "defect_type": "defect",
}
_FILES = ("manifest.csv", "manifest.jsonl")

Row = dict[str, Any]


def fits(root: Path) -> bool:
    """Whether this layout lies here."""
    return _file(root) is not None


def _file(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix.lower() in (".csv", ".jsonl") else None
    found = [root / name for name in _FILES if (root / name).is_file()]
    return found[0] if len(found) == 1 else None


def read(root: Path, options: Options) -> Reading:
    """Read a manifest, or the one of that name in a folder.

    Columns that are not known are passed over with a note, but one that looks like a misspelt
    ``mask`` or ``split`` is refused. A label is 0 or 1, or a word such as ``good`` or
    ``defective``. In rows without a split, defective images are for testing, and good ones are
    divided with a note. Every mistake is an error that names file and line.
    """
    file = root if root.is_file() else _file(root) or root / _FILES[0]
    reading = Reading()
    lines: dict[Path, int] = {}
    names: dict[Path, str] = {}
    try:
        for line, row in _rows(file, reading.notes):
            where = f"{file}:{line}"
            sample = _sample(row, where, file.parent, options.name)
            if earlier := lines.get(sample.image):
                raise DatasetError(f"{where}: {row['image']} is in line {earlier} too; remove one")
            lines[sample.image], names[sample.image] = line, str(row["image"])
            if options.wants(sample.category):
                reading.samples.append(sample)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file}: cannot be read ({error}); save it as UTF-8") from error
    reading.divide(lambda s: names[s.image], options.train_share, " ({} without a split)")
    return reading


def _rows(file: Path, notes: list[str]) -> Iterator[tuple[int, Row]]:
    """Line numbers and rows, under the names of `COLUMNS`."""
    ignored: set[str] = set()
    # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
    with file.open(newline="", encoding="utf-8-sig") as lines:
        if file.suffix.lower() == ".jsonl":
            for number, text in enumerate(lines, 1):
                if text.strip():
                    where = f"{file}:{number}"
                    yield number, _named(_parse(text, where), where, ignored)
        else:
            head = lines.readline()
            lines.seek(0)
            delimiter = max(",;\t", key=head.count)
            table = csv.DictReader(lines, delimiter=delimiter, restkey="", strict=True)
            for entry in table:
                where = f"{file}:{table.line_num}"
                if "" in entry:
                    raise DatasetError(
                        f"{where}: more values than columns; quote values with commas"
                    )
                yield table.line_num, _named(entry, where, ignored)
    if ignored:
        notes.append(f"{file.name}: columns not known and not used: {', '.join(sorted(ignored))}")


def _parse(text: str, where: str) -> Row:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{where}: not JSON ({error}); write one object a line") from error
    if not isinstance(row, dict):
        raise DatasetError(f"{where}: not an object; write one object a line, with image and label")
    return row


def _named(entry: Row, where: str, ignored: set[str]) -> Row:
    row: Row = {}
    for name, value in entry.items():
        plain = str(name).strip()
        plain = _ALIASES.get(plain, plain)
        if plain not in COLUMNS:
            # A column of masks under a wrong name would be lost without a word.
            if close := difflib.get_close_matches(plain.lower(), COLUMNS, 1, 0.75):
                raise DatasetError(f"{where}: column {name!r}: call it {close[0]!r}, or remove it")
            ignored.add(plain)
        else:
            row[plain] = value.strip() if isinstance(value, str) else value
    for needed in ("image", "label"):
        if row.get(needed) in (None, ""):
            raise DatasetError(f"{where}: no {needed}; the columns image and label are needed")
    return row


def _sample(row: Row, where: str, home: Path, name: str) -> Sample:
    label = _label(row["label"], where)
    split = str(row.get("split") or "").lower()
    if split and split not in _SPLITS:
        raise DatasetError(f"{where}: split {row['split']!r}; write train, test or validation")
    if not split and label:
        split = "test"
    image = home / str(row["image"])
    if not image.is_file():
        raise DatasetError(f"{where}: no such image {image}; paths start at the manifest's folder")
    mask = home / str(row["mask"]) if row.get("mask") else None
    if mask is not None and not mask.exists():
        raise DatasetError(f"{where}: no such mask {mask}; leave the field empty if there is none")
    defect = str(row.get("defect") or "defect") if label else "good"
    category = str(row.get("category") or name)
    return Sample(image, label, mask if label else None, defect, category, _SPLITS.get(split, ""))


def _label(value: Any, where: str) -> int:
    text = str(value).lower()
    if text in ("0", "0.0") or text in GOOD_NAMES:
        return 0
    if text in ("1", "1.0") or text in _BAD_NAMES:
        return 1
    raise DatasetError(f"{where}: label {value!r}; write 0 (good) or 1 (defective)")
