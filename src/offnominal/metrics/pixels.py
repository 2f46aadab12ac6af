"""Scores of pixels as they came: the good ones by themselves, the defective with their regions."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from offnominal.metrics.regions import SIZE_CLASSES, Defects, join
from offnominal.metrics.rows import Rows

__all__ = ["Pixels", "round_up"]

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_CHUNK = 2**16  # distinct defective scores evaluated at once; the working arrays stay in the cache


class Pixels:
    """A store of pixel scores that answers how many good ones lie at or above a value.

    Good scores are sorted in blocks, which are never joined: adding up the blocks' counts needs no
    second copy of the data.

    Parameters
    ----------
    block : int
        Scores that are sorted together.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.good = self.defective = self._waiting = 0
        self._fresh: list[Floats] = []
        self._blocks: list[Floats] = []
        self._defects: list[Defects] = []
        self._order: tuple[Floats, npt.NDArray[np.int32]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        good = sum(each.nbytes for each in (*self._fresh, *self._blocks))
        return good + sum(each.nbytes for each in self._defects)

    def add(self, good: Floats, defects: Defects | None) -> None:
        """Take the good pixels' scores (n,) and the defects of one image."""
        self.good += good.size
        self._waiting += good.size
        self._fresh.append(good.copy())
        if self._waiting >= self.block:
            self.sorted_blocks()
        if defects is not None:
            self.defective += defects.scores.size
            self._defects.append(defects)
            self._order = None

    def sorted_blocks(self) -> list[Floats]:
        """The good scores, each block ascending."""
        for dtype in dict.fromkeys(each.dtype for each in self._fresh if each.size):
            block = np.concatenate([each for each in self._fresh if each.dtype == dtype])
            block.sort()
            self._blocks.append(block)
        self._fresh, self._waiting = [], 0
        return self._blocks

    def defects(self) -> Defects | None:
        """All the defects, joined."""
        if len(self._defects) > 1:
            self._defects = [join(self._defects)]
        return self._defects[0] if self._defects else None

    def sorted_defects(self) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Scores of the defective pixels, ascending, and the region of each."""
        defects = self.defects()
        if defects is None:
            return np.empty(0, np.float32), np.empty(0, np.int32)
        if self._order is None:
            order = np.argsort(defects.scores)
            self._order = defects.scores[order], defects.region[order]
        return self._order

    def good_from(self, values: Floats) -> tuple[Counts, Counts]:
        """How many good scores are at or above each value, and how many are above it."""
        at_least = np.zeros(values.shape, np.int64)
        above = np.zeros(values.shape, np.int64)
        for block in self.sorted_blocks():
            position = np.searchsorted(block, round_up(values, block.dtype))
            at_least += block.size - position
            above += block.size - position
            # Most values are no good pixel's score, and a second search would cost as much again.
            inside = np.flatnonzero(position < block.size)
            tied = inside[block[position[inside]] == values[inside]]
            ends = np.searchsorted(block, values[tied].astype(block.dtype), side="right")
            above[tied] += position[tied] - ends
        return at_least, above

    def rows(self) -> Iterator[Rows]:
        """The table of thresholds from the top, in pieces: exact.

        Curves of false positives change direction at the scores of defective pixels only. Each of
        those has two rows: the good pixels that lie between it and the one before, and the pixels,
        good and defective, that share its score.
        """
        scores, region = self.sorted_defects()
        defects = self.defects()
        if defects is None or not scores.size:
            return
        weight = 1.0 / defects.areas
        starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
        before, stop = 0, len(scores)
        for last in range(len(starts), 0, -_CHUNK):
            first = starts[max(last - _CHUNK, 0) : last]
            values = scores[first]
            at_least, above = (counts[::-1] for counts in self.good_from(values))
            weights = weight[region[first[0] : stop]]
            n = len(first)
            cumulated = np.empty(2 * n + 1, np.int64)
            cumulated[0], cumulated[1::2], cumulated[2::2] = before, above, at_least
            defective, overlap = np.zeros(2 * n), np.zeros(2 * n)
            defective[1::2] = np.diff(np.append(first, stop))[::-1]
            overlap[1::2] = np.add.reduceat(weights, first - first[0])[::-1]
            good = np.diff(cumulated).astype(np.float64)
            threshold = np.repeat(values[::-1].astype(np.float64), 2)
            threshold[::2] = np.nextafter(threshold[::2], np.inf)
            yield Rows(threshold, good, defective, overlap)
            before, stop = int(at_least[-1]), int(first[0])
        if before < self.good:
            least = min(float(block[0]) for block in self.sorted_blocks())
            rest = np.array([float(self.good - before)])
            yield Rows(np.array([least]), rest, np.zeros(1), np.zeros(1))

    def caught(self, false_positives: int) -> tuple[Doubles, Doubles]:
        """Overlap and peaks of each size class, summed, above the tightest threshold.

        The threshold lets at most `false_positives` good pixels reach it.
        """
        defects = self.defects()
        if defects is None:
            return np.zeros(len(SIZE_CLASSES)), np.zeros(len(SIZE_CLASSES))
        scores, region = self.sorted_defects()
        # Good pixels at or above a score grow fewer as it grows: halve to the first that has few.
        first, stop = 0, len(scores)
        while first < stop:
            middle = (first + stop) // 2
            at_least, _ = self.good_from(scores[middle : middle + 1])
            if at_least[0] <= false_positives:
                stop = middle
            else:
                first = middle + 1
        cut = float(scores[first]) if first < len(scores) else np.inf
        reached = np.bincount(region[first:], minlength=len(defects.areas)) / defects.areas
        size = len(SIZE_CLASSES)
        overlap = np.bincount(defects.classes, reached, minlength=size).astype(np.float64)
        peaks = np.bincount(defects.classes[defects.peaks >= cut], minlength=size)
        return overlap, peaks.astype(np.float64)


def round_up(values: Floats, dtype: np.dtype[np.floating]) -> Floats:
    """The smallest numbers of `dtype` that are at or above the values."""
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype)
    return np.where(rounded < values, np.nextafter(rounded, dtype.type(np.inf)), rounded)
