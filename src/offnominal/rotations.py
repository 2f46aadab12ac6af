"""Turning references: angles that an option names, and pictures and scans turned by them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.scans.scan import is_scan
from offnominal.warping import Affine, inverse, rotation, warp

__all__ = ["AGNOSTIC_ANGLES", "parse_rotations", "rotate_image"]

AGNOSTIC_ANGLES = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
"""Degrees, for parts that may lie in any direction (AnomalyDINO's "agnostic" setting)."""


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


def rotate_image(image: NDArray[Any], angle: float) -> NDArray[Any]:
    """Turn an image about its centre without changing its size.

    As AnomalyDINO's released code does it (Damm et al., WACV 2025, section 3.2): bilinear, and the
    corners that the turned image does not reach are filled by mirroring it (without repeating the
    border pixels).

    Parameters
    ----------
    image : numpy.ndarray
        uint8, (H, W) or (H, W, C); or a scan, float32 (H, W, 6).
    angle : float
        Degrees, anticlockwise.

    Returns
    -------
    numpy.ndarray
        Shaped as `image`, and of its type; at 0 degrees, and of a cloud without a grid, `image`
        itself.
    """
    if angle == 0 or (is_scan(image) and image.shape[0] == 1):
        return image
    height, width = image.shape[:2]
    matrix = rotation((width / 2, height / 2), angle)
    if is_scan(image):
        return _rotate_scan(image, matrix)
    try:
        import cv2
    except ImportError:  # the same pixels, only later
        return warp(image, matrix, (width, height))
    mirrored = cv2.BORDER_REFLECT_101
    rotated = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=mirrored
    )
    return np.asarray(rotated, dtype=np.uint8)


def _rotate_scan(image: NDArray[np.float32], matrix: Affine) -> NDArray[np.float32]:
    """A scan turned on its grid: points keep their places in space, as features of them do."""
    height, width = image.shape[:2]
    back = inverse(matrix)
    y, x = np.mgrid[:height, :width]
    there = np.rint(np.stack([x, y, np.ones_like(x)], -1) @ back.T).astype(int)
    inside = ((there >= 0) & (there < [width, height])).all(-1)
    turned: NDArray[np.float32] = image[
        there[..., 1].clip(0, height - 1), there[..., 0].clip(0, width - 1)
    ]
    turned[~inside, 3:] = np.nan
    return turned
