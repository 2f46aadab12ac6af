"""The ``meta.json`` of zero-shot codes (VAND, AnomalyCLIP, AdaCLIP and others).

::

    {"train": {CLASS: [...]}, "test": {CLASS: [{"img_path": ..., "mask_path": ..., "cls_name": ...,
                                                "specie_name": ..., "anomaly": 0 or 1}]}}

Paths are relative to its folder; those that scripts wrote as absolute paths of another machine are
looked for by their last parts.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from offnominal.datasets.reading import Options, Reading
from offnominal.datasets.sample import Sample
from offnominal.datasets.tables import Files, plain, read_text
from offnominal.errors import DatasetError
from offnominal.text import brief

__all__ = ["fits", "read"]


class _Entry(BaseModel):
    img_path: str = Field(min_length=1)
    anomaly: int = Field(ge=0, le=1)
    mask_path: str | None = None
    specie_name: str | None = None


def fits(root: Path) -> bool:
    """Whether this layout lies here."""
    file = root if root.is_file() else root / "meta.json"
    return file.name == "meta.json" and file.is_file()


def read(root: Path, options: Options) -> Reading:
    """Read a ``meta.json``, or the one in a folder; all files that it names have to be there."""
    file = root if root.is_file() else root / "meta.json"
    reading, files = Reading(), Files(file.parent)
    try:
        meta = json.loads(read_text(file, reading.notes), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: cannot be read ({error}); generate it again") from error
    if not isinstance(meta, dict) or not {str(k).lower() for k in meta} & {"train", "test"}:
        raise DatasetError(f"{file}: no 'train' and no 'test' in it; generate it again")
    for split, classes in meta.items():
        if split.lower() not in ("train", "test") or not isinstance(classes, dict):
            raise DatasetError(
                f"{file}: {plain(split)} is not 'train' or 'test' with classes in it"
            )
        for category, entries in classes.items():
            home = f"{split}/{brief(category)}"
            if not isinstance(entries, list):
                raise DatasetError(f"{file}: {home} is no list; generate it again")
            for number, entry in enumerate(entries) if options.wants(category) else ():
                place = f"{home}[{number}]"
                sample = _sample(entry, f"{file}: {place}", place, files, category, split.lower())
                reading.samples.append(sample)
    reading.notes += files.notes()
    return reading


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} is in one object twice")
    return found


def _sample(entry: Any, where: str, place: str, files: Files, category: str, split: str) -> Sample:
    if not isinstance(entry, dict) or not entry.get("img_path") or "anomaly" not in entry:
        raise DatasetError(f"{where}: img_path and anomaly are needed; generate it again")
    try:
        row = _Entry.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        name, value = first["loc"][0], plain(first["input"])
        raise DatasetError(
            f"{where}: {name} is {value}: {first['msg']}; generate it again"
        ) from error
    image = files.image(row.img_path, where, place, moved=True)
    if not row.anomaly:
        return Sample(image, 0, None, "good", category, split)
    mask = files.mask(row.mask_path, where, moved=True) if row.mask_path else None
    # VisA's own masks hold class numbers, and its meta.json names them as they are.
    threshold = 1 if mask is not None and mask.parts[-4:-1] == ("Data", "Masks", "Anomaly") else 128
    return Sample(image, 1, mask, row.specie_name or "defect", category, split, threshold)
