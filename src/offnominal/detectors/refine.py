"""Data refinement: images that the others call anomalous are left out before the fit that counts.

Yoon, Sohn, Li, Arik, Lee and Pfister, "Self-supervise, Refine, Repeat: Improving Unsupervised
Anomaly Detection", TMLR 2022 (arXiv 2106.06115). There an image goes if any of several one-class
classifiers, each fitted on a part of the data, ranks it among a share that is given; here it is
scored by a detector that was fitted on the other parts, and the share may be found from the scores.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.base import Detector
from offnominal.detectors.options import OnError, check_range
from offnominal.errors import OptionError
from offnominal.images import ImageSource, describe

__all__ = ["Refined", "Share", "refine"]

Share = float | Literal["auto"]

_OUTLYING = 3.0  # robust standard deviations above the median
_DEVIATION = 1.4826  # of a normal distribution, in median absolute deviations


class Refined(NamedTuple):
    """What a refinement came to.

    Attributes
    ----------
    kept, left_out : list of int
        Places of the images; those that could not be read are in neither.
    scores : float64 array of shape (n,)
        Of the last round; nan where an image could not be read.
    rounds : int
    settled : bool
        Whether the last round left out the same images as the one before it.
    """

    kept: list[int]
    left_out: list[int]
    scores: NDArray[np.float64]
    rounds: int
    settled: bool


def refine(
    make: Callable[[], Detector],
    images: Sequence[ImageSource],
    share: Share = "auto",
    folds: int = 3,
    rounds: int = 5,
    seed: int = 0,
    on_error: OnError | None = None,
    tell: Callable[[str], None] | None = None,
) -> Refined:
    """Find the images that do not belong among good ones.

    In each round every image is scored by a detector that was fitted on what is kept of the other
    folds, and the worst are left out; one that was left out before may come back. It ends when a
    round changes nothing.

    Parameters
    ----------
    make : callable
        Gives a detector that is not fitted.
    images : sequence of paths, arrays or PIL images
    share : float or "auto"
        Of the images that is left out, on (0, 0.5]; ``auto``: those that score more than three
        robust standard deviations above the median of what is kept.
    folds, rounds : int
        Each round takes as many fits as there are folds.
    seed : int
        Of the folds.
    on_error : callable or None
        See :meth:`~offnominal.detectors.base.Detector.fit`.
    tell : callable or None
        Called with lines for a person.

    Raises
    ------
    OptionError
        If there are too few images to be split, or an option is wrong.
    """
    say = tell or (lambda line: None)
    if share != "auto":
        check_range("refine", share, above=0, most=0.5)
    check_range("folds", folds, least=2, whole=True)
    check_range("rounds", rounds, least=1, whole=True)
    if len(images) < 2 * folds:
        raise OptionError(
            f"--refine: {len(images)} images cannot be split into {folds} parts that judge each "
            f"other; give {2 * folds} or more"
        )
    fold = np.random.default_rng(seed).permutation(len(images)) % folds
    kept = np.ones(len(images), bool)
    scores = np.full(len(images), math.nan)
    for turn in range(1, rounds + 1):
        for part in range(folds):
            scores[fold == part] = _scored(make, images, fold, part, kept, on_error)
        before, kept = kept, scores <= _limit(scores, kept, share)
        readable = np.isfinite(scores)
        say(
            f"round {turn}: {int((readable & ~kept).sum())} of {int(readable.sum())} images are "
            "left out"
        )
        if settled := bool(turn > 1 and (before == kept).all()):
            break
    out = np.flatnonzero(readable & ~kept).tolist()
    return Refined(np.flatnonzero(kept).tolist(), out, scores, turn, settled)


def _scored(
    make: Callable[[], Detector],
    images: Sequence[ImageSource],
    fold: NDArray[np.int64],
    part: int,
    kept: NDArray[np.bool_],
    on_error: OnError | None,
) -> NDArray[np.float64]:
    """Scores of the images of a part, by a detector fitted on what is kept of the others."""
    others = [images[n] for n in np.flatnonzero((fold != part) & kept).tolist()]
    detector = make().fit(others, on_error, synthetic=False)
    mine = [images[n] for n in np.flatnonzero(fold == part).tolist()]
    found = iter([*detector.stream(mine, on_error)])
    # Those that could not be read are not in the stream.
    scores, following = [], next(found, None)
    for image in mine:
        here = following is not None and following.source == describe(image)
        scores.append(following.score if following is not None and here else math.nan)
        following = next(found, None) if here else following
    return np.array(scores)


def _limit(scores: NDArray[np.float64], kept: NDArray[np.bool_], share: Share) -> float:
    """The largest score that is kept."""
    if share != "auto":
        return float(np.nanquantile(scores, 1 - share))
    inner = scores[kept & np.isfinite(scores)]
    middle = float(np.median(inner))
    return middle + _OUTLYING * _DEVIATION * float(np.median(np.abs(inner - middle)))
