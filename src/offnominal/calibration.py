"""Thresholds from good images alone.

A conformal threshold needs no model of the scores: if the next good part is drawn like the ones
that were scored, it exceeds the k-th smallest of n scores with a probability of at most
1 - k / (n + 1) (Vovk et al., 2005, chapter 2). With n scores no rate under 1 / (n + 1) can be
promised. ``auto`` asks for the tightest rate that can, down to 1 %; below it, where somebody names
a rate, the threshold is extrapolated and marked as an estimate.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offnominal.checks import FalseReject, check_rate
from offnominal.errors import OptionError
from offnominal.text import digits

__all__ = ["Threshold", "by_hand", "choose_threshold", "evidence", "guess"]
__all__ += ["p_value", "student_quantile"]

_TIGHTEST = 0.01  # that "auto" asks for
_PROMISES = (0.05, 0.01)  # rates of which it is told how many good images promise them
# Times the largest score of altered copies of an only image: see :func:`guess`.
_GUESS = 1.2
# Times the largest score of a good image: a threshold beyond it would pass whatever comes.
_FARTHEST = 100


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it promises.

    Attributes
    ----------
    value : float
        A score above it means reject.
    kind : {"conformal", "approximate", "estimate", "guess", "manual"}
        Whether the rate is promised; or would be, had the good images been scored as a new one is;
        or is extrapolated; or there is only one good image, and nothing is known of the rate; or
        somebody set it by hand, and nothing is known of the rate either.
    false_reject : float
        The rate of rejected good parts that was asked for, on (0, 1); of ``auto`` what it came to;
        NaN of one set by hand.
    count : int
        Number of good images behind it; 0 of one set by hand.
    tightest : float
        The smallest rate that this many images can promise, 1 / (count + 1).
    """

    value: float
    kind: Literal["conformal", "approximate", "estimate", "guess", "manual"]
    false_reject: float
    count: int

    @property
    def tightest(self) -> float:
        """The smallest rate that this many images can promise."""
        return 1 / (self.count + 1)

    def __str__(self) -> str:
        """Say in words what is promised."""
        told = digits(self.value)
        if self.kind == "manual":
            return (
                f"{told}: SET BY HAND, so no rate of rejected good parts is promised; `offnominal "
                "calibrate` with good images sets it anew"
            )
        rate, images = _percent(self.false_reject), f"{self.count} good images"
        if self.count == 1:
            images = "1 good image"
        if self.kind == "conformal":
            more = f"; {promises}" if (promises := self._promises()) else ""
            return f"{told}: up to {rate} of good parts may be rejected (conformal, {images}{more})"
        if self.kind == "approximate":
            return (
                f"{told}: about {rate} of good parts are rejected (approximate: "
                f"{images}, each scored without itself when it was learned); `offnominal "
                "calibrate` with others gives a promise"
            )
        if self.kind == "guess":
            return (
                f"{told}: a GUESS from altered copies of the only good image; how many "
                "good parts are rejected is not known. 2 good images promise 33.3 %, 19 promise "
                "5 %, 99 promise 1 %"
            )
        needed = math.ceil(1 / self.false_reject - 1e-9) - 1
        return (
            f"{told}: an ESTIMATE for {rate} of good parts; {images} can promise "
            f"{_percent(self.tightest)} at the tightest, and {rate} takes {needed}. Learn from "
            f"more (`offnominal add`, or another fit), or set the threshold by {needed} others "
            "with `offnominal calibrate`, or ask for --false-reject auto"
        )

    def _promises(self) -> str:
        """How many good images promise the tighter rates that people ask for."""
        wanted = [(math.ceil(1 / rate - 1e-9) - 1, rate) for rate in _PROMISES]
        told = [(n, rate) for n, rate in wanted if n > self.count and rate < self.false_reject]
        words = [f"{n} promise {_percent(rate)}" for n, rate in told]
        if words:
            words[0] = words[0].replace(" promise", " good parts promise")
        return ", ".join(words)


def choose_threshold(scores: ArrayLike, false_reject: FalseReject) -> Threshold | None:
    """Threshold for a false-reject rate from the scores of good images.

    Parameters
    ----------
    scores : array of shape (n,)
        Scores of good images that the bank did not hold when they were scored.
    false_reject : float or "auto"
        The rate of rejected good parts to stay under, on (0, 1). ``auto``: 1 / (n + 1), or 1 %
        where that is more.

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
    rate = max(_TIGHTEST, 1 / (n + 1)) if false_reject == "auto" else float(false_reject)
    # The tolerance keeps (n + 1) * (1 - rate) that is whole in exact arithmetic from rounding up.
    rank = math.ceil((n + 1) * (1 - rate) - 1e-9)
    if rank <= n:
        return Threshold(float(values[max(rank, 1) - 1]), "conformal", rate, n)
    if n < 3:
        return None
    logs = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    bound = logs.mean() + student_quantile(n - 1, 1 - rate) * logs.std(ddof=1) * math.sqrt(
        1 + 1 / n
    )
    if bound > math.log(_FARTHEST * max(float(values[-1]), np.finfo(np.float64).tiny)):
        return None
    return Threshold(max(float(np.exp(bound)), float(values[-1])), "estimate", rate, n)


def student_quantile(freedom: int, probability: float) -> float:
    """What Student's t, of some degrees of freedom, stays under with a probability on (0, 1)."""
    if probability <= 0.5:
        return -student_quantile(freedom, 1 - probability) if probability < 0.5 else 0.0
    low, high = 0.0, 1.0
    while _student_tail(freedom, high) > 1 - probability:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if _student_tail(freedom, middle) > 1 - probability:
            low = middle
        else:
            high = middle
    return high


def _student_tail(freedom: int, value: float) -> float:
    """The probability that Student's t exceeds a value above 0: half of I_x(freedom / 2, 1 / 2).

    The incomplete beta function by its continued fraction (Abramowitz and Stegun, 1964, 26.5.8 and
    26.5.2).
    """
    a, b, square = freedom / 2, 0.5, value * value
    x, y = freedom / (freedom + square), square / (freedom + square)
    size = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    size = math.exp(size + a * math.log(x) + b * math.log(y))
    if x < (a + 1) / (a + b + 2):  # where the fraction converges fast
        return size / (a * _beta_fraction(a, b, x)) / 2
    return 0.5 - size / (b * _beta_fraction(b, a, y)) / 2


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)), by the method of Lentz."""
    value, above, below = 1.0, 1.0, 0.0
    for term in range(1, 10_000):
        m = term // 2
        if term % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        above, below = 1 + d / above, 1 / (1 + d * below)
        value *= above * below
        if abs(above * below - 1) < 1e-16:
            break
    return value


def by_hand(value: float) -> Threshold:
    """A threshold that somebody named.

    Raises
    ------
    OptionError
        If it is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise OptionError(f"--threshold {value}: give a number, a score as `predict` prints them")
    return Threshold(float(value), "manual", math.nan, 0)


def guess(scores: ArrayLike, false_reject: FalseReject) -> Threshold | None:
    """Threshold from scores of altered copies of the only good image there is; None: all are 0.

    Nothing is promised. The largest of them came closest to what fresh good parts score, of what
    was tried on real and drawn parts; see the documentation of thresholds.
    """
    check_rate(false_reject)
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all() or not values.any():
        return None
    rate = 0.5 if false_reject == "auto" else float(false_reject)
    return Threshold(_GUESS * float(values.max()), "guess", rate, 1)


def p_value(score: float, scores: ArrayLike) -> float | None:
    """Conformal p-value: how unusual a score is among those of good images.

    (1 + number of good scores at or above it) / (n + 1); for a good part it is under any p with a
    probability of at most p. None without good scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        return None
    return float((1 + np.count_nonzero(values >= score)) / (len(values) + 1))


def evidence(score: float, good: NDArray[np.float64]) -> float:
    """The negative logarithm of a score's p-value among good ones, going on beyond them.

    Just above a good score that m others exceed it is -ln((m + 1) / (n + 1)), between two of them
    interpolated; above all it grows by 1 for each mean excess of the upper half over the median,
    and 0 is reached as far below the lowest.

    Parameters
    ----------
    score : float
    good : float64 array of shape (n,)
        Two or more.
    """
    steps, counts = np.unique(good, return_counts=True)
    above = len(good) - np.cumsum(counts)
    known = np.log((len(good) + 1) / (above + 1))
    excess = good[good > np.median(good)] - np.median(good)
    # Where most are equal, and the score without the one that is not.
    scale = excess.mean() if len(excess) else max(1e-6 * float(np.abs(good).max()), 1e-12)
    within = np.interp(score, [steps[0] - scale, *steps], [0, *known])
    return float(within + max(score - steps[-1], 0) / scale)


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"
