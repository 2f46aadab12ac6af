"""What all looks share: soft noise, strokes, and the camera that takes the picture."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["SCALE", "Floats", "blur", "camera", "soft_noise", "stroke"]

#: Arrays of numbers with a point; float32 wherever an image is meant, for speed.
Floats = npt.NDArray[np.floating[Any]]

#: Scenes are drawn at this multiple of the picture's size and averaged down, for smooth edges.
SCALE = 2

_NOISE = 2.2  # standard deviation in the brightest parts, in grey levels


def camera(
    rng: np.random.Generator, shape: tuple[int, int]
) -> Callable[[Floats], npt.NDArray[np.uint8]]:
    """Draw exposure within 10 %, its fall-off, white balance, focus and grain.

    Returns
    -------
    callable
        Photographs a scene, RGB, 0 to 1 under even light, of shape (SCALE * H, SCALE * W, 3), as
        uint8 of `shape` (H, W) + (3,); every scene in the same way.
    """
    height, width = shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    across, down = rng.uniform(-0.035, 0.035, 2)
    light = rng.uniform(0.92, 1.08) * (1 + across * x + down * y - 0.03 * (x * x + y * y))
    light = light[..., None].astype(np.float32)
    noise = rng.standard_normal((height, width, 1), np.float32) * 0.8
    # Most of a sensor's noise is common to the channels once the colours are interpolated.
    noise = noise + rng.standard_normal((height, width, 3), np.float32) * 0.6
    grain = cv2.GaussianBlur(noise, (3, 3), 0.45) * np.float32(1.35)
    tint = rng.uniform(0.993, 1.007, 3).astype(np.float32)
    focus = float(rng.uniform(0.35, 0.6))

    def take(scene: Floats) -> npt.NDArray[np.uint8]:
        picture = cv2.resize(scene, (width, height), interpolation=cv2.INTER_AREA)
        picture = blur(picture, focus) * light * tint
        # Shot noise grows with the square root of the light received.
        picture = picture + grain * np.sqrt(np.clip(picture, 0.05, 1)) * (_NOISE / 255)
        return np.asarray(np.clip(picture * 255 + 0.5, 0, 255), np.uint8)

    return take


def blur(image: npt.NDArray[Any], sigma: float) -> Floats:
    """Gaussian blur; the border is mirrored."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


def soft_noise(
    rng: np.random.Generator, shape: tuple[int, int], cell: float | tuple[float, float]
) -> Floats:
    """Noise of mean 0 and deviation about 1 whose features are `cell` pixels high and wide."""
    tall, wide = cell if isinstance(cell, tuple) else (cell, cell)
    coarse = (max(2, round(shape[0] / tall) + 1), max(2, round(shape[1] / wide) + 1))
    seed = rng.standard_normal(coarse, np.float32)
    noise = cv2.resize(seed, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(noise, np.float32)


def stroke(shape: tuple[int, int], xy: npt.ArrayLike, width: int) -> Floats:
    """A smooth line through points (x, y): 1 on it and 0 beside it, of `shape` (H, W)."""
    canvas = np.zeros(shape, np.uint8)
    # OpenCV's fixed point, with shift=4.
    points = np.round(np.asarray(xy, np.float64) * 16).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(canvas, [points], False, (255,), width, cv2.LINE_AA, shift=4)
    return blur(canvas / np.float32(255), 0.8)
