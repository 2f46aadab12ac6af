"""Pictures of 16 bits a channel: colour whole, which Pillow halves, and all of it as 8 bits."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from offnominal.errors import ImageError

__all__ = ["deep_colour", "is_deep_colour", "to_eight_bit"]

_BITS_PER_SAMPLE = 258
_OTHER_BYTE = {";16B": ";16L", ";16L": ";16B"}  # names of Pillow's for orders of bytes


def is_deep_colour(image: Image.Image, head: bytes) -> bool:
    """Whether a picture, whose file begins with ``head``, has colour of more than 8 bits."""
    if isinstance(image, PngImageFile):
        bits, colour_type = head[24:26]
        return bits == 16 and colour_type != 0
    if isinstance(image, TiffImageFile):
        depths: tuple[int, ...] = image.tag_v2.get(_BITS_PER_SAMPLE, ())
        return len(depths) > 1 and max(depths) > 8
    return False


def deep_colour(image: Image.Image, again: Any, name: str) -> NDArray[np.uint16]:
    """16-bit colour of an image that is loaded, and opened a second time."""
    other = _OTHER_BYTE | {";16N": ";16B" if sys.byteorder == "little" else ";16L"}
    tiles: list[Any] = []
    grey = False
    for tile in again.tile:
        args = tile[3]
        raw = str(args[0] if isinstance(args, tuple) else args)
        grey = raw == "LA;16B"
        if not grey and (raw[-4:] not in other or raw[:-4] not in ("RGB", "RGBA", "RGBX")):
            reason = "its layout of 16-bit colour is not supported; save it as RGB PNG"
            raise ImageError(name, reason)
        # Grey and alpha of 16 bits are four bytes, like the channels of 8-bit RGBA.
        raw = "RGBA" if grey else raw[:-4] + other[raw[-4:]]
        args = (raw, *args[1:]) if isinstance(args, tuple) else raw
        # Before version 11 of Pillow they are plain tuples.
        tiles.append(tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args))
    again.tile = tiles
    again.load()
    values = np.asarray(again)
    if grey:
        upper, lower = values[..., :1].repeat(3, 2), values[..., 1:2]
    else:
        upper, lower = np.asarray(image)[..., :3], values[..., :3]
    deep: NDArray[np.uint16] = upper.astype(np.uint16) << 8 | lower
    return deep


def to_eight_bit(
    values: NDArray[np.uint16], percentiles: tuple[float, float] | None
) -> NDArray[np.uint8]:
    """16-bit values as 8-bit ones, by the whole range or between two percentiles of them."""
    low, high = (0.0, 65535.0) if percentiles is None else np.percentile(values, percentiles)
    if low == high:
        low, high = 0.0, 65535.0
    # One table for all 65,536 values: no floating-point copy of the image.
    scaled = (np.arange(65536) - low) / (high - low) * 255
    table = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return table[values]
