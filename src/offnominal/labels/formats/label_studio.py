"""Label Studio's JSON export: tasks, each an image and what was drawn on it, in per cent."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pydantic import Field

from offnominal.datasets.reading import MASK_SUFFIXES
from offnominal.labels.formats.entry import (
    Drawn,
    Entry,
    Points,
    Problem,
    Row,
    Tell,
    box_around,
    read_row,
)
from offnominal.labels.formats.labelme import ellipse
from offnominal.labels.formats.runs import brush_mask

__all__ = ["image_names", "read"]

_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")  # what an upload puts before a file's name
_NO_PLACE = (
    "labels", "choices", "textarea", "number", "rating", "datetime", "taxonomy", "pairwise",
    "ranker", "relation",
)  # fmt: skip
"""Types of results that mark nothing: classes, and what else people are asked."""


class _Result(Row):
    id: str = ""
    type: str
    value: dict[str, Any] = Field(default_factory=dict)
    original_width: int | None = None
    original_height: int | None = None
    image_rotation: float | None = None


class _Annotation(Row):
    id: str = "without id"
    result: list[Any]
    was_cancelled: bool = False
    ground_truth: bool = False
    updated_at: str = ""


class _Task(Row):
    id: str = "without id"
    data: dict[str, Any]
    annotations: list[_Annotation]


class _Place(Row):
    """The value of a result; all in per cent of the image's sides."""

    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0
    rotation: float = 0
    radius_x: float = Field(0, alias="radiusX")
    radius_y: float = Field(0, alias="radiusY")
    points: tuple[tuple[float, float], ...] = ()
    rle: tuple[int, ...] = ()


def read(file: str, data: list[Any], tell: Tell) -> list[Entry]:
    """What an export says of each of its images. ``file`` is what messages call it.

    Of several annotations of a task the one that is marked as ground truth counts, or else the
    last that was changed. Choices are classes of the image as a whole.
    """
    entries = []
    for number, value in enumerate(data, 1):
        where = f"{file}, task {value.get('id', number) if isinstance(value, dict) else ''}"
        if (task := read_row(_Task, value, where, tell)) is None:
            continue
        urls = [url for url in task.data.values() if isinstance(url, str)]
        names = tuple(dict.fromkeys(name for url in urls for name in image_names(url)))
        if not names:
            told = "export tasks of images, as JSON"
            tell(Problem(where, "its data name no image", told))
            continue
        entry = Entry(f"{where} ({names[-1]})", names)
        valid = [one for one in task.annotations if not one.was_cancelled]
        if valid:
            last = max(valid, key=lambda one: (one.ground_truth, one.updated_at))
            _fill(entry, last.result, tell)
        entries.append(entry)
    return entries


def image_names(url: str) -> list[str]:
    """What the image at an address may be called, with folders; empty if it is no image."""
    parts = urlsplit(url)
    # Local files are asked for as ?d=folder/name.
    path = unquote((parse_qs(parts.query).get("d") or [parts.path])[0])
    if Path(path).suffix.lower() not in MASK_SUFFIXES:
        return []
    *above, name = path.split("/")
    short = _PREFIX.sub("", name, count=1)
    return ["/".join((*above, one)) for one in dict.fromkeys((name, short))]


def _fill(entry: Entry, results: list[Any], tell: Tell) -> None:
    """Marks and classes of one annotation; what has one id is one mark, and its label."""
    rows: dict[str, list[tuple[str, _Result]]] = defaultdict(list)
    for number, value in enumerate(results, 1):
        where = f"{entry.where}, result {number}"
        if (row := read_row(_Result, value, where, tell)) is not None:
            rows[row.id or where].append((where, row))
    for own in rows.values():
        labels: list[str] = []
        for _, row in own:
            chosen = row.value.get(row.type)
            if isinstance(chosen, list) and (row.type.endswith("labels") or row.type == "choices"):
                labels += [str(one) for one in chosen]
        drawn = [(where, row) for where, row in own if row.type not in _NO_PLACE]
        if not drawn:
            entry.kinds += tuple(labels)
        for where, row in drawn[:1]:
            try:
                entry.drawn += _drawn(row, where, labels, entry, tell)
            except ValueError as error:
                tell(Problem(where, str(error), "draw it again, or remove it"))


def _drawn(row: _Result, where: str, labels: list[str], entry: Entry, tell: Tell) -> list[Drawn]:
    if turn := (row.image_rotation or 0) % 360:
        raise ValueError(f"was drawn with the image turned by {turn:g} degrees")
    if row.original_height and row.original_width:
        entry.size = (row.original_height, row.original_width)
    if (place := read_row(_Place, row.value, where, tell)) is None:
        return []
    what: dict[str, Any] = {}
    form = row.type.removesuffix("labels")
    if form == "rectangle":
        # Of a box only that it holds the defect is known: of a turned one, so does the one around.
        points = (
            _outline(place, form, entry.size) / 100 if place.rotation else _corners(place) / 100
        )
        what["box"] = box_around(points)
    elif form == "brush":
        if entry.size is None:
            raise ValueError("a brush's mask without original_width and original_height")
        what["mask"] = brush_mask(place.rle, entry.size)
    elif form in ("polygon", "ellipse"):
        what["polygons"] = (_outline(place, form, entry.size) / 100,)
    else:
        raise ValueError(f"is of type {row.type}; known are rectangle, polygon, ellipse and brush")
    shares = form != "brush"
    return [Drawn(where, kind, **what, shares=shares) for kind in labels or [""]]


def _corners(place: _Place) -> Points:
    return np.array([[place.x, place.y], [place.x + place.width, place.y + place.height]])


def _outline(place: _Place, form: str, size: tuple[int, int] | None) -> Points:
    """Points (n, 2) in per cent."""
    if form == "polygon":
        if len(place.points) < 3:
            raise ValueError(f"a polygon of {len(place.points)} points; three are needed")
        return np.array(place.points, np.float64)
    if size is None:
        raise ValueError(f"a turned {form} without original_width and original_height")
    # Turned in pixels: per cent of the sides are no right angles.
    unit = np.array([size[1], size[0]]) / 100
    corner = np.array([place.x, place.y]) * unit
    if form == "ellipse":
        radii = np.array([place.radius_x, place.radius_y]) * unit
        return ellipse(corner, (float(radii[0]), float(radii[1])), place.rotation) / unit
    width, height = np.array([place.width, place.height]) * unit
    cos, sin = np.cos(np.radians(place.rotation)), np.sin(np.radians(place.rotation))
    offsets = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    turned: Points = offsets @ np.array([[cos, sin], [-sin, cos]])
    return (corner + turned) / unit
