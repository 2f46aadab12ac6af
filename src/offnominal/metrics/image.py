"""How well image scores tell good from defective: AUROC, AP, F1-max, and misses on a line."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from offnominal.errors import OptionError
from offnominal.metrics.curves import curve

__all__ = ["FALSE_REJECTS", "image_curves", "image_intervals", "image_metrics"]

FALSE_REJECTS = (0.001, 0.01, 0.05)
"""Shares of rejected good images at which the miss rate is given."""

Labels = Sequence[int] | npt.NDArray[np.generic]
Scores = Sequence[float] | npt.NDArray[np.generic]
Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_NAMES = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    *(f"image_miss_at_{100 * rate:g}%" for rate in FALSE_REJECTS),
)
_THRESHOLD = "image_f1_max_threshold"
_CELLS = 2**20  # counts in one piece of the bootstrap, 8 MB each


def image_metrics(labels: Labels, scores: Scores) -> dict[str, float]:
    """Image-level AUROC, average precision, best F1 and miss rates, on the scores as they are.

    Parameters
    ----------
    labels : array-like of shape (n,)
        0 for a good image, 1 for a defective one.
    scores : array-like of shape (n,)
        Image scores of any range; larger is more anomalous. They are neither clamped nor squashed.

    Returns
    -------
    dict of str to float
        ``image_auroc``, ``image_ap`` and ``image_f1_max`` in [0, 1];
        ``image_f1_max_threshold``, in units of the scores: rejecting every image whose score is at
        least this gives that F1 (of several equally good ones the highest); and
        ``image_miss_at_0.1%``, ``image_miss_at_1%``, ``image_miss_at_5%``, in [0, 1]: the share of
        defective images that pass when the threshold is the tightest that rejects at most that
        share of these good images (reject means a score above the threshold). With fewer than 1000
        good images 0.1 % of them is none, and so on. All are nan when the images are all good or
        all defective.

    Raises
    ------
    OptionError
        If the lengths differ, a label is neither 0 nor 1, or a score is not finite.
    """
    truth, values = _checked(labels, scores)
    names = (*_NAMES[:3], _THRESHOLD, *_NAMES[3:])
    if not truth.any() or truth.all():
        return dict.fromkeys(names, float("nan"))
    levels, good, bad = _levels(truth, values)
    figures, best = _figures(good[None], bad[None])
    found = {name: float(column[0]) for name, column in zip(_NAMES, figures, strict=True)}
    found[_THRESHOLD] = float(levels[best[0]])
    return {name: found[name] for name in names}


def image_intervals(
    labels: Labels, scores: Scores, seed: int = 0, draws: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Confidence intervals of :func:`image_metrics`, by the bootstrap.

    Good and defective images are drawn with replacement, as many of each as there are; the interval
    holds the middle `level` of the figures so found (the percentile interval of Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).

    Parameters
    ----------
    labels, scores : array-like of shape (n,)
        As for :func:`image_metrics`.
    seed : int
        The same seed gives the same intervals.
    draws : int, default 1000
        How many times to draw.
    level : float, default 0.95
        Share of the draws inside the interval, in (0, 1).

    Returns
    -------
    dict of str to (float, float)
        Lower and upper end for every figure but the threshold. All nan when the images are all good
        or all defective. It holds for images drawn as these were: with no miss among them the
        interval of a miss rate is (0, 0), which does not say that there is none to come.

    Raises
    ------
    OptionError
        As :func:`image_metrics` does, and if `draws` or `level` is outside its range.
    """
    if draws < 1:
        raise OptionError(f"draws is {draws}: give at least 1, 1000 as a rule")
    if not 0 < level < 1:
        raise OptionError(f"level is {level}: give a share between 0 and 1, as 0.95")
    truth, values = _checked(labels, scores)
    if not truth.any() or truth.all():
        return dict.fromkeys(_NAMES, (float("nan"), float("nan")))
    levels, _, _ = _levels(truth, values)
    # Ascending positions of the negated values are those of the descending levels.
    level_of = np.searchsorted(-levels, -values)
    kinds = (level_of[~truth], level_of[truth])
    streams = np.random.default_rng(seed).spawn(2)
    at_once = max(1, _CELLS // len(values))
    found = []
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        good, bad = (
            _redrawn(kind, len(levels), count, stream)
            for kind, stream in zip(kinds, streams, strict=True)
        )
        found.append(_figures(good, bad)[0])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(found, axis=1), [tail, 1 - tail], axis=1)
    return {name: (float(a), float(b)) for name, a, b in zip(_NAMES, low, high, strict=True)}


def image_curves(
    labels: Labels, scores: Scores, points: int = 200
) -> dict[str, dict[str, list[float]]]:
    """ROC and precision-recall curves for drawing.

    Parameters
    ----------
    labels, scores : array-like of shape (n,)
        As for :func:`image_metrics`.
    points : int, default 200
        At most how many points a curve has, at even steps along it.

    Returns
    -------
    dict
        ``"roc"`` (x the share of good images rejected, y the share of defective ones) and ``"pr"``
        (x the recall, y the precision). Each is a dict of the lists ``"x"``, ``"y"`` and
        ``"thresholds"``: images at or above the threshold are rejected. The first point of the ROC
        curve, where nothing is, has a threshold just above the largest score. The lists are empty
        when the images are all good or all defective.

    Raises
    ------
    OptionError
        As :func:`image_metrics` does, and if `points` is under 2.
    """
    truth, values = _checked(labels, scores)
    if not truth.any() or truth.all():
        names = ("x", "y", "thresholds")
        return {"roc": {name: [] for name in names}, "pr": {name: [] for name in names}}
    levels, good, bad = _levels(truth, values)
    false, true = np.cumsum(good), np.cumsum(bad)
    recall = true / true[-1]
    above = np.append(np.nextafter(levels[0], np.inf), levels)
    return {
        "roc": curve(np.append(0, false / false[-1]), np.append(0, recall), above, points),
        "pr": curve(recall, true / (true + false), levels, points),
    }


def _checked(labels: Labels, scores: Scores) -> tuple[npt.NDArray[np.bool_], Doubles]:
    truth = np.asarray(labels).ravel()
    values = np.asarray(scores, dtype=np.float64).ravel()
    if truth.shape != values.shape:
        raise OptionError(
            f"labels has {truth.size} entries and scores has {values.size}: "
            "give one score for each label"
        )
    if not np.isin(truth, (0, 1)).all():
        raise OptionError("labels holds something other than 0 (good) and 1 (defective)")
    if not np.isfinite(values).all():
        raise OptionError(
            f"scores: {np.count_nonzero(~np.isfinite(values))} of {values.size} are not finite; "
            "find the images they belong to, or leave those images out and report them"
        )
    return truth.astype(bool), values


def _levels(truth: npt.NDArray[np.bool_], values: Doubles) -> tuple[Doubles, Counts, Counts]:
    """The different scores from the highest down, and good and defective images at each."""
    levels, inverse = np.unique(-values, return_inverse=True)
    good = np.bincount(inverse[~truth], minlength=len(levels))
    return -levels, good, np.bincount(inverse[truth], minlength=len(levels))


def _redrawn(
    level_of: npt.NDArray[np.intp], levels: int, draws: int, rng: np.random.Generator
) -> Counts:
    """Images at each level, drawn with replacement, of shape (draws, levels)."""
    chosen = level_of[rng.integers(0, len(level_of), (draws, len(level_of)))]
    chosen += np.arange(draws)[:, None] * levels
    return np.bincount(chosen.ravel(), minlength=draws * levels).reshape(draws, levels)


def _figures(good: Counts, bad: Counts) -> tuple[Doubles, npt.NDArray[np.intp]]:
    """The figures of many sets at once.

    Parameters
    ----------
    good, bad : int arrays of shape (sets, levels)
        Images at each score, from the highest down. Every set has some of both.

    Returns
    -------
    float64 array of shape (figures, sets)
        In the order of ``_NAMES``.
    int array of shape (sets,)
        The level of the best F1.
    """
    false, true = np.cumsum(good, axis=1), np.cumsum(bad, axis=1)
    all_good, all_bad = false[:, -1], true[:, -1]
    # A good image counts the defective ones above it, and half of those that share its score.
    auroc = (good * (true - bad / 2)).sum(axis=1) / (all_good * all_bad)
    rejected = np.maximum(false + true, 1)
    precision = (bad * true / rejected).sum(axis=1) / all_bad
    f1 = 2 * true / (false + true + all_bad[:, None])
    best = np.argmax(f1, axis=1)
    figures = [auroc, precision, f1[np.arange(len(f1)), best]]
    for rate in FALSE_REJECTS:
        # The tolerance keeps a product that is whole in exact arithmetic from rounding down.
        allowed = np.floor(rate * all_good + 1e-9)[:, None]
        # Levels that at most so many good images reach lie above the tightest threshold.
        caught = np.where(false <= allowed, true, 0).max(axis=1)
        figures.append(1 - caught / all_bad)
    return np.stack(figures), best
