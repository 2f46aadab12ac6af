"""A bounded summary of any number of pixel scores: fine bins whose edges stay where they are.

Edges are scores of the first pixels, close together where they matter: a bin takes a small share of
the pixels at or above it, which keeps false-positive rates exact in proportion, even the smallest.
So single pixels at the top, and frequent scores anywhere, have bins of their own. Scores beyond the
first ones' range begin further bins. No pixel is lost and no bin is split, so the number of pixels
at or above an edge is known exactly; only their order inside a bin is not.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offnominal.metrics.pixels import Pixels, round_up
from offnominal.metrics.regions import SIZE_CLASSES
from offnominal.metrics.rows import Rows

__all__ = ["Bins"]

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]

_MOST = 2**18  # bins
_SHARE = 1e-4  # weight of a bin: of the pixels at or above it, and of all, what it takes
_EVEN = 4  # weight of a share of all pixels, beside a share of those above a bin
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
    low : float64 array of shape (k,)
        Where each bin begins; it ends where the next one does.
    mass : float64 array of shape (2 + 2 c, k)
        In each bin: good pixels; defective pixels; for each of the c size classes, defective pixels
        weighted by 1 / area of their region; for each size class, regions whose peak lies there.
    """

    low: Doubles
    mass: Doubles

    @classmethod
    def empty(cls) -> "Bins":
        """Bins without any pixel."""
        return cls(np.empty(0), np.empty((2 + 2 * _CLASSES, 0)))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.low.nbytes + self.mass.nbytes

    def fold(self, pixels: Pixels) -> "Bins":
        """New bins that hold the pixels as well."""
        edges = _edges(pixels)
        if len(self.low):
            edges = edges[(edges < self.low[0]) | (edges > self.low[-1])]
        low = np.union1d(self.low, edges)
        mass = _count(pixels, low)
        mass[:, np.searchsorted(low, self.low)] += self.mass
        return _joined(low, mass) if len(low) > _MOST else Bins(low, mass)

    def rows(self) -> Rows:
        """The table of thresholds from the top."""
        good, defective, overlap = _three(self.mass)[:, ::-1]
        # Without good pixels the order of the defective ones still matters to the precision.
        mixed = self._several()[::-1] & (defective > 0) & ((good > 0) | (defective > 1))
        return Rows(self.low[::-1], good, defective, overlap, mixed)

    def caught(self, false_positives: int) -> tuple[Doubles, Doubles]:
        """Overlap and peaks of each size class, summed, above the tightest threshold.

        The threshold lets at most `false_positives` good pixels reach it. Inside a bin of several
        scores it is taken to split everything in proportion.
        """
        good = np.cumsum(self.mass[_GOOD][::-1])
        whole = int(np.searchsorted(good, false_positives, side="right"))
        part = np.zeros(len(good))
        part[:whole] = 1
        if whole < len(good) and self._several()[::-1][whole]:
            start = good[whole - 1] if whole else 0.0
            part[whole] = (false_positives - start) / (good[whole] - start)
        overlap: Doubles = self.mass[_OVERLAP][:, ::-1] @ part
        return overlap, self.mass[_PEAKS][:, ::-1] @ part

    def _several(self) -> npt.NDArray[np.bool_]:
        """Bins that have room for more than one score."""
        several: npt.NDArray[np.bool_] = np.append(self.low[1:], np.inf) > np.nextafter(
            self.low, np.inf
        )
        return several


def _edges(pixels: Pixels) -> Doubles:
    """Where bins should begin to take a small share of the pixels above them each."""
    edges = []
    for values in (*pixels.sorted_blocks(), pixels.sorted_defects()[0]):
        picked = values[_ranks(len(values))].astype(np.float64)
        # What is picked twice fills a bin by itself, which ends where the next number begins.
        edges += [picked, np.nextafter(picked[:-1][picked[1:] == picked[:-1]], np.inf)]
        if len(picked):
            edges.append(np.nextafter(picked[-1:], np.inf))  # above all: nothing is there yet
    return np.unique(np.concatenate(edges))


def _ranks(count: int) -> npt.NDArray[np.int64]:
    """Positions in ascending order at which bins begin.

    The largest values one by one, then in steps that grow, down to the smallest.
    """
    if not count:
        return np.empty(0, np.int64)
    single = min(count, int(1 / _SHARE))
    rank = np.geomspace(single, count, 4096)
    weight = np.log(rank / single) + _EVEN * (rank - single) / count
    stepped = np.interp(np.arange(0, weight[-1], _SHARE), weight, rank)
    from_top = np.concatenate([np.arange(single), stepped, [count - 1]]).astype(np.int64)
    ranks: npt.NDArray[np.int64] = count - 1 - np.unique(np.minimum(from_top, count - 1))[::-1]
    return ranks


def _count(pixels: Pixels, low: Doubles) -> Doubles:
    """What falls in bins that begin at `low`, as :attr:`Bins.mass` has it."""
    mass = np.zeros((2 + 2 * _CLASSES, len(low)))
    for block in pixels.sorted_blocks():
        starts = np.searchsorted(block, round_up(low, block.dtype))
        mass[_GOOD] += np.diff(starts, append=len(block))
    defects = pixels.defects()
    if defects is None:
        return mass
    scores, region = pixels.sorted_defects()
    row = np.searchsorted(low, scores.astype(np.float64), side="right") - 1
    peak_row = np.searchsorted(low, defects.peaks, side="right") - 1
    mass[_DEFECTIVE] = np.bincount(row, minlength=len(low))
    np.add.at(mass[_OVERLAP], (defects.classes[region], row), 1.0 / defects.areas[region])
    np.add.at(mass[_PEAKS], (defects.classes, peak_row), 1.0)
    return mass


def _joined(low: Doubles, mass: Doubles) -> Bins:
    """Bins with neighbours joined until a quarter of the room is free."""
    weight = np.zeros(len(low))
    for line, factor in zip(_three(mass), (1.0, 0.5, 0.5), strict=True):
        above = np.maximum(np.cumsum(line[::-1])[::-1], line)
        share = np.divide(line, above, out=np.zeros_like(line), where=line > 0)
        weight += factor * (share + _EVEN * line / max(above[0], 1.0))
    allowed = _SHARE
    while True:
        position = np.floor(np.cumsum(weight[::-1]) / allowed)[::-1]
        alone = weight > allowed
        starts = np.ones(len(low), np.bool_)
        starts[1:] = (position[1:] != position[:-1]) | alone[1:] | alone[:-1]
        starts[-1] = True  # further bins begin above it
        if np.count_nonzero(starts) <= _MOST * 3 // 4:
            break
        allowed *= 1.25
    first = np.flatnonzero(starts)
    return Bins(low[first], np.add.reduceat(mass, first, axis=1))


def _three(mass: Doubles) -> Doubles:
    """Good pixels, defective pixels, and weights of all sizes."""
    return np.stack([mass[_GOOD], mass[_DEFECTIVE], mass[_OVERLAP].sum(axis=0)])
