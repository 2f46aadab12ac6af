"""COCO's JSON: lists of images, of classes, and of marks that name both."""

from collections import Counter
from typing import Any

import numpy as np
from pydantic import Field

from offnominal.labels.formats.entry import (
    Drawn,
    Entry,
    Points,
    Problem,
    Row,
    Tell,
    read_row,
)
from offnominal.labels.formats.runs import coco_mask, coco_runs

__all__ = ["read"]

_LISTS = ("images", "categories", "annotations")


class _Image(Row):
    id: str
    file_name: str = Field(min_length=1)
    height: int | None = None
    width: int | None = None


class _Class(Row):
    id: str
    name: str = Field(min_length=1)


class _Runs(Row):
    size: tuple[int, int]
    counts: str | list[int]


class _Mark(Row):
    id: str = "without id"
    image_id: str
    category_id: str
    bbox: tuple[float, float, float, float] | tuple[()] | None = None
    segmentation: list[list[float]] | _Runs | None = None


def read(file: str, data: dict[str, Any], tell: Tell) -> list[Entry]:
    """What a file says of each of its images, also of those without a mark.

    ``file`` is what messages call it.
    """
    lists: dict[str, Any] = {part: data.get(part) for part in _LISTS}
    for part in _LISTS:
        if not isinstance(lists[part], list):
            told = "export it as COCO instances again"
            tell(Problem(file, f"has no list {part!r}, which COCO's JSON has", told))
            return []
    entries: dict[str, Entry] = {}
    for number, value in enumerate(lists["images"]):
        where = f"{file}, image {number + 1}"
        if (image := read_row(_Image, value, where, tell)) is None:
            continue
        if image.id in entries:
            tell(Problem(where, f"another image has the id {image.id}", "export the file again"))
        size = (image.height, image.width) if image.height and image.width else None
        entries[image.id] = Entry(f"{where} ({image.file_name})", (image.file_name,), size)
    names: dict[str, str] = {}
    for number, value in enumerate(lists["categories"]):
        where = f"{file}, category {number + 1}"
        if (kind := read_row(_Class, value, where, tell)) is not None:
            names[kind.id] = kind.name
    ids = Counter(str(one.get("id")) for one in lists["annotations"] if isinstance(one, dict))
    for number, value in enumerate(lists["annotations"]):
        place = f"annotation {number + 1}"
        if (mark := read_row(_Mark, value, f"{file}, {place}", tell)) is None:
            continue
        if ids[mark.id] == 1:
            place = f"annotation {mark.id}"
        where = f"{file}, {place}"
        if (entry := entries.get(mark.image_id)) is None:
            told = "remove the annotation, or add the image"
            tell(Problem(where, f"image_id {mark.image_id} is that of no image in the file", told))
            continue
        where = f"{where} ({entry.names[0]})"
        if mark.category_id not in names:
            known = ", ".join(f"{key} {name}" for key, name in names.items()) or "none"
            what = f"category_id {mark.category_id} is not known; there are {known}"
            tell(Problem(where, what, "add the category, or correct the id"))
            continue
        try:
            entry.drawn.append(_drawn(mark, where, names[mark.category_id]))
        except ValueError as error:
            tell(Problem(where, str(error), "export the annotations again"))
    return list(entries.values())


def _drawn(mark: _Mark, where: str, kind: str) -> Drawn:
    shape = mark.segmentation
    if isinstance(shape, _Runs):
        runs = coco_runs(shape.counts) if isinstance(shape.counts, str) else shape.counts
        return Drawn(where, kind, mask=coco_mask(runs, shape.size))
    polygons = [_points(flat) for flat in shape or [] if flat]
    if polygons:
        return Drawn(where, kind, polygons=tuple(polygons))
    if not mark.bbox:
        raise ValueError("has neither a box nor a segmentation")
    return Drawn(where, kind, mark.bbox)


def _points(flat: list[float]) -> Points:
    if len(flat) % 2 or len(flat) < 6:
        raise ValueError(f"a polygon of {len(flat)} numbers; three points or more, x and y each")
    return np.array(flat, np.float64).reshape(-1, 2)
