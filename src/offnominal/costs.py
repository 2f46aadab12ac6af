"""A threshold from what mistakes cost, by scores of good and of defective images.

With few defects their scores alone settle no threshold, so how likely a score is to be a defect's
is smoothed by a logistic curve over the scores' logarithm (over the scores where some are not above
0), of two parameters. Its targets are drawn in from 0 and 1 by how few images there are (Platt,
"Probabilistic outputs for support vector machines", 1999, section 2.2), which keeps it finite where
good and defective ones lie apart.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offnominal.checks import check_range
from offnominal.errors import OptionError

__all__ = ["ByCost", "threshold_by_cost"]

Doubles = NDArray[np.float64]

_LEAST = 2  # good images
_STEPS = 100


@dataclass(frozen=True)
class ByCost:
    """A threshold and what it is expected to cost.

    Attributes
    ----------
    value : float
        A score above it means reject.
    cost : float
        Expected for each part, in the unit of the costs, by the images below; of few images none
        is no proof of never, so one in two more is added to each (Laplace's rule of succession).
    missed, defects : int
        How many of the defective images it passes, and how many there are.
    rejected, good : int
        How many of the good images it rejects, and how many there are.
    """

    value: float
    cost: float
    missed: int
    defects: int
    rejected: int
    good: int


def threshold_by_cost(
    good: ArrayLike, defects: ArrayLike, miss: float, reject: float, rate: float
) -> ByCost:
    """The threshold that makes mistakes cost least.

    Parameters
    ----------
    good, defects : arrays of shape (n,) and (m,)
        Scores of images that the detector did not learn from.
    miss, reject : float
        What a defect that passes costs, and a good part that is rejected, in one unit.
    rate : float
        Share of the parts on the line that are defective, on (0, 1); that of the images given says
        nothing about it.

    Raises
    ------
    OptionError
        If there are too few images, the curve does not rise (defects score no higher than good
        ones), or a number is out of its range.
    """
    check_range("cost_miss", miss, above=0)
    check_range("cost_reject", reject, above=0)
    check_range("defect_rate", rate, above=0, below=1)
    low, high = (np.asarray(each, dtype=np.float64) for each in (good, defects))
    if len(low) < _LEAST or not len(high):
        raise OptionError(
            f"--cost-miss: {len(low)} good and {len(high)} defective images are too few to weigh "
            f"costs by; give {_LEAST} good ones or more, and 1 defective one"
        )
    scores = np.r_[low, high]
    ratios = bool((scores > 0).all())
    values = np.log(scores) if ratios else scores
    slope, offset = _curve(values, np.arange(len(values)) >= len(low))
    if slope <= 0:
        raise OptionError(
            "--cost-miss: the defective images score no higher than the good ones, so no threshold "
            "tells them apart; look at the images, or choose another method"
        )
    # The curve is that of the images given; on the line defects are rarer.
    prior = math.log(rate / (1 - rate)) - math.log(len(high) / len(low))
    value = (math.log(reject / miss) - prior - offset) / slope
    value = math.exp(min(value, 700.0)) if ratios else value
    missed, rejected = int((high <= value).sum()), int((low > value).sum())
    cost = rate * miss * (missed + 1) / (len(high) + 2)
    cost += (1 - rate) * reject * (rejected + 1) / (len(low) + 2)
    return ByCost(value, cost, missed, len(high), rejected, len(low))


def _curve(values: Doubles, defective: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of the log-odds of being defective, over values (n,), by Newton's steps."""
    centre, spread = float(values.mean()), float(values.std()) or 1.0
    x = np.stack([(values - centre) / spread, np.ones(len(values))], axis=1)
    many, few = int((~defective).sum()), int(defective.sum())
    target = np.where(defective, (few + 1) / (few + 2), 1 / (many + 2))
    found = np.zeros(2)
    for _ in range(_STEPS):
        share = 1 / (1 + np.exp(-np.clip(x @ found, -500, 500)))
        bend = (x * (share * (1 - share))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(bend, x.T @ (target - share))
        longest = float(np.abs(step).max())
        found = found + step * min(1.0, 2.0 / max(longest, 1e-300))
        if longest < 1e-10:
            break
    slope = float(found[0]) / spread
    return slope, float(found[1]) - slope * centre
