"""How alike two orders of the same things are."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["rank_correlation"]


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation, on [-1, 1], of two scores of the same images.

    Parameters
    ----------
    one, other : arrays of shape (n,)
        Equal values share the mean of their ranks.

    Returns
    -------
    float or None
        None of fewer than three, and where one of them does not vary.
    """
    first, second = _ranks(one), _ranks(other)
    if len(first) < 3 or not np.ptp(first) or not np.ptp(second):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (count.cumsum() - (count - 1) / 2)[place]
    return ranks.reshape(len(values))
