"""A manifest: a table of images, as CSV or as JSON lines.

Columns ``image`` and ``label``, and if wanted ``mask``, ``defect``, ``category`` and ``split``.
Paths are relative to the manifest's folder, or absolute.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from offnominal.checks import near
from offnominal.datasets.reading import GOOD_NAMES, Options, Reading, counted, listed, such_as
from offnominal.datasets.sample import Sample
from offnominal.datasets.tables import Files, plain, read_csv, read_text
from offnominal.errors import DatasetError
from offnominal.text import brief

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

_TABLES = (".csv", ".tsv", ".txt")


class _Row(BaseModel):
    """What a row says; numbers may stand for names."""

    model_config = ConfigDict(coerce_numbers_to_str=True, str_strip_whitespace=True)
    image: str = Field(min_length=1)
    label: Any
    mask: str = ""
    defect: str = ""
    category: str = ""
    split: str = ""

    @field_validator("mask", "defect", "category", "split", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return "" if value is None else value


def fits(root: Path) -> bool:
    """Whether this layout lies here."""
    return _file(root) is not None


def _file(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix.lower() in (*_TABLES, ".jsonl") else None
    found = listed(root, lambda path: path.name.lower() in _FILES and path.is_file())
    return found[0] if len(found) == 1 else None


def read(root: Path, options: Options) -> Reading:
    """Read a manifest, or the one of that name in a folder.

    Columns that are not known are passed over with a note, but one that looks like a misspelt
    ``mask`` or ``split`` is refused. A label is 0 or 1, or a word such as ``good`` or
    ``defective``. In rows without a split, defective images are for testing, and good ones are
    divided with a note. Every mistake is an error that names file and line.
    """
    file = root if root.is_file() else _file(root) or root / _FILES[0]
    reading, files = Reading(), Files(file.parent)
    names: dict[Path, str] = {}
    masks_of_good: list[str] = []
    for line, row in _rows(file, reading.notes):
        sample = _sample(row, f"{file}:{line}", f"line {line}", files, options.name)
        names[sample.image] = row.image
        masks_of_good += [row.mask] if row.mask and not sample.label else []
        if options.wants(sample.category):
            reading.samples.append(sample)
    reading.notes += files.notes()
    if masks_of_good:
        reading.notes.append(
            f"{counted(masks_of_good, 'good image')} with a mask, {such_as(masks_of_good)}: the "
            "mask is not used, the label says good"
        )
    reading.divide(lambda s: names[s.image], options.train_share, " ({} without a split)")
    return reading


def _rows(file: Path, notes: list[str]) -> Iterator[tuple[int, _Row]]:
    """Line numbers and rows, under the names of `COLUMNS`."""
    ignored: set[str] = set()
    if file.suffix.lower() == ".jsonl":
        # Not splitlines, which takes U+2028 in a name for the end of a line.
        lines = read_text(file, notes).replace("\r\n", "\n").split("\n")
        rows = (
            (number, _parse(text, f"{file}:{number}"))
            for number, text in enumerate(lines, 1)
            if text.strip()
        )
        for number, entry in rows:
            yield number, _named(entry, f"{file}:{number}", ignored)
    else:
        for number, cells in read_csv(file, notes):
            yield number, _named(cells, f"{file}:{number}", ignored)
    if ignored:
        notes.append(f"{file.name}: columns not known and not used: {', '.join(sorted(ignored))}")


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON ({error}); write one object a line") from error
    if not isinstance(row, dict):
        raise DatasetError(f"{where}: not an object; write one object a line, with image and label")
    return row


def _named(entry: dict[str, Any], where: str, ignored: set[str]) -> _Row:
    row: dict[str, Any] = {}
    for name, value in entry.items():
        column = "_".join(name.lower().replace("-", " ").replace("_", " ").split())
        column = _ALIASES.get(column, column)
        if column in row:
            raise DatasetError(f"{where}: two columns are called {column!r}; remove one")
        if column not in COLUMNS:
            # A column of masks under a wrong name would be lost without a word.
            if close := near(column, COLUMNS, 0.75):
                told = f"column {plain(name)}: call it {close[0]!r}, or remove it"
                raise DatasetError(f"{where}: {told}")
            ignored.add(name.strip())
        else:
            row[column] = value
    for needed in ("image", "label"):
        if row.get(needed) in (None, ""):
            raise DatasetError(f"{where}: no {needed}; the columns image and label are needed")
    try:
        return _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        value = plain(first["input"])
        raise DatasetError(
            f"{where}: {first['loc'][0]} {value}: {first['msg']}; write a text"
        ) from error


def _sample(row: _Row, where: str, place: str, files: Files, name: str) -> Sample:
    label = _label(row.label, where)
    split = row.split.lower()
    if split and split not in _SPLITS:
        raise DatasetError(f"{where}: split {plain(row.split)}; write train, test or validation")
    if not split and label:
        split = "test"
    image = files.image(row.image, where, place)
    mask = files.mask(row.mask, where) if row.mask else None
    if mask is not None and mask == image:
        raise DatasetError(f"{where}: {brief(row.image)} is its own mask; leave the field empty")
    defect = (row.defect or "defect") if label else "good"
    category = row.category or name
    return Sample(image, label, mask if label else None, defect, category, _SPLITS.get(split, ""))


def _label(value: Any, where: str) -> int:
    text = str(value).lower()
    if text in ("0", "0.0") or text in GOOD_NAMES:
        return 0
    if text in ("1", "1.0") or text in _BAD_NAMES:
        return 1
    raise DatasetError(f"{where}: label {plain(value)}; write 0 (good) or 1 (defective)")
