"""Files of annotations: which of the formats one is in, and what it says of each image."""

import json
from pathlib import Path
from typing import Any

from offnominal.datasets.reading import counted, listed, such_as
from offnominal.datasets.tables import read_text
from offnominal.errors import DatasetError
from offnominal.labels.formats import coco, label_studio, labelme, voc, yolo
from offnominal.labels.formats.entry import Entry, Problem, Tell

__all__ = ["read_annotations"]

_KNOWN = "COCO, LabelMe and Label Studio (JSON), Pascal VOC (XML), YOLO (text, or its data.yaml)"
_SUFFIXES = (".json", ".xml", ".txt")
_YAML = (".yaml", ".yml")


def read_annotations(path: Path, tell: Tell, notes: list[str]) -> list[Entry]:
    """What a file, or the files in a folder and in those below it, say of images.

    Parameters
    ----------
    path : Path
        A file of COCO, Label Studio, LabelMe, Pascal VOC or YOLO, YOLO's ``data.yaml``, or a folder
        of any of these.
    tell : callable
        Told of each entry that cannot be used.
    notes : list of str
        Gets a line on files that are none of these.

    Raises
    ------
    DatasetError
        If there is no such file, if it is in no format that is known, or if a folder holds none.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder of annotations; check --boxes")
    root = path if path.is_dir() else path.parent
    if path.is_dir() or path.suffix.lower() in _YAML:
        files = [file for file in _below(root) if file.suffix.lower() in _SUFFIXES]
    else:
        files = [path]
    entries: list[Entry] = []
    others: list[Path] = []
    names: dict[Path, dict[int, str] | None] = {}
    for file in files:
        if file.name.lower() in yolo.CLASS_FILES:
            continue
        found = _read(file, root, names, tell)
        if found is None:
            others.append(file)
        else:
            entries += found
    if not entries and not (path.is_file() and path not in others):
        what = f"{counted(others, 'file')} of other kinds, {such_as(o.name for o in others)}"
        there = "" if path.is_file() else f" (found {what if others else 'no such file'})"
        raise DatasetError(f"{path}: no annotations that are known{there}; known are {_KNOWN}")
    if others:
        told = such_as(other.relative_to(root) for other in others)
        notes.append(f"files that are no annotations: {len(others)}, {told}: passed over")
    return entries


def _below(folder: Path) -> list[Path]:
    """Files in a folder and in those below it; hidden ones do not count."""
    found = []
    for one in listed(folder):
        if one.is_dir():
            found += [] if one.is_symlink() else _below(one)
        else:
            found.append(one)
    return found


def _read(
    file: Path, root: Path, names: dict[Path, dict[int, str] | None], tell: Tell
) -> list[Entry] | None:
    """What one file says; None if it is in no known format."""
    suffix, where = file.suffix.lower(), file.relative_to(root).as_posix()
    if suffix == ".xml":
        tree = voc.parse(file)
        return [voc.read(file, where, tree, tell)] if tree.tag == "annotation" else None
    if suffix == ".txt":
        if file.parent not in names:
            own = yolo.find_names(file, root)
            names[file.parent] = None if own is None else yolo.read_names(own)
        entry = yolo.read(file, where, names[file.parent], tell)
        return None if entry is None else [entry]
    return _read_json(file, where, tell) if suffix == ".json" else None


def _read_json(file: Path, where: str, tell: Tell) -> list[Entry] | None:
    try:
        data: Any = json.loads(read_text(file, []))
    except (ValueError, RecursionError) as error:
        tell(Problem(where, f"is no JSON ({error})", "export it again"))
        return []
    if isinstance(data, dict) and "shapes" in data:
        entry = labelme.read(file, where, data, tell)
        return [] if entry is None else [entry]
    if isinstance(data, dict) and "annotations" in data:
        return coco.read(where, data, tell)
    if isinstance(data, list) and data and all(isinstance(one, dict) for one in data):
        if "annotations" in data[0]:
            return label_studio.read(where, data, tell)
        if "annotation_id" in data[0]:
            what = "is Label Studio's JSON-MIN, which leaves out how marks belong together"
            tell(Problem(where, what, "export it as JSON"))
            return []
    return None
