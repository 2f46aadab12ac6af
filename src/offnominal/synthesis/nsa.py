"""NSA: patches of one good image blended into another by solving Poisson's equation.

Schlüter, Tan, Hou and Kainz, "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and
Localization", ECCV 2022 (arXiv 2109.15222), section 3; Pérez, Gangnet and Blake, "Poisson Image
Editing", SIGGRAPH 2003, for the blending, by OpenCV's ``seamlessClone``.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.synthesis.exact import exact

__all__ = ["nsa"]

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# Half of a patch's side, as a share of the image's: 0.03 and a gamma variate, within bounds.
_LEAST, _MOST, _SHAPE, _SCALE = 0.03, 0.4, 2.0, 0.05
_MORE = 0.5  # probability of every patch after the first
_OF_OBJECT = 0.7  # of a patch, where it is cut out
_ON_OBJECT = 0.25  # of a patch, where it is put
_TRIES = 200
_FEWEST = 50  # pixels
_SMALLEST = 5  # pixels of a side: OpenCV leaves out the outermost, and fails where nothing is left


class _Box(NamedTuple):
    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)


def nsa(
    image: Image,
    source: Image,
    rng: np.random.Generator,
    on: Mask | None = None,
    source_on: Mask | None = None,
    most: int | None = None,
) -> tuple[Image, Mask]:
    """Blend up to ``most`` patches of another good image into this one.

    Objects are known by their masks; where there is none, the picture is a texture: patches may be
    resized by 0.5 to 2 instead of 0.7 to 1.3, and the stronger of the two gradients is kept
    (``MIXED_CLONE``) instead of the patch's. The released code tells the object by its brightness,
    with limits for each class of MVTec AD, which also bound the patches' sides; here these are 3
    to 40 % for all, and what hangs over the object is cut off.

    Parameters
    ----------
    image, source : uint8 array of shape (H, W, 3)
        Of any two sizes.
    rng : numpy.random.Generator
    on, source_on : bool array of shape (H, W) or None
        The object in each of the two; both or neither.
    most : int or None
        Patches; None: 3 on objects and 4 on textures, as in the released code. The first one is
        always made, each further one with probability a half.

    Returns
    -------
    image : uint8 array of shape (H, W, 3)
    mask : bool array of shape (H, W)
        What changed; empty where no place was found in 200 tries.
    """
    made = image
    for number in range(most or (4 if on is None else 3)):
        if number == 0 or rng.random() < _MORE:
            made = _blended(made, source, rng, on, source_on)
    return exact(image, made, on)


def _blended(
    image: Image, source: Image, rng: np.random.Generator, on: Mask | None, source_on: Mask | None
) -> Image:
    height, width = image.shape[:2]
    for _ in range(_TRIES):
        box = _box(source.shape[:2], rng)
        if source_on is not None and source_on[box.rows, box.columns].mean() < _OF_OBJECT:
            continue
        low, high = (0.5, 2.0) if on is None else (0.7, 1.3)
        factor = float(np.clip(rng.normal(1.0, 0.5), low, high))
        down, across = (
            max(
                _SMALLEST, int(np.clip(round(side * factor), 2 * _LEAST * whole, 2 * _MOST * whole))
            )
            for side, whole in ((box.height, height), (box.width, width))
        )
        if min(height - down, width - across) < 2:  # the image's own edge is left alone
            continue
        top, left = rng.integers(1, [height - down, width - across])
        place = _Box(int(top), int(left), down, across)
        if on is not None and on[place.rows, place.columns].mean() < _ON_OBJECT:
            continue
        patch = cv2.resize(source[box.rows, box.columns], (place.width, place.height))
        return _cloned(image, np.asarray(patch, np.uint8), place, on)
    return image


def _box(shape: tuple[int, ...], rng: np.random.Generator) -> _Box:
    """A patch of an image, whose centre is as far from the edge as the least half side."""
    found = []
    for side in shape:
        half = int(np.clip(_LEAST + rng.gamma(_SHAPE, _SCALE), _LEAST, _MOST) * side)
        margin = max(int(_LEAST * side), 1)
        centre = int(rng.integers(margin, side - margin))
        low, high = max(centre - half, 0), min(centre + half + 1, side)
        found.append((low, high - low))
    (top, height), (left, width) = found
    return _Box(top, left, height, width)


def _cloned(image: Image, patch: Image, place: _Box, on: Mask | None) -> Image:
    """The patch in its place, its gradients kept and its edge the image's."""
    # OpenCV centres the box around what the mask holds: where the object cuts a side off, that box
    # is smaller than the patch. So the patch is cut to it first.
    inside = np.zeros(image.shape[:2], np.uint8)
    inside[place.rows, place.columns] = 255
    if on is not None:
        inside[~on] = 0
    left, top, width, height = cv2.boundingRect(inside)
    if np.count_nonzero(inside) < _FEWEST or min(width, height) < _SMALLEST:
        return image
    full = image.copy()
    full[place.rows, place.columns] = patch
    cut = slice(top, top + height), slice(left, left + width)
    how = cv2.MIXED_CLONE if on is None else cv2.NORMAL_CLONE
    centre = (left + width // 2, top + height // 2)
    return np.asarray(cv2.seamlessClone(full[cut], image, inside[cut], centre, how), np.uint8)
