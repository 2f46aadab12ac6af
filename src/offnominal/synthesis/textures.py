"""Textures that are not the part's own, for synthetic defects: procedural, or of a folder.

After Zavrtanik, Kristan and Skocaj, "DRAEM", ICCV 2021 (arXiv 2108.07610), section 3.3.
"""

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from offnominal.errors import ImageError, OptionError
from offnominal.images import read_image
from offnominal.paths import find_images

__all__ = ["Textures"]

Rng = np.random.Generator
Picture = NDArray[np.uint8]

_TRIES = 20


class Textures:
    """Textures to fill defects with: procedural ones, or images of a folder.

    The paper takes photographs of textures (Describable Textures, Cimpoi et al., 2014). Procedural
    ones need no data: smooth clouds, stripes, cells and grains, in two random colours.

    Parameters
    ----------
    folder : path or None
        Images of textures, at best hundreds; None: procedural ones.

    Raises
    ------
    OptionError
        If there is no image in the folder, or, later, next to none that can be read.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = folder
        try:
            self.files = find_images(folder) if folder is not None else []
        except OptionError as error:
            raise OptionError(f"--textures {error}; leave it out for built-in ones") from error

    def draw(self, height: int, width: int, rng: Rng) -> Picture:
        """A texture at random, uint8 (height, width, 3), changed by three of ten augmenters."""
        texture = self._read(rng) if self.files else _procedural(height, width, rng)
        changed = Image.fromarray(texture).resize((width, height), Image.Resampling.BILINEAR)
        for number in rng.choice(len(_AUGMENTERS), 3, replace=False):
            changed = _AUGMENTERS[number](changed, rng)
        return np.array(changed)

    def _read(self, rng: Rng) -> Picture:
        """One of the folder's; a file that cannot be read makes room for another."""
        error: ImageError | None = None
        for _ in range(_TRIES):
            try:
                return read_image(self.files[int(rng.integers(len(self.files)))])
            except ImageError as found:
                error = found
        raise OptionError(f"--textures {self.folder}: its images cannot be read, such as {error}")


def _procedural(height: int, width: int, rng: Rng) -> Picture:
    """One of four patterns in [0, 1] between two colours, with some grain on each channel."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    kind = rng.integers(4)
    if kind == 0:  # clouds: octaves
        pattern = _clouds(height, width, rng)
    elif kind == 1:  # stripes, bent
        angle, waves = rng.uniform(0, math.pi), rng.uniform(4, 60)
        phase = waves * (x * math.cos(angle) + y * math.sin(angle))
        phase = phase + rng.uniform(0, 0.5) * _clouds(height, width, rng)
        pattern = np.sin(2 * math.pi * phase)
    elif kind == 2:  # cells, each around its centre
        squared = [(y - v) ** 2 + (x - u) ** 2 for v, u in rng.uniform(0, 1, (40, 2))]
        pattern = np.sqrt(np.min(squared, 0))
    else:  # grains
        grains = rng.standard_normal((height, width)).astype(np.float32)
        pattern = cv2.GaussianBlur(grains, (0, 0), rng.uniform(0.5, 4)).astype(np.float64)
    low, high = np.percentile(pattern, [2, 98])
    pattern = np.clip((pattern - low) / max(high - low, 1e-9), 0, 1)[..., None]
    one, other = rng.uniform(0, 255, (2, 3))
    grain = rng.uniform(0, 20) * rng.standard_normal((height, width, 3))
    return np.asarray(np.clip(one + pattern * (other - one) + grain, 0, 255), np.uint8)


def _clouds(height: int, width: int, rng: Rng) -> NDArray[np.float64]:
    """Random grids, each twice as fine as the one before and half as strong, made smooth."""
    grids = (
        rng.standard_normal((2 ** (n + 1),) * 2) / 2**n for n in range(int(rng.integers(1, 7)))
    )
    smooth = (cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) for grid in grids)
    return np.asarray(sum(smooth), np.float64)


def _gamma(image: Image.Image, rng: Rng) -> Image.Image:
    levels = np.arange(256) / 255
    return image.point([int(255 * v + 0.5) for g in rng.uniform(0.5, 2, 3) for v in levels**g])


def _brightness(image: Image.Image, rng: Rng) -> Image.Image:
    times, plus = rng.uniform(0.8, 1.2), rng.uniform(-30, 30)
    return image.point([int(np.clip(v * times + plus, 0, 255)) for v in range(256)] * 3)


def _colours(image: Image.Image, rng: Rng) -> Image.Image:
    hue, saturation = rng.integers(-50, 51, 2)
    values = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2HSV_FULL).astype(int)
    values[..., 0] = (values[..., 0] + hue) % 256
    values[..., 1] = np.clip(values[..., 1] + saturation, 0, 255)
    return Image.fromarray(cv2.cvtColor(values.astype(np.uint8), cv2.COLOR_HSV2RGB_FULL))


# The ten of the released code.
_AUGMENTERS: tuple[Callable[[Image.Image, Rng], Image.Image], ...] = (
    _gamma,
    _brightness,
    lambda image, rng: ImageEnhance.Sharpness(image).enhance(rng.uniform(0, 2)),
    _colours,
    lambda image, rng: (
        ImageOps.solarize(image, int(rng.integers(32, 129))) if rng.random() < 0.5 else image
    ),
    lambda image, rng: ImageOps.posterize(image, int(rng.integers(1, 9))),
    lambda image, rng: ImageOps.invert(image),
    lambda image, rng: ImageOps.autocontrast(image),
    lambda image, rng: ImageOps.equalize(image),
    lambda image, rng: image.rotate(rng.uniform(-45, 45), Image.Resampling.BILINEAR),
)
