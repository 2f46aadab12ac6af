"""YOLO's text files: one for each image, a mark a line, and the classes in a file of their own."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offnominal.datasets.tables import read_text
from offnominal.errors import DatasetError
from offnominal.extras import needs
from offnominal.labels.formats.entry import Drawn, Entry, Problem, Tell

__all__ = ["CLASS_FILES", "find_names", "read", "read_names"]

CLASS_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
"""Where the names of the classes are, the surest first; in lower case."""

_BEYOND = 0.02  # of the image's side: more is no rounding


def find_names(file: Path, root: Path) -> Path | None:
    """The file of classes that goes with one of marks: beside it, or in a folder above.

    The folders go up to the one above ``root``, which is where exports have it.
    """
    for folder in file.parents:
        if (found := names_in(folder)) is not None:
            return found
        if folder == root.parent:
            break
    return None


def names_in(folder: Path) -> Path | None:
    """The file of classes in a folder."""
    there = {one.name.lower(): one for one in folder.iterdir() if one.is_file()}
    return next((there[name] for name in CLASS_FILES if name in there), None)


def read_names(file: Path) -> dict[int, str]:
    """The names of the classes by their numbers.

    Raises
    ------
    DatasetError
        If the file names none.
    """
    text = read_text(file, [])
    if file.suffix.lower() not in (".yaml", ".yml"):
        lines = [line.strip() for line in text.splitlines()]
        return {number: name for number, name in enumerate(lines) if name}
    yaml = needs("yaml", "fit", f"reading {file.name}")
    try:
        names: Any = (yaml.safe_load(text) or {}).get("names")
        if isinstance(names, list):
            names = dict(enumerate(names))
        return {int(number): str(name) for number, name in names.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        told = "write a line such as `names: [scratch, dent]`"
        raise DatasetError(f"{file}: names no classes; {told}") from error


def read(file: Path, called: str, names: dict[int, str] | None, tell: Tell) -> Entry | None:
    """What a file says of its image; None where it holds something else than numbers.

    ``called`` is what messages call it. ``names`` is None where there is no file of classes: then
    there is one, without a name.
    """
    rows = [line.split() for line in read_text(file, []).splitlines()]
    if not all(map(_is_number, (word for row in rows for word in row))):
        return None
    entry = Entry(called, (file.stem,), folder=file.parent)
    for number, words in enumerate(rows, 1):
        where = f"{called}, line {number}"
        if words:
            try:
                entry.drawn.append(_drawn([float(word) for word in words], names, where))
            except ValueError as error:
                tell(Problem(where, str(error), "correct the line, or export the labels again"))
    return entry


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _drawn(values: Sequence[float], names: dict[int, str] | None, where: str) -> Drawn:
    kind, *shape = values
    if len(shape) != 4 and (len(shape) < 6 or len(shape) % 2):
        raise ValueError(
            f"{len(values)} numbers; a box has 5 (class, x, y, width, height), a polygon the class "
            "and three points or more"
        )
    if not all(-_BEYOND <= value <= 1 + _BEYOND for value in shape):
        raise ValueError(f"{max(shape, key=abs):g} is no share of the image's side, from 0 to 1")
    if names is None and kind != 0:
        raise ValueError(f"class {kind:g}, and no classes.txt or data.yaml names the classes")
    name = "" if names is None else names.get(int(kind) if kind == int(kind) else -1)
    if name is None:
        assert names is not None
        known = ", ".join(f"{key} {own}" for key, own in names.items())
        raise ValueError(f"class {kind:g} is not known; there are {known}")
    if len(shape) == 4:
        x, y, width, height = shape
        box = (x - width / 2, y - height / 2, width, height)
        return Drawn(where, name, box, shares=True)
    return Drawn(where, name, polygons=(np.array(shape).reshape(-1, 2),), shares=True)
