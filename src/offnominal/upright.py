"""Which way up a picture was stored, and the picture upright."""

from typing import Any

from numpy.typing import NDArray
from PIL import Image

__all__ = ["orientation_of", "turned"]

_ORIENTATION = 0x0112


def orientation_of(image: Image.Image) -> int:
    """EXIF 2.32, tag 0x0112; 1 (upright) where it is absent, or unreadable as viewers treat it."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels (H, W) or (H, W, C) of that orientation, upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
