"""What all looks share: soft noise, lettering, and the camera that takes the picture."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["SCALE", "Camera", "Floats", "blur", "haze", "letter", "points", "soft_noise", "stroke"]

#: Arrays of numbers with a point; float32 wherever an image is meant, for speed.
Floats = npt.NDArray[np.floating[Any]]

#: Scenes are drawn at this multiple of the picture's size and averaged down, for smooth edges.
SCALE = 2

# Strokes of each sign on a grid 2 wide and 4 high, a pair of digits a point. Fonts differ between
# versions of OpenCV; these do not.
_SIGNS = {
    "0": "00 20 24 04 00",
    "1": "01 10 14",
    "2": "00 20 22 02 04 24",
    "3": "00 20 24 04|02 22",
    "4": "00 02 22|20 24",
    "5": "20 00 02 22 24 04",
    "6": "20 00 04 24 22 02",
    "7": "00 20 14",
    "8": "00 20 24 04 00|02 22",
    "9": "22 02 00 20 24 04",
    "A": "04 01 10 21 24|02 22",
    "C": "20 00 04 24",
    "D": "00 10 21 23 14 04 00",
    "E": "20 00 04 24|02 12",
    "F": "20 00 04|02 12",
    "J": "20 24 04 03",
    "L": "00 04 24",
    "M": "04 00 12 20 24",
    "N": "04 00 24 20",
    "O": "00 20 24 04 00",
    "P": "04 00 20 22 02",
    "Q": "00 20 24 04 00|13 24",
    "R": "04 00 20 22 02|12 24",
    "S": "20 00 02 22 24 04",
    "T": "00 20|10 14",
    "U": "00 04 24 20",
    "V": "00 14 20",
    "X": "00 24|20 04",
    "Y": "00 12 20|12 14",
    "-": "02 22",
    "+": "02 22|11 13",
    " ": "",
}


@dataclass(frozen=True)
class Camera:
    """How one picture is taken; the same for a part before and after it is damaged.

    Attributes
    ----------
    light : float array of shape (H, W, 1)
        Illumination, about 0.9 to 1.1.
    tint : float array of shape (3,)
        White balance, about 1.
    focus : float
        Standard deviation of the lens's blur, in pixels of the picture.
    grain : float array of shape (H, W, 3)
        Sensor noise of standard deviation 1, scaled by the square root of the light received.
    noise : float
        Standard deviation of that noise in the brightest parts, in grey levels.
    """

    light: Floats
    tint: Floats
    focus: float
    grain: Floats
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator, shape: tuple[int, int], noise: float = 2.2) -> "Camera":
        """Draw exposure within 10 %, its fall-off, white balance, focus and grain."""
        height, width = shape
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        across, down = rng.uniform(-0.035, 0.035, 2)
        light = rng.uniform(0.92, 1.08) * (1 + across * x + down * y - 0.03 * (x * x + y * y))
        grain = rng.standard_normal((height, width, 1), np.float32) * 0.8
        # Most of a sensor's noise is common to the channels once the colours are interpolated.
        grain = grain + rng.standard_normal((height, width, 3), np.float32) * 0.6
        return cls(
            light=light[..., None].astype(np.float32),
            tint=rng.uniform(0.993, 1.007, 3).astype(np.float32),
            focus=float(rng.uniform(0.35, 0.6)),
            grain=cv2.GaussianBlur(grain, (3, 3), 0.45) * np.float32(1.35),
            noise=noise,
        )

    def take(self, scene: Floats) -> npt.NDArray[np.uint8]:
        """Photograph a scene.

        Parameters
        ----------
        scene : float array of shape (SCALE * H, SCALE * W, 3)
            RGB, 0 to 1 under even light.

        Returns
        -------
        uint8 array of shape (H, W, 3)
        """
        height, width = self.light.shape[:2]
        picture = cv2.resize(scene, (width, height), interpolation=cv2.INTER_AREA)
        picture = blur(picture, self.focus) * self.light * self.tint
        picture = picture + self.grain * np.sqrt(np.clip(picture, 0.05, 1)) * (self.noise / 255)
        return np.asarray(np.clip(picture * 255 + 0.5, 0, 255), np.uint8)


def blur(image: npt.NDArray[Any], sigma: float) -> Floats:
    """Gaussian blur; the border is mirrored."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


def haze(image: npt.NDArray[Any], sigma: float) -> Floats:
    """Gaussian blur of large `sigma`, computed at a quarter of the size."""
    small = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), sigma / 4)
    return np.asarray(cv2.resize(soft, image.shape[1::-1], interpolation=cv2.INTER_LINEAR))


def soft_noise(
    rng: np.random.Generator, shape: tuple[int, int], cell: float | tuple[float, float]
) -> Floats:
    """Noise of mean 0 and deviation about 1 whose features are `cell` pixels high and wide."""
    tall, wide = cell if isinstance(cell, tuple) else (cell, cell)
    coarse = (max(2, round(shape[0] / tall) + 1), max(2, round(shape[1] / wide) + 1))
    seed = rng.standard_normal(coarse, np.float32)
    noise = cv2.resize(seed, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(noise, np.float32)


def points(xy: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Turn coordinates of shape (n, 2) into OpenCV's fixed point, with shift=4."""
    return np.round(np.asarray(xy, np.float64) * 16).astype(np.int32).reshape(-1, 1, 2)


def stroke(canvas: npt.NDArray[np.uint8], xy: npt.ArrayLike, width: int, value: int = 255) -> None:
    """Draw a smooth line through points (x, y), in place."""
    cv2.polylines(canvas, [points(xy)], False, (value,) * 3, width, cv2.LINE_AA, shift=4)


def letter(
    canvas: npt.NDArray[np.uint8],
    text: str,
    at: tuple[float, float],
    height: float,
    width: int = 2,
    value: int = 255,
    turn: float = 0.0,
) -> None:
    """Write `text` in stroke letters centred on `at` (x, y), turned by `turn` degrees, in place."""
    unit = height / 4
    left = -(3 * len(text) - 1) / 2
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    for position, sign in enumerate(text):
        for line in filter(None, _SIGNS[sign].split("|")):
            grid = np.array([[int(pair[0]), int(pair[1])] for pair in line.split()], np.float64)
            grid = (grid + np.array([left + 3 * position, -2])) * unit
            stroke(canvas, grid @ [[cos, sin], [-sin, cos]] + at, width, value)
