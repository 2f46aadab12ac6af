"""Whether scores drift: does the line make other parts, or the camera other pictures, by and by?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Drift", "drift"]

_FEWEST = 30  # images, under which no trend is told from chance
_SURE = 4.0  # standard deviations: by chance once in 16,000 runs
_MUCH = 0.7  # chance that a late image scores higher than an early one; 0.5 is no drift


class Drift(NamedTuple):
    """Medians of the first and of the last third of images, and how many images a third has."""

    first: float
    last: float
    images: int


def drift(scores: Sequence[float]) -> Drift | None:
    """How scores of good images moved from the first to the last; None where they did not.

    The first third is compared with the last by the rank-sum test (Mann and Whitney, 1947): a
    single outlier moves nothing. A shift has to be both beyond chance and large.

    Parameters
    ----------
    scores : sequence of float
        In the order of time.
    """
    third = len(scores) // 3
    if len(scores) < _FEWEST:
        return None
    first, last = np.asarray(scores[:third]), np.asarray(scores[-third:])
    higher = (_below(first, last) + (third - _below(-first, -last))) / (2 * third)
    chance = float(higher.mean())
    deviation = ((2 * third + 1) / (12 * third * third)) ** 0.5
    if abs(chance - 0.5) < max(_SURE * deviation, _MUCH - 0.5):
        return None
    return Drift(float(np.median(first)), float(np.median(last)), third)


def _below(first: npt.NDArray[np.float64], last: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """For each of the last, how many of the first lie below it."""
    return np.searchsorted(np.sort(first), last, side="left")
