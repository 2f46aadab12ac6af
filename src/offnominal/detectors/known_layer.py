"""A logistic layer over features, by which known defects raise and lower a detector's scores.

What a detector says of an image is multiplied by how much the image looks like the known defects:

    score' = floor + (score - floor) * exp(sum_c w_c z_c)
    z_c    = (m_c - mean_c) / deviation_c, cut at 3 on either side
    m_c    = largest value of channel c over the image's patches

where mean and deviation are those of the good images, so that a usual one keeps its score, and the
floor is 0 unless good images score below it. The weights are those of a ridge-penalised logistic
regression of good against defective images whose offset, with a coefficient of 1, is the logarithm
of the detector's own score in deviations of the good ones. It can only correct the detector, and
where the labels say little it stays near to it. Both classes weigh the same, however few defects
there are. (Ridge logistic regression: le Cessie and van Houwelingen, 1992.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from offnominal.scoring import Scores

__all__ = ["FEWEST_GOOD", "FEWEST_PARTS", "Layer", "Tested", "cross_tested"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

FEWEST_PARTS = 3  # defective ones: of one left out of two nothing follows
FEWEST_GOOD = 8  # images, of which channels have a mean and a deviation
_FOLDS = 5
_PENALTY = 0.04  # on the mean loss and the mean square of the weights' effect, see `Layer.fit`
_CUT = 3.0  # deviations: one channel of one odd good image must not decide
_STEPS = 30
_SAME = 1e-6  # of a channel's size; a deviation below it is rounding


@dataclass(frozen=True, eq=False)
class Layer:
    """How much an image's features multiply its scores by.

    Attributes
    ----------
    mean, scale, weight : float32 arrays of shape (D,)
        Of each channel: the good images' mean, one over their deviation (0 where there is none),
        and the weight w_c, in units of the logarithm of the score.
    """

    mean: Floats
    scale: Floats
    weight: Floats

    def exponent(self, peaks: Floats) -> Floats:
        """Logarithms (...) of the factors of images, by the peaks (..., D) of their channels."""
        z = np.clip((peaks - self.mean) * self.scale, -_CUT, _CUT)
        return np.asarray(z @ self.weight)

    def weighed(self, scores: Scores, peaks: Floats, floor: float) -> Scores:
        """Scores of an image above the floor, multiplied by its factor."""
        more = np.float32(np.expm1(self.exponent(peaks)))
        patches = scores.patches + more * np.maximum(scores.patches - np.float32(floor), 0)
        if (image := scores.image) is not None:
            image += float(more) * max(image - floor, 0.0)
        return scores._replace(patches=patches, image=image)

    @classmethod
    def fit(cls, peaks: Floats, above: Doubles, bad: NDArray[np.bool_]) -> Self:
        """From images, good and defective.

        Parameters
        ----------
        peaks : float32 array of shape (n, D)
        above : float64 array of shape (n,)
            How far image scores by the detector alone lie above the floor.
        bad : bool array of shape (n,)
            Which are defective.
        """
        good = peaks[~bad].astype(np.float64)
        mean, deviation = good.mean(0), good.std(0)
        told = deviation > _SAME * (np.abs(mean) + deviation)
        scale = np.where(told, 1 / np.where(told, deviation, 1.0), 0.0)
        usual = max(float(np.median(above[~bad])), np.finfo(np.float64).tiny)
        logs = np.log(np.maximum(above, 1e-3 * usual))
        spread = float(logs[~bad].std()) or 1.0
        offset = (logs - logs[~bad].mean()) / spread
        # The penalty should not depend on how many channels a network has.
        z = np.clip((peaks - mean) * scale, -_CUT, _CUT) / np.sqrt(max(told.sum(), 1))
        weight = _logistic(z, offset, bad) / np.sqrt(max(told.sum(), 1)) * spread
        return cls(*(one.astype(np.float32) for one in (mean, scale, weight)))

    # -- as a model file has it ---------------------------------------------------------------

    def arrays(self) -> dict[str, Floats]:
        """By their names."""
        return dict(vars(self))

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], length: int) -> Self:
        """What :meth:`arrays` gave, of features of a length; a ValueError says what is wrong."""
        for array in arrays.values():
            if array.dtype != np.float32 or array.shape != (length,):
                raise ValueError("the layer of known defects is of other features than they are")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("the layer of known defects is not finite")
        return cls(**arrays)


def _logistic(x: Doubles, offset: Doubles, bad: NDArray[np.bool_]) -> Doubles:
    """Weights (D,) of a ridge logistic regression with an offset and an intercept, by Newton."""
    u, s, axes = np.linalg.svd(x, full_matrices=False)
    z = np.c_[u * s, np.ones(len(x))]  # the weights lie in the span of the images
    share = np.where(bad, 0.5 / bad.sum(), 0.5 / (~bad).sum())
    ridge, w = np.r_[np.full(len(s), _PENALTY), 1e-4 * _PENALTY], np.zeros(len(s) + 1)

    def loss(w: Doubles) -> float:
        margin = np.where(bad, 1, -1) * (offset + z @ w)
        return float(share @ np.logaddexp(0, -margin) + ridge @ w**2 / 2)

    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(offset + z @ w, -500, 500)))
        slope = z.T @ (share * (chance - bad)) + ridge * w
        curve = (z.T * (share * chance * (1 - chance))) @ z + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        size, before = 1.0, loss(w)
        while size > 1e-6 and loss(w - size * step) > before:
            size /= 2  # far from the minimum a full step may overshoot
        w = w - size * step
        if np.abs(step).max() < 1e-8:
            break
    return np.asarray(axes.T @ w[:-1])


@dataclass(frozen=True, eq=False)
class Tested:
    """A layer, and what it was worth to images that were left out of it.

    Attributes
    ----------
    layer : Layer
    without : list of Layer
        For each fold one that saw none of its images.
    fold : int array of shape (n,)
        In which of them each image was left out.
    gain, error : float
        By how much the share of good images that a defect scores above grew, in the mean over
        defective parts, and the standard error of that.
    """

    layer: Layer
    without: list[Layer]
    fold: NDArray[np.intp]
    gain: float
    error: float

    @property
    def helps(self) -> bool:
        """Whether the gain is above what is easily chance with so few parts."""
        return self.gain > self.error


def _folds(parts: Sequence[int]) -> NDArray[np.intp]:
    """In which fold each image is left out; pictures of one part together."""
    places = {part: place for place, part in enumerate(dict.fromkeys(parts))}
    return np.array([places[part] % min(_FOLDS, len(places)) for part in parts], np.intp)


def cross_tested(
    peaks: Floats, above: Doubles, bad: NDArray[np.bool_], part: NDArray[np.intp]
) -> Tested:
    """Fit a layer, and test it on images that it did not learn from, whole parts at a time.

    Parameters
    ----------
    peaks, above, bad
        As :meth:`Layer.fit` has them.
    part : int array of shape (n,)
        Which part each shows; good and defective ones are numbered apart.
    """
    fold = np.empty(len(bad), np.intp)
    fold[bad] = _folds(part[bad].tolist())
    fold[~bad] = _folds(part[~bad].tolist()) % (fold[bad].max() + 1)
    without, after = [], above.copy()
    for number in range(int(fold[bad].max()) + 1):
        left = fold == number
        without.append(Layer.fit(peaks[~left], above[~left], bad[~left]))
        after[left] *= np.exp(without[-1].exponent(peaks[left]))
    gains = _ranks(after, bad) - _ranks(above, bad)
    by_part = np.array([gains[part[bad] == one].mean() for one in np.unique(part[bad])])
    error = float(by_part.std(ddof=1) / np.sqrt(len(by_part)))
    return Tested(Layer.fit(peaks, above, bad), without, fold, float(by_part.mean()), error)


def _ranks(scores: Doubles, bad: NDArray[np.bool_]) -> Doubles:
    """Share of the good images that each defective one scores above; equal ones count half."""
    good = np.sort(scores[~bad])
    below, upto = (np.searchsorted(good, scores[bad], side) for side in ("left", "right"))
    return np.asarray((below + upto) / (2 * len(good)))
