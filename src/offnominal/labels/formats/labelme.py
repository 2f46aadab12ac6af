"""LabelMe's JSON: one file for each image, with polygons, rectangles, circles and masks."""

import base64
import io
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from offnominal.images import MAX_PIXELS
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

__all__ = ["ellipse", "read"]


class _Shape(Row):
    label: str = ""
    points: list[tuple[float, float]]
    shape_type: str = "polygon"
    mask: str | None = None


class _File(Row):
    image_path: str = Field("", alias="imagePath")
    height: int | None = Field(None, alias="imageHeight", ge=0)
    width: int | None = Field(None, alias="imageWidth", ge=0)
    shapes: list[Any]
    flags: dict[str, Any] | None = None


def read(file: Path, called: str, data: dict[str, Any], tell: Tell) -> Entry | None:
    """What a file says of its image. Flags that are set are classes of the image as a whole.

    ``called`` is what messages call the file.
    """
    if (whole := read_row(_File, data, called, tell)) is None:
        return None
    size = (whole.height, whole.width) if whole.height and whole.width else None
    # Beside the picture of its own name it lies more surely than beside the one it was made for.
    names = (file.stem, PureWindowsPath(whole.image_path).name)
    flags = tuple(name for name, set_ in (whole.flags or {}).items() if set_ is True)
    known = tuple(filter(None, names))
    entry = Entry(called, known, size, kinds=flags, folder=file.parent)
    for number, value in enumerate(whole.shapes, 1):
        where = f"{called}, shape {number}"
        if (shape := read_row(_Shape, value, where, tell)) is None:
            continue
        try:
            entry.drawn.append(_drawn(shape, where, size))
        except ValueError as error:
            tell(Problem(where, str(error), "draw it again, or remove it"))
    return entry


def _drawn(shape: _Shape, where: str, size: tuple[int, int] | None) -> Drawn:
    kind, points = shape.label.strip(), np.array(shape.points, np.float64).reshape(-1, 2)
    least = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 1}
    if (form := shape.shape_type or "polygon") not in least:
        raise ValueError(f"a {form} has no area; known are {', '.join(least)}")
    if len(points) < least[form]:
        raise ValueError(f"a {form} of {len(points)} points; {least[form]} are needed")
    if form == "rectangle":
        return Drawn(where, kind, box_around(points))
    if form == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return Drawn(where, kind, polygons=(ellipse(points[0], (radius, radius)),))
    if form == "mask":
        return Drawn(where, kind, mask=_mask(shape.mask or "", points[0], size))
    return Drawn(where, kind, polygons=(points,))


def ellipse(centre: Points, radii: tuple[float, float], turn: float = 0.0) -> Points:
    """An ellipse as a polygon (64, 2), turned clockwise by degrees."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    around = np.stack([radii[0] * np.cos(angle), radii[1] * np.sin(angle)], 1)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    turned: Points = around @ np.array([[cos, sin], [-sin, cos]])
    return turned + centre


def _mask(text: str, corner: Points, size: tuple[int, int] | None) -> NDArray[np.bool_]:
    """A mask (H, W) from the picture of its box."""
    if size is None or size[0] * size[1] > MAX_PIXELS:
        raise ValueError("a mask in a file without imageHeight and imageWidth of an image")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), "r", ["PNG"]) as picture:
            if picture.width > size[1] or picture.height > size[0]:
                raise ValueError("it is larger than the image")
            inside = np.asarray(picture.convert("L")) > 0
    # A damaged picture makes Pillow raise nearly anything.
    except Exception as error:
        raise ValueError(f"the mask cannot be read ({error})") from error
    whole = np.zeros(size, np.bool_)
    left, top = np.rint(corner).astype(int)
    height, width = inside.shape
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError("the mask reaches beyond the image")
    whole[top : top + height, left : left + width] = inside
    return whole
