"""Pixels on their way into the bins: sorted, where to begin bins for them, what falls in each."""

import numpy as np
import numpy.typing as npt

from offnominal.metrics.pixels import Pixels, round_down, round_up
from offnominal.metrics.regions import SIZE_CLASSES

__all__ = ["EVEN", "Batch", "ascending"]

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]

EVEN = 4  # weight of a share of all pixels, beside a share of those above a bin; see bins.py


class Batch:
    """Pixels sorted by score, with their weights and the size classes of their regions."""

    def __init__(self, pixels: Pixels) -> None:
        blocks = pixels.sorted_blocks() or [np.empty(0, np.float32)]
        self.good = blocks[0] if len(blocks) == 1 else np.sort(np.concatenate(blocks))
        self.bad, region = pixels.sorted_defects()
        defects = pixels.defects()
        if defects is None:
            self.weight, self.kind = np.empty(0), np.empty(0, np.int64)
            self.peaks, self.peak_kind = np.empty(0), np.empty(0, np.int64)
        else:
            self.weight, self.kind = (1.0 / defects.areas)[region], defects.classes[region]
            order = np.argsort(defects.peaks)
            self.peaks, self.peak_kind = defects.peaks[order], defects.classes[order]

    def edges(self, share: float) -> Doubles:
        """Where bins should begin to take at most `share` of the pixels above them each."""
        both = (self.good, self.bad)
        picked = [values[_ranks(len(values), share)] for values in both if len(values)]
        # What is picked twice fills a bin by itself, which ends where the next number begins: an
        # old bin that is split there may hold any.
        frequent = [np.asarray(v[:-1][v[1:] == v[:-1]], np.float64) for v in picked]
        return ascending(*picked, *(np.nextafter(each, np.inf) for each in frequent))

    def above(self, scores: Floats) -> Doubles:
        """The next good score and the next defective one above each of `scores`."""
        found = [_next(values, scores) for values in (self.good, self.bad)]
        return np.concatenate([np.asarray(each, np.float64) for each in found])

    def three(self, low: Doubles) -> tuple[Doubles, Doubles]:
        """What falls in bins that begin at `low`.

        Good pixels, defective pixels and weights, of shape (3, k), and the largest score.
        """
        found, most = np.empty((3, len(low))), np.full(len(low), -np.inf)
        for line, values in ((0, self.good), (1, self.bad)):
            starts = np.searchsorted(values, round_up(low, values.dtype))
            ends = np.append(starts[1:], len(values))
            found[line] = ends - starts
            some = np.flatnonzero(ends > starts)
            most[some] = np.maximum(most[some], values[ends[some] - 1])
        rows = np.repeat(np.arange(len(low)), found[1].astype(np.int64))
        found[2] = np.bincount(rows, self.weight, minlength=len(low))
        return found, most

    def by_class(self, low: Doubles, out: Doubles) -> None:
        """Weights, then peaks, of each size class in bins that begin at `low`."""
        lines = iter(out)
        for values, kinds, weights in (
            (self.bad, self.kind, self.weight),
            (self.peaks, self.peak_kind, np.ones(len(self.peaks))),
        ):
            row = np.searchsorted(round_up(low, values.dtype), values, side="right") - 1
            for number in range(len(SIZE_CLASSES)):
                here = kinds == number
                next(lines)[:] = np.bincount(row[here], weights[here], minlength=len(low))


def ascending(*values: Floats) -> Doubles:
    """All the values in ascending order, each once."""
    joined: Doubles = np.concatenate([np.asarray(each, np.float64) for each in values])
    joined.sort()
    kept = np.flatnonzero(np.append(True, joined[1:] != joined[:-1])[: len(joined)])
    return joined[kept]


def _ranks(count: int, share: float) -> npt.NDArray[np.int64]:
    """Positions in ascending order at which bins of the weight `share` begin.

    The largest values one by one, then in steps that grow, down to the smallest.
    """
    single = min(count, int(1 / share))
    rank = np.geomspace(single, count, 4096)
    weight = np.log(rank / single) + EVEN * (rank - single) / count
    stepped = np.interp(np.arange(0, weight[-1], share), weight, rank)
    from_top = np.concatenate([np.arange(single), stepped.astype(np.int64), [count - 1]])
    from_top = np.minimum(from_top, count - 1)
    kept = np.flatnonzero(np.append(True, from_top[1:] > from_top[:-1]))
    ranks: npt.NDArray[np.int64] = count - 1 - from_top[kept][::-1]
    return ranks


def _next(values: Floats, after: Floats) -> Floats:
    """The smallest of the ascending values above each of `after`, where there is one."""
    position = np.searchsorted(values, round_down(after, values.dtype), side="right")
    found: Floats = values[position[position < len(values)]]
    return found
