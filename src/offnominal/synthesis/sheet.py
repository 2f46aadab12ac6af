"""A contact sheet of synthetic defects: good image, made image, mask, side by side."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from offnominal.pictures import save_picture

__all__ = ["contact_sheet", "write_sheet"]

Image = NDArray[np.uint8]
Row = tuple[Image, Image, NDArray[np.bool_]]

_SIDE = 220  # pixels of a picture
_GAP = 6
_ACROSS = 2  # rows of three beside each other
_HEAD = 28


def contact_sheet(rows: Iterable[Row]) -> Image:
    """Rows of a good image, a made one and its mask, uint8 (H, W, 3) and bool (H, W)."""
    strips = [
        np.concatenate([_framed(good), _framed(made), _framed(_white(mask))], 1)
        for good, made, mask in rows
    ]
    blank = np.full_like(strips[0], 255) if strips else np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    strips += [blank] * (-len(strips) % _ACROSS)
    lines = [np.concatenate(strips[i : i + _ACROSS], 1) for i in range(0, len(strips), _ACROSS)]
    return np.concatenate([_heads(), *lines] if lines else [blank], 0)


def write_sheet(path: Path, rows: Iterable[Row]) -> None:
    """Write it as PNG, with the mark that tells it from a picture of a part."""
    save_picture(path, contact_sheet(rows))


def _heads() -> Image:
    """What is in each column, in words."""
    line = Pillow.new("RGB", (3 * _ACROSS * (_SIDE + _GAP), _HEAD), (255, 255, 255))
    pen, font = ImageDraw.Draw(line), ImageFont.load_default(15)
    for number, word in enumerate(("good", "made", "its mask") * _ACROSS):
        pen.text((4 + number * (_SIDE + _GAP), 4), word, (60, 60, 60), font)
    return np.asarray(line, np.uint8)


def _white(mask: NDArray[np.bool_]) -> Image:
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, 2)


def _framed(picture: Image) -> Image:
    """A picture within a square, its shape kept, on light grey."""
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    frame = np.full((_SIDE + _GAP, _SIDE + _GAP, 3), 235, np.uint8)
    frame[: size[1], : size[0]] = cv2.resize(picture, size, interpolation=how)
    return frame
