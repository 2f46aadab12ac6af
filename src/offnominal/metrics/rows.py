"""The table from which every pixel-level figure is computed: pixels by threshold, from the top.

A row holds the pixels whose scores lie between its threshold and that of the row before. Where all
of them share one score, or either kind is missing, the figures follow exactly. Where a row mixes
good and defective pixels of several scores, their order is unknown: the best and the worst order
give bounds that no data can leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["Figures", "Rows"]

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of the table, from the highest threshold down.

    Attributes
    ----------
    threshold : float64 array of shape (n,)
        Smallest score that falls in each row.
    good, defective : float64 arrays of shape (n,)
        Pixels in each row.
    overlap : float64 array of shape (n,)
        The same defective pixels, each weighted by 1 / area of its region.
    mixed : bool array of shape (n,) or None
        Rows whose pixels have several scores in an unknown order; None where there are none.
    slack : float64 array of shape (3, n) or None, only with `mixed`
        By how much the running sums of `good`, `defective` and `overlap` up to and with each row
        may be wrong; None where they are exact.
    """

    threshold: Doubles
    good: Doubles
    defective: Doubles
    overlap: Doubles
    mixed: npt.NDArray[np.bool_] | None = None
    slack: Doubles | None = None


@dataclass
class Figures:
    """Lower and upper bounds of the figures, summed up over rows as they come.

    Rows with slack must come in one piece.

    Parameters
    ----------
    good, defective, regions : int
        How many there are in all; none is zero.
    limits : sequence of float
        False-positive rates up to which the overlap is integrated.
    """

    good: int
    defective: int
    regions: int
    limits: Sequence[float]
    threshold: float = float("nan")
    _start: Doubles = field(default_factory=lambda: np.zeros(3))
    _sums: Doubles = field(init=False)
    _f1: Doubles = field(default_factory=lambda: np.zeros(2))

    def __post_init__(self) -> None:
        self._sums = np.zeros((2, 2 + len(self.limits)))

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        totals = np.array([self.good, self.defective, self.regions], np.float64)[:, None]
        # Running sums at the rows' ends, the first column before the first row: false positives,
        # true positives, and the overlap summed over the regions.
        ends = np.empty((3, len(rows.good) + 1))
        ends[:, 0] = self._start
        for line, mass in enumerate((rows.good, rows.defective, rows.overlap)):
            np.cumsum(mass, out=ends[line, 1:])
            ends[line, 1:] += self._start[line]
        self._start = ends[:, -1].copy()
        # Rounding in the sum of the weights may overshoot by some units of the last place.
        np.minimum(ends, totals, out=ends)
        lowest = highest = ends
        if rows.slack is not None:
            slack = np.concatenate([np.zeros((3, 1)), rows.slack], axis=1)
            lowest, highest = _envelopes(ends, slack, totals)
        mixed = rows.mixed
        lower = upper = self._areas(lowest[0], highest[1], highest[2], mixed, 1)
        if mixed is None:
            # Pixels of one score share one precision.
            precision = ends[1, 1:] / np.maximum(ends[0, 1:] + ends[1, 1:], 1)
            low = high = float(np.dot(np.diff(ends[1]), precision))
        else:
            lower = self._areas(highest[0], lowest[1], lowest[2], mixed, 0)
            low, high = _precision_bounds(ends, lowest, highest, mixed)
        self._sums[0] += [*lower, low / self.defective]
        self._sums[1] += [*upper, high / self.defective]
        self._best_f1(rows, ends, lowest, highest)

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Lower and upper bound of ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max`` and AUPRO."""
        names = ["pixel_auroc", *(aupro_name(limit) for limit in self.limits), "pixel_ap"]
        sums = np.clip(self._sums, 0, 1)
        found = {name: (float(a), float(b)) for name, a, b in zip(names, *sums, strict=True)}
        found["pixel_f1_max"] = (float(self._f1[0]), min(float(self._f1[1]), 1.0))
        return found

    def _areas(
        self,
        false: Doubles,
        true: Doubles,
        overlap: Doubles,
        mixed: npt.NDArray[np.bool_] | None,
        best: int,
    ) -> list[float]:
        rate = false / self.good
        wide = np.diff(rate)
        areas = [_area(wide, wide, true / self.defective, mixed, best)]
        share = overlap / self.regions
        for limit in self.limits:
            used = int(np.searchsorted(rate[:-1], limit))  # later rows start at or past it
            inside = np.minimum(wide[:used], limit - rate[:used])
            cut = None if mixed is None else mixed[:used]
            area = _area(inside, wide[:used], share[: used + 1], cut, best)
            areas.append(area / limit)
        return areas

    def _best_f1(self, rows: Rows, ends: Doubles, lowest: Doubles, highest: Doubles) -> None:
        total = self.defective
        sure = 2 * lowest[1, 1:] / (lowest[1, 1:] + highest[0, 1:] + total)
        best = int(np.argmax(sure))
        # Of equal ones the highest threshold: it rejects least.
        if sure[best] > self._f1[0]:
            self._f1[0], self.threshold = sure[best], float(rows.threshold[best])
        before = lowest[0, 1:]
        if rows.mixed is not None:
            before = np.where(rows.mixed, lowest[0, :-1], before)
        hoped = 2 * highest[1, 1:] / (highest[1, 1:] + before + total)
        self._f1[1] = max(self._f1[1], float(hoped.max()))


def aupro_name(limit: float) -> str:
    """The key of AUPRO integrated to `limit`."""
    return "aupro" if limit == 0.3 else f"aupro_{limit:g}"


def _area(
    inside: Doubles,
    wide: Doubles,
    height: Doubles,
    mixed: npt.NDArray[np.bool_] | None,
    best: int,
) -> float:
    """Area under rows that are `wide`, of each the part `inside`; heights at the rows' ends.

    Within a row the curve is a straight line, as pixels of one score cross the threshold together;
    in a mixed row it climbs at once (`best` 1) or at last (0).
    """
    start, end = height[: len(wide)], height[1 : len(wide) + 1]
    slope = np.divide(end - start, wide, out=np.zeros_like(wide), where=wide > 0)
    mean = start + slope * inside / 2
    if mixed is not None:
        mean = np.where(mixed, end if best else start, mean)
    return float(np.dot(inside, mean))


def _envelopes(ends: Doubles, slack: Doubles, totals: Doubles) -> tuple[Doubles, Doubles]:
    """Running sums that the true ones, which ascend too, cannot go below and above."""
    low, high = np.maximum(ends - slack, 0), np.minimum(ends + slack, totals)
    # Pixels are whole: the next number inside, with room for rounding.
    low[:2], high[:2] = np.ceil(low[:2] - 1e-3), np.floor(high[:2] + 1e-3)
    low = np.maximum.accumulate(low, axis=1)
    return low, np.minimum.accumulate(high[:, ::-1], axis=1)[:, ::-1]


def _precision_bounds(
    ends: Doubles,
    lowest: Doubles,
    highest: Doubles,
    mixed: npt.NDArray[np.bool_],
) -> tuple[float, float]:
    """Bounds of the sum of the precisions at all defective pixels.

    The sum is taken in two parts. The first is the sum of j / (j + F) over the defective pixels
    j = 1, 2, ... from the top, F the good pixels at or above each: it can only grow when a
    defective pixel moves up or a good one down, so the envelopes of the running sums bound it. The
    second is what ties add: each of d defective pixels of one score has the precision of the last.
    """
    false_low, true_low = lowest[:2]
    false_high, true_high = highest[:2]
    nearest = np.where(mixed, false_low[:-1], false_low[1:])
    low = _sum_of_precisions(true_low, false_high[1:])
    high = _sum_of_precisions(true_high, nearest)
    # Ties add F (1/(a+1) + ... + 1/(a+d) - d/(a+d)) for a = T + F before them: less for a larger a,
    # more for a larger d.
    least = np.maximum(true_low[1:] - true_high[:-1], 0)
    ties = false_low[1:] * _ties(true_high[:-1] + false_high[1:], least)
    low += float(np.sum(ties, where=~mixed))
    most = true_high[1:] - true_low[:-1]
    each = false_high[1:] * _ties(true_low[:-1] + nearest, most) / np.maximum(most, 1)
    # Summation by parts: pixels that may be in the next row take that row's amount.
    doubt = np.maximum(true_high - ends[1], ends[1] - true_low)[1:-1]
    high += float(np.dot(np.diff(ends[1]), each) + np.dot(doubt, np.abs(np.diff(each))))
    return low, high


def _sum_of_precisions(true: Doubles, false: Doubles) -> float:
    """Sum of j / (j + F) over the defective pixels j, with a constant F in each row."""
    start = true[:-1] + false
    return float(true[-1] - np.dot(false, _harmonic(start, np.diff(true))))


def _ties(start: Doubles, count: Doubles) -> Doubles:
    last = np.maximum(start + count, 1)
    return np.maximum(_harmonic(start, count) - count / last, 0)


def _harmonic(start: Doubles, count: Doubles) -> Doubles:
    """1 / (start + 1) + ... + 1 / (start + count)."""
    from scipy.special import digamma

    total: Doubles = digamma(start + count + 1) - digamma(start + 1)
    return total
