"""Perlin defects: smooth random blotches, filled with a texture that is not the part's.

Zavrtanik, Kristan and Skocaj, "DRAEM - A discriminatively trained reconstruction embedding for
surface anomaly detection", ICCV 2021 (arXiv 2108.07610), section 3.3.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.synthesis.textures import Textures

__all__ = ["blend", "perlin_defect", "perlin_mask", "perlin_noise"]

_FINEST = 6  # cells along a side: powers of two below 2^6
_THRESHOLD = 0.5  # the paper draws it; the released code has this
_OPAQUE = 0.8  # of the good image, up to so much is left to shine through
_TRIES = 24

Rng = np.random.Generator
Picture = NDArray[np.uint8]


def perlin_noise(
    shape: tuple[int, int], cells: tuple[int, int], angles: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Gradient noise (Perlin, 1985; with the fade of 2002), about on [-1, 1].

    Parameters
    ----------
    shape : (H, W)
        In pixels; need not be a multiple of `cells`.
    cells : (rows, columns)
        Of the lattice.
    angles : array of shape (rows + 1, columns + 1)
        Of the gradient at each corner, in radians, from the downward axis.

    Returns
    -------
    float64 array of shape (H, W)
    """
    at = [np.arange(side) * (count / side) for side, count in zip(shape, cells, strict=True)]
    (top, left), (y, x) = zip(*((p.astype(int), p % 1) for p in at), strict=True)
    down, across = np.cos(angles), np.sin(angles)

    def corner(i: int, j: int) -> NDArray[np.float64]:
        here = np.ix_(top + i, left + j)
        return np.asarray(down[here] * (y - i)[:, None] + across[here] * (x - j))

    fade_y, fade_x = (t**3 * (t * (t * 6 - 15) + 10) for t in (y[:, None], x))
    before = corner(0, 0) + fade_y * (corner(1, 0) - corner(0, 0))
    after = corner(0, 1) + fade_y * (corner(1, 1) - corner(0, 1))
    return np.asarray(math.sqrt(2) * (before + fade_x * (after - before)))


def perlin_mask(height: int, width: int, rng: Rng) -> NDArray[np.bool_]:
    """Blotches: where noise, turned by up to 90 degrees, is above 0.5.

    Drawn anew while nothing is: with the noise's lattice of one or two cells that is common. After
    24 draws without a pixel, which only images of a few pixels see, the mask is empty.

    Parameters
    ----------
    height, width : int
    rng : numpy.random.Generator

    Returns
    -------
    bool array of shape (height, width)
    """
    mask = np.zeros((height, width), bool)
    for _ in range(_TRIES):
        rows, columns = (int(2**power) for power in rng.integers(0, _FINEST, 2))
        angles = rng.uniform(0, 2 * math.pi, (rows + 1, columns + 1))
        noise = perlin_noise((height, width), (rows, columns), angles)
        centre = ((width - 1) / 2, (height - 1) / 2)
        turn = cv2.getRotationMatrix2D(centre, rng.uniform(-90, 90), 1.0)
        mask = np.asarray(cv2.warpAffine(noise, turn, (width, height)) > _THRESHOLD)
        if mask.any():
            break
    return mask


def blend(
    image: NDArray[np.floating],
    texture: NDArray[np.floating],
    mask: NDArray[np.bool_],
    keep: float,
) -> NDArray[np.floating]:
    """A texture laid over an image, of which a share `keep` shines through (equation 3).

    The paper's opacity beta is ``1 - keep``, as in the released code's blend.

    Parameters
    ----------
    image, texture : float array of shape (H, W, 3)
    mask : bool array of shape (H, W)
    keep : float
        On [0, 1].

    Returns
    -------
    float array of shape (H, W, 3)
    """
    return np.where(mask[..., None], (1 - keep) * texture + keep * image, image)


def perlin_defect(
    image: Picture, rng: Rng, textures: Textures, within: NDArray[np.bool_] | None = None
) -> tuple[Picture, NDArray[np.bool_]]:
    """Lay a texture over blotches of an image.

    On an image without colour the texture has none either: from a grey camera no defect is
    coloured, and one that is would be found by its colour alone.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
    rng : numpy.random.Generator
    textures : Textures
    within : bool array of shape (H, W) or None
        Where the part is; the defect stays on it. None: anywhere.

    Returns
    -------
    image : uint8 array of shape (H, W, 3)
    mask : bool array of shape (H, W)
        The blotches; empty if none fell on the part.
    """
    height, width = image.shape[:2]
    for _ in range(_TRIES):
        mask = perlin_mask(height, width, rng)
        if within is not None:
            mask &= within
        if mask.any():
            break
    texture = textures.draw(height, width, rng)
    if (image == image[..., :1]).all():
        texture = np.repeat(cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    keep = rng.uniform(0, _OPAQUE)
    made = blend(image.astype(np.float32), texture.astype(np.float32), mask, keep)
    return np.round(made).astype(np.uint8), mask
