"""A bounded summary of any number of pixel scores, with a proven bound on what it loses.

A bin is an interval of scores with the pixels that fell in it. The bins are disjoint, and no pixel
is ever lost, so the number of pixels at or above a bin's lower edge is known exactly. Edges are
scores that occurred, close together where they matter: a bin takes a small share of the pixels at
or above it, which keeps false-positive rates exact in proportion, even the smallest. So single
pixels at the top, and frequent scores anywhere, have bins of their own.

When later scores crowd into an old bin, it is split. Which side of the new edge its old pixels
lie on is not known: they are shared out like the new ones, and by how much this may be wrong is
remembered as the edge's slack.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offnominal.metrics.batch import EVEN, Batch, ascending
from offnominal.metrics.pixels import Pixels
from offnominal.metrics.regions import SIZE_CLASSES
from offnominal.metrics.rows import Rows

__all__ = ["Bins", "caught"]

Doubles = npt.NDArray[np.float64]

_MOST = 2**18  # bins
_SHARE = 1e-4  # weight of a bin: of the good pixels at or above it, and of all, what it takes
_CROWDED = 2  # times its share, at which a bin is split
_CLASSES = len(SIZE_CLASSES)
# Lines of Bins.mass.
_GOOD, _DEFECTIVE = 0, 1
_OVERLAP = slice(2, 2 + _CLASSES)
_PEAKS = slice(2 + _CLASSES, 2 + 2 * _CLASSES)


@dataclass(frozen=True)
class Bins:
    """Pixels by score, from the lowest bin up.

    Attributes
    ----------
    low, high : float64 arrays of shape (k,)
        Smallest and largest score in each bin; ``high[i] < low[i + 1]``.
    mass : float64 array of shape (2 + 2 c, k)
        In each bin: good pixels; defective pixels; for each of the c size classes, defective pixels
        weighted by 1 / area of their region; for each size class, regions whose peak lies there.
    slack : float64 array of shape (3, k)
        How far the sums from each bin up may be off, for good pixels, defective pixels and weights.
    share : float
        Weight that a bin is allowed: of the good pixels at or above it, and of all, what it takes.
    """

    low: Doubles
    high: Doubles
    mass: Doubles
    slack: Doubles
    share: float = _SHARE

    @classmethod
    def empty(cls) -> "Bins":
        """Bins without any pixel."""
        none = np.empty(0)
        return cls(none, none, np.empty((2 + 2 * _CLASSES, 0)), np.empty((3, 0)))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(each.nbytes for each in (self.low, self.high, self.mass, self.slack))

    def fold(self, pixels: Pixels) -> "Bins":
        """New bins that hold the pixels as well."""
        batch = Batch(pixels)
        inner, outer = self._candidates(batch.edges(self.share))
        # The next score above a bin that is full by itself must not fall into it.
        heavy = np.flatnonzero(_weight(_three(self.mass)) > self.share)
        outer = ascending(outer, self._candidates(batch.above(self.high[heavy]))[1])
        if len(inner):
            inner = self._crowded(inner, outer, batch)
        grown = self._insert(ascending(outer, inner), batch)
        return grown._compact() if len(grown.low) > _MOST else grown

    def rows(self) -> Rows:
        """The table of thresholds from the top."""
        good, bad, overlap = _three(self.mass)[:, ::-1]
        doubt: npt.NDArray[np.bool_] = self.slack.sum(axis=0) > 0
        # Pixels in doubt may be of either kind. Without good ones the ties still matter.
        either = ((bad > 0) & (good > 0)) | (bad > 1)
        either |= (doubt | np.append(doubt[1:], False))[::-1]
        mixed = (self.high > self.low)[::-1] & either
        slack = self.slack[:, ::-1] if doubt.any() else None
        return Rows(self.low[::-1], good, bad, overlap, mixed, slack)

    def _candidates(self, edges: Doubles) -> tuple[Doubles, Doubles]:
        """New edges inside of old bins, and those between them."""
        if not len(self.low):
            return np.empty(0), edges
        owner = np.searchsorted(self.low, edges, side="right") - 1
        outside: npt.NDArray[np.bool_] = (owner < 0) | (edges > self.high[owner])
        inside: npt.NDArray[np.bool_] = ~outside & (edges > self.low[owner])
        return edges[inside], edges[outside]

    def _crowded(self, inner: Doubles, outer: Doubles, batch: Batch) -> Doubles:
        """Those of the `inner` edges whose bins would be too full with the batch."""
        low = ascending(self.low, outer)
        three, _ = batch.three(low)
        three[:, np.searchsorted(low, self.low)] += _three(self.mass)
        owner = np.searchsorted(low, inner, side="right") - 1
        weight: Doubles = _weight(three)[owner]
        return inner[weight > _CROWDED * self.share]

    def _insert(self, edges: Doubles, batch: Batch) -> "Bins":
        """Split at `edges`, then add the batch."""
        low = ascending(self.low, edges)
        three, high = batch.three(low)
        mass = np.empty((2 + 2 * _CLASSES, len(low)))
        mass[:2] = three[:2]
        batch.by_class(low, mass[2:])
        slack = np.zeros((3, len(low)))
        if len(self.low):
            part, owner, fraction, reach = self._parts(low, three)
            high[part] = np.maximum(high[part], reach)
            for line, old in zip(mass, self.mass, strict=True):
                line[part] += old[owner] * fraction
            three[:] = 0
            three[:, part] = _three(self.mass)[:, owner] * fraction
            self._slacken(low, three, slack)
        # A bin that is empty for certain has no largest score.
        kept = high >= low
        if kept.all():
            return Bins(low, high, mass, slack, self.share)
        return Bins(low[kept], high[kept], mass[:, kept], slack[:, kept], self.share)

    def _parts(
        self, low: Doubles, new: Doubles
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Doubles, Doubles]:
        """Spread the old pixels over the parts of their bins, as the new ones lie.

        Returns the bins that get old pixels, the old bin of each, the fraction of that one's pixels
        and the largest score that they may have.
        """
        owner = np.searchsorted(self.low, low, side="right") - 1
        part = np.flatnonzero((owner >= 0) & (low <= self.high[owner]))
        owner = owner[part]
        ends = np.append(low[1:], np.inf)[part]
        reach = np.minimum(np.nextafter(ends, -np.inf), self.high[owner])
        # Parts of one score keep to the new pixels; slack covers old ones that share it.
        weight = np.where(reach > low[part], new[0, part] + new[1, part], 0.0)
        total = np.bincount(owner, weight, minlength=len(self.low))
        first = low[part] == self.low[owner]
        weight = np.where(total[owner] > 0, weight, first)
        return part, owner, weight / np.where(total > 0, total, 1.0)[owner], reach

    def _slacken(self, low: Doubles, shared: Doubles, slack: Doubles) -> None:
        """Set the edges' slack; `shared` holds the old pixels as they are shared out."""
        place = np.searchsorted(low, self.low)
        slack[:, place] = self.slack
        fresh = np.ones(len(low), np.bool_)
        fresh[place] = False
        rows = np.flatnonzero(fresh)
        owner = np.searchsorted(self.low, low[rows], side="right") - 1
        inside = (owner >= 0) & (low[rows] <= self.high[owner])
        # Between bins the old pixels above are those of the next bin up and further.
        reference = np.where(inside, owner, owner + 1)
        for line, (old, doubt, guess) in enumerate(
            zip(_three(self.mass), self.slack, shared, strict=True)
        ):
            known, unsure = np.append(_from_top(old), 0.0), np.append(doubt, 0.0)
            guessed = _from_top(guess)[rows]
            most = known[reference] + unsure[reference] - guessed
            least = guessed - known[owner + 1] + unsure[owner + 1]
            found = np.maximum(np.maximum(most, least), 0)
            # Sums of fractions round; what is that small is not slack.
            slack[line, rows] = np.where(found > 1e-11 * max(known[0], 1.0), found, 0.0)

    def _compact(self) -> "Bins":
        """Join neighbours until a quarter of the room is free."""
        weight = _weight(_three(self.mass))
        share = self.share
        while True:
            position = np.floor(np.cumsum(weight[::-1]) / share)[::-1]
            alone = weight > share
            starts = np.ones(len(weight), np.bool_)
            starts[1:] = (position[1:] != position[:-1]) | alone[1:] | alone[:-1]
            if np.count_nonzero(starts) <= _MOST * 3 // 4:
                break
            share *= 1.25
        first = np.flatnonzero(starts)
        return Bins(
            self.low[first],
            np.maximum.reduceat(self.high, first),
            np.add.reduceat(self.mass, first, axis=1),
            self.slack[:, first],
            share,
        )


def _from_top(mass: Doubles) -> Doubles:
    """Sums from each bin up."""
    sums: Doubles = np.cumsum(mass[::-1])[::-1]
    return sums


def _three(mass: Doubles) -> Doubles:
    """Good pixels, defective pixels, and weights of all sizes."""
    return np.stack([mass[_GOOD], mass[_DEFECTIVE], mass[_OVERLAP].sum(axis=0)])


def _weight(three: Doubles) -> Doubles:
    """What each bin takes of the pixels at or above it, and of all; the defective count half."""
    weight: Doubles = np.zeros(three.shape[1])
    for mass, factor in zip(three, (1.0, 0.5, 0.5), strict=True):
        if mass.any():
            above = _from_top(mass)
            share = np.divide(mass, above, out=np.zeros_like(mass), where=mass > 0)
            weight += factor * (share + EVEN * mass / above[0])
    return weight


def caught(bins: Bins, false_positives: int) -> tuple[Doubles, Doubles]:
    """Overlap and peaks of each size class, summed, above the tightest threshold.

    The threshold lets at most `false_positives` good pixels reach it. Inside a bin of several
    scores it is taken to split everything in proportion.
    """
    good = np.cumsum(bins.mass[_GOOD][::-1])
    whole = int(np.searchsorted(good, false_positives, side="right"))
    part = np.zeros(len(good))
    part[:whole] = 1
    if whole < len(good):
        row = len(good) - 1 - whole
        if bins.high[row] > bins.low[row]:
            start = good[whole - 1] if whole else 0.0
            part[whole] = (false_positives - start) / bins.mass[_GOOD, row]
    overlap: Doubles = bins.mass[_OVERLAP][:, ::-1] @ part
    return overlap, bins.mass[_PEAKS][:, ::-1] @ part
