"""Defective images and their annotations, small, in every format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.datasets.pictures import image

HEIGHT, WIDTH = 48, 64
SCRATCH = [(8.0, 6.0), (30.0, 6.0), (30.0, 12.0), (16.0, 20.0)]  # a polygon
DENT = (40.0, 20.0, 12.0, 16.0)  # a box: left, top, width, height


def bad(root: Path, *names: str) -> Path:
    """Write images below ``bad`` and return that folder."""
    image(root / "bad", *names, size=(HEIGHT, WIDTH))
    return root / "bad"


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def coco(names: Sequence[str], marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """COCO's JSON of some images; of the marks, only what differs from a usual one."""
    return {
        "images": [{"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
                   for number, name in enumerate(names)],
        "categories": [{"id": 1, "name": "scratch"}, {"id": 2, "name": "dent"}],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": 2, "bbox": DENT, "iscrowd": 0, **mark}
            for number, mark in enumerate(marks)
        ],
    }  # fmt: skip


def flat(points: Sequence[tuple[float, float]]) -> list[float]:
    return [value for point in points for value in point]


def yolo(*, polygon: bool = True) -> str:
    left, top, width, height = DENT
    centre = ((left + width / 2) / WIDTH, (top + height / 2) / HEIGHT)
    box = f"1 {centre[0]} {centre[1]} {width / WIDTH} {height / HEIGHT}\n"
    points = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in SCRATCH)
    return box + (f"0 {points}\n" if polygon else "")


def voc(name: str, kind: str = "dent", size: tuple[int, int] = (HEIGHT, WIDTH)) -> str:
    left, top, width, height = DENT
    sides = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}
    box = "".join(f"<{side}>{value:g}</{side}>" for side, value in sides.items())
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[1]}</width>"
        f"<height>{size[0]}</height><depth>3</depth></size><object><name>{kind}</name>"
        f"<bndbox>{box}</bndbox></object></annotation>"
    )


def labelme(name: str, *shapes: dict[str, Any]) -> dict[str, Any]:
    left, top, width, height = DENT
    corners = [(left + width, top), (left, top + height)]
    usual = [
        {"label": "scratch", "points": SCRATCH, "shape_type": "polygon"},
        {"label": "dent", "points": corners, "shape_type": "rectangle"},
    ]
    return {"version": "5.5.0", "flags": {}, "shapes": list(shapes) or usual, "imagePath": name,
            "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}  # fmt: skip


def label_studio(url: str, *results: dict[str, Any]) -> list[dict[str, Any]]:
    left, top, width, height = DENT
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    box = {"x": 100 * left / WIDTH, "y": 100 * top / HEIGHT, "width": 100 * width / WIDTH,
           "height": 100 * height / HEIGHT, "rotation": 0, "rectanglelabels": ["dent"]}  # fmt: skip
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in SCRATCH]
    usual = [
        {"id": "a", "type": "polygonlabels",
         "value": {"points": points, "polygonlabels": ["scratch"], "closed": True}},
        {"id": "b", "type": "rectanglelabels", "value": box},
    ]  # fmt: skip
    found = [{"from_name": "label", "to_name": "image", **size, **one} for one in results or usual]
    annotation = {"id": 7, "result": found, "was_cancelled": False, "ground_truth": False,
                  "updated_at": "2026-03-04T05:06:07Z"}  # fmt: skip
    return [{"id": 11, "data": {"image": url}, "annotations": [annotation], "predictions": []}]


def brush(mask: np.ndarray) -> list[int]:
    """A mask (H, W) as Label Studio's brush writes it: runs of values of eight bits."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    sizes = (3, 4, 8, 16)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    starts = np.flatnonzero(np.diff(values, prepend=256))
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        left = int(stop - start)
        while left:
            which = next((n for n, size in enumerate(sizes) if left <= 2**size), 3)
            length = min(left, 2 ** sizes[which])
            value = int(values[start])
            if length == 1:  # as values one by one
                bits += f"0{which:02b}{0:0{sizes[which]}b}{value:08b}"
            else:
                bits += f"1{which:02b}{length - 1:0{sizes[which]}b}{value:08b}"
            left -= length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
