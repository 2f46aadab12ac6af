"""Rotations of the reference images (Damm et al., "AnomalyDINO", WACV 2025, section 3.2)."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError

AGNOSTIC_ANGLES = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
"""Degrees, for parts that may lie in any direction (the paper's "agnostic" setting)."""


def parse_rotations(value: str | Sequence[float]) -> tuple[float, ...]:
    """Angles that a ``rotations`` option stands for.

    Parameters
    ----------
    value : str or sequence of float
        ``"none"``, ``"agnostic"`` (`AGNOSTIC_ANGLES`), or degrees, as ``"0,90,180"`` or numbers.

    Returns
    -------
    tuple of float
        Degrees in [0, 360), each once, in the order given, except that 0 comes first and is
        always there: the upright reference is always used.

    Raises
    ------
    OptionError
        If an angle is not a finite number, or there is none.
    """
    if value == "none":
        return (0.0,)
    if value == "agnostic":
        return AGNOSTIC_ANGLES
    try:
        parts: Sequence[str | float] = value.split(",") if isinstance(value, str) else value
        angles = [float(part) for part in parts]
    except (TypeError, ValueError):
        angles = []
    if not angles or not all(map(math.isfinite, angles)):
        raise OptionError(
            f"rotations={value!r}: expected 'none', 'agnostic' or degrees such as '0,90,180'"
        )
    # The second remainder is for tiny negative angles, whose first one rounds up to 360.
    return tuple(dict.fromkeys([0.0, *(angle % 360.0 % 360.0 for angle in angles)]))


def rotate_image(image: NDArray[Any], angle: float) -> NDArray[np.uint8]:
    """Turn an image about its centre without changing its size.

    As AnomalyDINO's released code does it: bilinear, and the corners that the turned image does
    not reach are filled by mirroring it (without repeating the border pixels).

    Parameters
    ----------
    image : numpy.ndarray
        uint8, (H, W) or (H, W, C).
    angle : float
        Degrees, anticlockwise.

    Returns
    -------
    numpy.ndarray
        uint8, shaped as `image`; at 0 degrees `image` itself.
    """
    if angle == 0:
        return image
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    rotated = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_DEFAULT
    )
    return np.asarray(rotated, dtype=np.uint8)
