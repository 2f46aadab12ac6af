"""The colour picture that belongs to a scan: 8-bit RGB, upright."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from offnominal.errors import ImageError

__all__ = ["read_colour"]

_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}


def read_colour(path: Path, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Read the colours of a scan's pixels.

    Parameters
    ----------
    path : Path
    shape : (height, width)
        Of the scan's grid.

    Returns
    -------
    uint8 array of shape (height, width, 3)
        RGB.

    Raises
    ------
    ImageError
        If it cannot be read, has more than 8 bits a channel, or another size than the points.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in _MODES:
                reason = f"has colours of the type {picture.mode}; save it as 8-bit RGB"
                raise ImageError(path, reason)
            if sorted(picture.size) != sorted(shape):  # before it is decoded; a turn may follow
                raise ImageError(path, _unlike((picture.height, picture.width), shape))
            upright = ImageOps.exif_transpose(picture)
            colours = np.array((upright or picture).convert("RGB"))
    except ImageError:
        raise
    except FileNotFoundError as error:
        reason = "does not exist, and is the colour picture of a scan; add it"
        raise ImageError(path, reason) from error
    # A damaged header makes Pillow raise nearly anything.
    except Exception as error:
        detail = str(error)[:200] or type(error).__name__
        reason = f"is truncated or damaged ({detail}); copy or export it again"
        raise ImageError(path, reason) from error
    if colours.shape[:2] != shape:
        raise ImageError(path, _unlike(colours.shape, shape))
    return colours


def _unlike(size: tuple[int, ...], shape: tuple[int, int]) -> str:
    return (
        f"is {size[1]}x{size[0]} pixels, and the points that it colours are {shape[1]}x{shape[0]}; "
        "export both on one grid"
    )
