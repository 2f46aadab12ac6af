"""Whether good parts come turned: a test without labels, on a few references.

A part that lies at any angle finds its like among references that were turned. One that always
lies the same way does not, and turned references only give its defects more to resemble.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MOST_TESTED",
    "OrientationTest",
    "lone_reference",
    "mean_square_distance",
    "orientation_test",
]

MOST_TESTED = 8
"""References that the test looks at, at most."""

_NEARER = 0.85  # of the squared distance as they are, which chance and symmetries rarely reach
_SHARE = 0.25  # of the pairs; one part of eight that lies otherwise is in no more
_QUERIES = 512  # patches of a reference that are looked up; a mean needs no more
_ALIKE = 1e-6  # of a squared length, which is what float32 leaves of no distance
_AT_ONCE = 2**14  # rows that they are compared with at a time


@dataclass(frozen=True)
class OrientationTest:
    """What the test found on some references.

    Attributes
    ----------
    turned : bool
        Whether good parts come turned.
    reason : str
        In words.
    nearer, pairs : int
        Ordered pairs of references of which the second is nearer to the first once it is turned,
        and all pairs.
    """

    turned: bool
    reason: str
    nearer: int
    pairs: int


def mean_square_distance(queries: NDArray[np.float32], rows: NDArray[np.float32]) -> float:
    """Mean squared distance of patches (q, D) to the nearest of rows (n, D); inf without rows.

    At most 512 of the patches are looked up, evenly drawn.
    """
    if not len(rows):
        return np.inf
    if len(queries) > _QUERIES:
        queries = queries[np.rint(np.linspace(0, len(queries) - 1, _QUERIES)).astype(np.int64)]
    own = np.square(queries).sum(1)
    nearest = np.full_like(own, np.inf)
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        products = queries @ some.T
        products *= -2
        products += np.square(some).sum(1)
        nearest = np.minimum(nearest, products.min(1) + own)
    # Patches that are equal come out as far apart as rounding has it.
    return float(np.where(nearest > _ALIKE * own, nearest, 0.0).mean(dtype=np.float64))


def orientation_test(distances: NDArray[np.floating]) -> OrientationTest:
    """Decide from distances between references whether good parts come turned.

    Parameters
    ----------
    distances : array of shape (n, n, angles)
        Mean squared distances (:func:`mean_square_distance`) of each of two references or more to
        each other that is turned by each angle, 0 degrees first. That of a reference to itself
        means nothing.

    Returns
    -------
    OrientationTest
        Parts come turned if in more than a quarter of the pairs the other one, turned by the best
        of the angles, is less than 0.85 times as far, by the squared distance, as it is upright.
    """
    count = len(distances)
    turned = distances[..., 1:].min(2) < _NEARER * distances[..., 0]
    nearer = int(turned.sum() - np.trace(turned))
    pairs = count * (count - 1)
    told = f"{nearer} of {pairs} pairs of good images are nearer when one is turned"
    return OrientationTest(nearer > _SHARE * pairs, told, nearer, pairs)


def lone_reference(turned: bool) -> OrientationTest:
    """A single reference has no other to tell by: the backbone decides."""
    usual = "turned, as the paper does with DINOv2" if turned else "not turned"
    told = f"one good image cannot tell: {usual}; fit anew once there are more"
    return OrientationTest(turned, told, 0, 0)
