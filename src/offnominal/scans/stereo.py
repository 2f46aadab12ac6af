"""What a stereo camera makes of a surface: noise, shadows of its second eye, points it misses."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["measured", "rays"]

Floats = NDArray[np.float64]

_FIELD = 128 / 320  # width of what is seen, of its distance
_BASE = 40.0  # millimetres between the two eyes
_AT = 300.0  # millimetres, where the noise is what it is said to be
_STEEP = 0.19  # cosine between ray and normal below which nothing is matched
_SPECKS = 0.002  # share of points that is missed for no reason
_SUBPIXEL = 0.75


def rays(size: int) -> Floats:
    """Directions (size, size, 3) of the pixels, of length 1 along z."""
    middle = (size - 1) / 2
    slope = (np.arange(size) - middle) / size * _FIELD
    x, y = np.meshgrid(slope, slope)
    return np.dstack([x, y, np.ones_like(x)])


def measured(
    z: Floats, facing: Floats, noise_mm: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Depths as they are measured.

    Parameters
    ----------
    z : float array of shape (H, W)
        True ones in millimetres; NaN where there is nothing.
    facing : float array of shape (H, W)
        Cosine between the surface's normal and the way to the camera.
    noise_mm : float
        Standard deviation at 300 mm; it grows with the square of the distance, as an error of
        matching does.

    Returns
    -------
    float array of shape (H, W)
        NaN where nothing was measured: at steep walls, where the second eye sees something nearer,
        on single points and in small patches.
    """
    size = z.shape[1]
    white = rng.standard_normal((2, *z.shape))
    # Windows of matching overlap: neighbours err together, in part.
    together = gaussian_filter(white[0], 0.9)
    error = 0.8 * together / together.std() + 0.6 * white[1]
    found = z + noise_mm * (z / _AT) ** 2 * error
    lost = ~np.isfinite(z) | (facing < _STEEP)
    # A nearer point to the right lies, for the second eye, over those that it reaches back to.
    focal = size / _FIELD
    shifted = np.arange(size) - focal * _BASE / np.where(np.isfinite(z), z, 1e6)
    from_right = np.minimum.accumulate(shifted[:, ::-1], axis=1)[:, ::-1]
    lost[:, :-1] |= from_right[:, 1:] < shifted[:, :-1] - _SUBPIXEL
    lost |= rng.random(z.shape) < _SPECKS
    patches = gaussian_filter(rng.standard_normal(z.shape), 1.6)
    lost |= patches > 3.35 * patches.std()
    kept: Floats = np.where(lost, np.nan, found)
    return kept
