"""The table from which every pixel-level figure is computed: pixels by threshold, from the top.

A row holds the pixels whose scores lie between its threshold and that of the row before. Where all
of them share one score, or either kind is missing, the figures follow exactly. Where a row mixes
good and defective pixels of several scores, their order is unknown: the best and the worst order
bound the figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Figures", "Rows", "aupro_name"]

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


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
    """

    threshold: Doubles
    good: Doubles
    defective: Doubles
    overlap: Doubles
    mixed: Bools | None = None


class Figures:
    """Lower and upper bounds of the figures, summed up over rows as they come.

    Parameters
    ----------
    good, defective, regions : int
        How many there are in all; none is zero.
    limits : sequence of float
        False-positive rates up to which the overlap is integrated.
    """

    def __init__(self, good: int, defective: int, regions: int, limits: Sequence[float]) -> None:
        self.totals = np.array([good, defective, regions], np.float64)[:, None]
        self.limits = limits
        self.threshold = float("nan")
        self._start = np.zeros((3, 1))
        # The lower bounds and the upper ones, in the order of `found`.
        self._sums = np.zeros((2, 2 + len(limits)))
        self._f1 = [0.0, 0.0]

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        masses = np.stack([rows.good, rows.defective, rows.overlap])
        # Running sums at the rows' ends, the first column before the first row: false positives,
        # true positives, and the overlap summed over the regions.
        ends = np.concatenate([np.zeros((3, 1)), np.cumsum(masses, axis=1)], axis=1) + self._start
        self._start = ends[:, -1:].copy()
        # Rounding in the sum of the weights may overshoot by some units of the last place.
        np.minimum(ends, self.totals, out=ends)
        false, true = ends[0], ends[1]
        # Pixels of one score share one precision, that of the row's end.
        worst = best = true[1:] / np.maximum(false[1:] + true[1:], 1)
        if rows.mixed is not None:
            # All good ones first, and one defective; or all defective ones before any good one.
            worst = np.where(rows.mixed, (true[:-1] + 1) / (false[1:] + true[:-1] + 1), worst)
            best = np.where(rows.mixed, true[1:] / np.maximum(false[:-1] + true[1:], 1), best)
        for bound, precision in enumerate((worst, best)):
            ap = float(np.dot(rows.defective, precision)) / float(self.totals[1, 0])
            self._sums[bound] += [*self._areas(ends, rows.mixed, bound), ap]
        self._best_f1(rows, false, true)

    def found(self) -> dict[str, tuple[float, float]]:
        """The figures but the threshold, and how far each may be off."""
        names = ["pixel_auroc", *(aupro_name(limit) for limit in self.limits), "pixel_ap"]
        low, high = np.clip(self._sums, 0, 1)
        middles = zip(names, ((low + high) / 2).tolist(), ((high - low) / 2).tolist(), strict=True)
        found = {name: (value, error) for name, value, error in middles}
        # That of the threshold which is given with it, and not a better one inside a row.
        found["pixel_f1_max"] = self._f1[0], self._f1[1] - self._f1[0]
        return found

    def _areas(self, ends: Doubles, mixed: Bools | None, bound: int) -> list[float]:
        """Areas under the ROC curve and under the overlap up to each limit."""
        rate, recall, overlap = ends / self.totals
        wide = np.diff(rate)
        areas = [_area(wide, wide, recall, mixed, bound)]
        for limit in self.limits:
            used = int(np.searchsorted(rate[:-1], limit))  # later rows start at or past it
            inside = np.minimum(wide[:used], limit - rate[:used])
            cut = None if mixed is None else mixed[:used]
            areas.append(_area(inside, wide[:used], overlap[: used + 1], cut, bound) / limit)
        return areas

    def _best_f1(self, rows: Rows, false: Doubles, true: Doubles) -> None:
        total = float(self.totals[1, 0])
        sure = 2 * true[1:] / (true[1:] + false[1:] + total)
        best = int(np.argmax(sure))
        # Of equal ones the highest threshold: it rejects least.
        if sure[best] > self._f1[0]:
            self._f1[0], self.threshold = float(sure[best]), float(rows.threshold[best])
        hoped = sure
        if rows.mixed is not None:
            hoped = np.where(rows.mixed, 2 * true[1:] / (true[1:] + false[:-1] + total), sure)
        self._f1[1] = max(self._f1[1], float(hoped.max()))


def aupro_name(limit: float) -> str:
    """The key of AUPRO integrated to `limit`."""
    return "aupro" if limit == 0.3 else f"aupro_{limit:g}"


def _area(
    inside: Doubles, wide: Doubles, height: Doubles, mixed: Bools | None, bound: int
) -> float:
    """Area under rows that are `wide`, of each the part `inside`; heights at the rows' ends.

    Within a row the curve is a straight line, as pixels of one score cross the threshold together;
    in a mixed row it climbs at last (`bound` 0) or at once (1).
    """
    start, end = height[: len(wide)], height[1 : len(wide) + 1]
    slope = np.divide(end - start, wide, out=np.zeros_like(wide), where=wide > 0)
    mean = start + slope * inside / 2
    if mixed is not None:
        mean = np.where(mixed, end if bound else start, mean)
    return float(np.dot(inside, mean))
