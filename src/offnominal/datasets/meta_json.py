"""The ``meta.json`` of zero-shot codes (VAND, AnomalyCLIP, AdaCLIP and others).

::

    {"train": {CLASS: [...]}, "test": {CLASS: [{"img_path": ..., "mask_path": ..., "cls_name": ...,
                                                "specie_name": ..., "anomaly": 0 or 1}]}}

Paths are relative to its folder; those that scripts wrote as absolute paths of another machine are
looked for by their last parts.
"""

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from offnominal.datasets.reading import Options, Reading
from offnominal.datasets.sample import Sample
from offnominal.errors import DatasetError

__all__ = ["fits", "read"]


def fits(root: Path) -> bool:
    """Whether this layout lies here."""
    file = root if root.is_file() else root / "meta.json"
    return file.name == "meta.json" and file.is_file()


def read(root: Path, options: Options) -> Reading:
    """Read a ``meta.json``, or the one in a folder; all files that it names have to be there."""
    file = root if root.is_file() else root / "meta.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read ({error}); generate it again") from error
    if not isinstance(meta, dict) or not {str(k).lower() for k in meta} & {"train", "test"}:
        raise DatasetError(f"{file}: no 'train' and no 'test' in it; generate it again")
    reading = Reading()
    moved: Counter[str] = Counter()
    for split, classes in meta.items():
        if split.lower() not in ("train", "test") or not isinstance(classes, dict):
            raise DatasetError(f"{file}: {split!r} is not 'train' or 'test' with classes in it")
        for category, entries in classes.items():
            if not options.wants(category):
                continue
            for number, entry in enumerate(entries):
                where = f"{file}: {split}/{category}[{number}]"
                sample = _sample(entry, where, file.parent, category, split.lower(), moved)
                reading.samples.append(sample)
    if count := moved["found"]:
        reading.notes.append(f"{count} paths of another machine: found by their last parts")
    return reading


def _sample(
    entry: Any, where: str, home: Path, category: str, split: str, moved: Counter[str]
) -> Sample:
    if not isinstance(entry, dict) or not entry.get("img_path") or "anomaly" not in entry:
        raise DatasetError(f"{where}: img_path and anomaly are needed; generate it again")
    if entry["anomaly"] not in (0, 1):
        raise DatasetError(f"{where}: anomaly is {entry['anomaly']!r}; it must be 0 or 1")
    label = int(entry["anomaly"])
    image = _locate(entry["img_path"], home, where, moved)
    if not label:
        return Sample(image, 0, None, "good", category, split)
    path = entry.get("mask_path")
    mask = _locate(path, home, where, moved) if path else None
    # VisA's own masks hold class numbers, and its meta.json names them as they are.
    threshold = 1 if mask is not None and mask.parts[-4:-1] == ("Data", "Masks", "Anomaly") else 128
    defect = str(entry.get("specie_name") or "defect")
    return Sample(image, 1, mask, defect, category, split, threshold)


def _locate(text: str, home: Path, where: str, moved: Counter[str]) -> Path:
    path = home / text
    if path.exists():
        return path
    if PurePosixPath(text).is_absolute():
        parts = PurePosixPath(text).parts[1:]
        for start in range(1, len(parts)):
            if (found := home.joinpath(*parts[start:])).exists():
                moved["found"] += 1
                return found
    raise DatasetError(f"{where}: no such file {path}; put meta.json into the data set's folder")
