"""Thresholds from good images alone.

A conformal threshold needs no model of the scores: if the next good part is drawn like the ones
that were scored, it exceeds the k-th smallest of n scores with a probability of at most
1 - k / (n + 1) (Vovk et al., 2005, chapter 2). With n scores no rate under 1 / (n + 1) can be
promised; below that the threshold is extrapolated and marked as an estimate.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from offnominal.errors import OptionError

__all__ = ["Threshold", "check_rate", "choose_threshold", "p_value"]


# Times the largest score of a good image: a threshold beyond it would pass whatever comes.
_FARTHEST = 100


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it promises.

    Attributes
    ----------
    value : float
        A score above it means reject.
    kind : {"conformal", "approximate", "estimate"}
        Whether the rate is promised; or would be, had the good images been scored as a new one is;
        or is extrapolated.
    false_reject : float
        The rate of rejected good parts that was asked for, on (0, 1).
    count : int
        Number of good images behind it.
    tightest : float
        The smallest rate that this many images can promise, 1 / (count + 1).
    """

    value: float
    kind: Literal["conformal", "approximate", "estimate"]
    false_reject: float
    count: int

    @property
    def tightest(self) -> float:
        """The smallest rate that this many images can promise."""
        return 1 / (self.count + 1)

    def __str__(self) -> str:
        """Say in words what is promised."""
        if self.kind == "conformal":
            return (
                f"{self.value:.4g}: at most {_percent(self.false_reject)} of good parts are "
                f"rejected (conformal, {self.count} good images)"
            )
        if self.kind == "approximate":
            return (
                f"{self.value:.4g}: about {_percent(self.false_reject)} of good parts are rejected "
                f"(approximate: {self.count} references, scored by a model that was not fitted "
                "without them); `offnominal calibrate` with other good images gives a promise"
            )
        needed = math.ceil(1 / self.false_reject) - 1
        return (
            f"{self.value:.4g}: an ESTIMATE for {_percent(self.false_reject)} of good parts; "
            f"{self.count} good images can promise {_percent(self.tightest)} at the tightest, and "
            f"{_percent(self.false_reject)} takes {needed}. Add good images with "
            f"`offnominal calibrate`, or ask for --false-reject {_round_up(self.tightest)}"
        )


def check_rate(false_reject: float) -> None:
    """Raise an :class:`OptionError` if the rate is not inside (0, 1)."""
    if not isinstance(false_reject, int | float) or not 0 < false_reject < 1:
        raise OptionError(f"--false-reject {false_reject}: give a rate between 0 and 1, as 0.01")


def choose_threshold(scores: ArrayLike, false_reject: float) -> Threshold | None:
    """Threshold for a false-reject rate from the scores of good images.

    Parameters
    ----------
    scores : array of shape (n,)
        Scores of good images that the bank did not hold when they were scored.
    false_reject : float
        The rate of rejected good parts to stay under, on (0, 1).

    Returns
    -------
    Threshold or None
        The conformal threshold where n >= 1 / rate - 1. Otherwise an estimate: the upper prediction
        bound of the next score with the logarithms of the scores taken as normal (mean + t s
        sqrt(1 + 1/n), Student's t with n - 1 degrees of freedom), never under the largest score.
        None where even that cannot be had: with fewer than three scores, where the bound lies a
        hundred times above the largest, or where all are 0, so that nothing was told apart.

    Raises
    ------
    OptionError
        If a score is not finite, or the rate not inside (0, 1).
    """
    check_rate(false_reject)
    values = np.sort(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(values).all():
        raise OptionError("scores: some are not finite, so no threshold follows from them")
    n = len(values)
    if not values.any():  # nothing was told apart, so nothing can be decided by it
        return None
    # The tolerance keeps (n + 1) * (1 - rate) that is whole in exact arithmetic from rounding up.
    rank = math.ceil((n + 1) * (1 - false_reject) - 1e-9)
    if rank <= n:
        return Threshold(float(values[max(rank, 1) - 1]), "conformal", false_reject, n)
    if n < 3:
        return None
    from scipy.stats import t

    logs = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    bound = logs.mean() + t.ppf(1 - false_reject, n - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / n)
    if bound > math.log(_FARTHEST * max(float(values[-1]), np.finfo(np.float64).tiny)):
        return None
    return Threshold(max(float(np.exp(bound)), float(values[-1])), "estimate", false_reject, n)


def p_value(score: float, scores: ArrayLike) -> float | None:
    """Conformal p-value: how unusual a score is among those of good images.

    (1 + number of good scores at or above it) / (n + 1); for a good part it is under any p with a
    probability of at most p. None without good scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        return None
    return float((1 + np.count_nonzero(values >= score)) / (len(values) + 1))


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _round_up(rate: float) -> float:
    return math.ceil(rate * 1000) / 1000
