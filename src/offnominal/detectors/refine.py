"""Data refinement: images that the others call anomalous are left out before the fit that counts.

Yoon, Sohn, Li, Arik, Lee and Pfister, "Self-supervise, Refine, Repeat: Improving Unsupervised
Anomaly Detection", TMLR 2022 (arXiv 2106.06115). There an image goes if any of several one-class
classifiers, each fitted on a part of the data, ranks it among a share that is given; here it is
scored by a detector that was fitted on the other parts, and the share may be found from the scores.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from offnominal.atomic import write_atomically
from offnominal.checks import check_range
from offnominal.detectors.base import Detector
from offnominal.detectors.options import OnError
from offnominal.errors import ImageError, OptionError
from offnominal.images import Channels, ImageSource, content_digest, read_image
from offnominal.sources import ImageSources, several
from offnominal.training.loop import duration

__all__ = ["Refined", "Share", "refine"]

Share = float | Literal["auto"]

_SCORES = TypeAdapter(dict[str, dict[str, list[float]]])
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
    images : list
        What was refined, one by one: the places are those in this list.
    """

    kept: list[int]
    left_out: list[int]
    scores: NDArray[np.float64]
    rounds: int
    settled: bool
    images: list[ImageSource]


def refine(
    make: Callable[[], Detector],
    images: ImageSources,
    share: Share = "auto",
    folds: int = 3,
    rounds: int = 5,
    seed: int = 0,
    sixteen_bit: str = "range",
    on_error: OnError | None = None,
    tell: Callable[[str], None] | None = None,
    state: Path | None = None,
    channels: Channels = "rgb",
) -> Refined:
    """Find the images that do not belong among good ones.

    In each round every image is scored by a detector that was fitted on what is kept of the other
    folds, and the worst are left out; one that was left out before may come back. It ends when a
    round changes nothing.

    Parameters
    ----------
    make : callable
        Gives a detector that is not fitted.
    images : paths, arrays, PIL images or tensors
        As :meth:`~offnominal.detectors.base.Detector.fit` has them.
    share : float or "auto"
        Of the images that is left out, on (0, 0.5]; ``auto``: those that score more than three
        robust standard deviations above the median of what is kept.
    folds, rounds : int
        Each round takes as many fits as there are folds.
    seed : int
        Of the folds.
    sixteen_bit : str
        As the detectors have it, to tell exact copies.
    on_error : callable or None
        See :meth:`~offnominal.detectors.base.Detector.fit`.
    tell : callable or None
        Called with lines for a person.
    state : path or None
        JSON file that scores are kept in after each fit: the same refinement, broken off, goes on
        from there.
    channels : {"rgb", "bgr"}
        Order of the channels of arrays and tensors.

    Raises
    ------
    OptionError
        If there are too few images to be split, an option is wrong, or the state is damaged.
    """
    say = tell or (lambda line: None)
    if share != "auto":
        check_range("refine", share, above=0, most=0.5)
    check_range("folds", folds, least=2, whole=True)
    check_range("rounds", rounds, least=1, whole=True)
    listed = list(several(images, channels))
    digests = _digests(listed, sixteen_bit, on_error)
    twin = _twins(digests)
    firsts = np.flatnonzero(twin == np.arange(len(listed)))
    if len(firsts) < 2 * folds:
        raise OptionError(
            f"--refine: {len(firsts)} different images cannot be split into {folds} parts that "
            f"judge each other; give {2 * folds} or more"
        )
    # Of exact copies one is judged for all; the others, as what cannot be read, are in no part.
    fold = np.full(len(listed), -1)
    fold[firsts] = np.random.default_rng(seed).permutation(len(firsts)) % folds
    kept = fold >= 0
    scores = np.full(len(listed), math.nan)
    one = make()
    asked = [digests, share, folds, rounds, seed, one.method, one.options()]
    journal = _Journal(state, hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest())
    for turn in range(1, rounds + 1):
        for part in range(folds):
            began = time.monotonic()
            before = journal.found(turn, part, int((fold == part).sum()))
            if before is None:
                before = _scored(make, listed, fold, part, kept)
                journal.keep(turn, part, before)
                if turn == 1 and not part:
                    took = duration(time.monotonic() - began)
                    say(f"a part took {took}; a round has {folds}, and there are at most {rounds}")
            scores[fold == part] = before
        last, kept = kept, scores <= _limit(scores, kept, share)
        readable = np.isfinite(scores)
        say(
            f"round {turn}: {int((readable & ~kept).sum())} of {int(readable.sum())} images are "
            "left out"
        )
        if settled := bool(turn > 1 and (last == kept).all()):
            break
    known = np.flatnonzero(twin >= 0)
    scores[known], kept[known] = scores[twin[known]], kept[twin[known]]
    out = np.flatnonzero(np.isfinite(scores) & ~kept).tolist()
    return Refined(np.flatnonzero(kept).tolist(), out, scores, turn, settled, listed)


class _Journal:
    """Scores of the parts of every round, in a file that may hold those of other refinements."""

    def __init__(self, path: Path | None, name: str) -> None:
        self._path, self._name = path, name
        self._all: dict[str, dict[str, list[float]]] = {}
        if path and path.exists():
            try:
                self._all = _SCORES.validate_json(path.read_bytes())
            except ValidationError as error:
                told = "is not the scores of a refinement; remove it to begin anew"
                raise OptionError(f"{path}: {told}") from error

    def found(self, turn: int, part: int, count: int) -> NDArray[np.float64] | None:
        """Scores of a part, if they are there."""
        known = self._all.get(self._name, {}).get(f"{turn}.{part}", [])
        return np.array(known) if len(known) == count else None

    def keep(self, turn: int, part: int, scores: NDArray[np.float64]) -> None:
        """Add the scores of a part."""
        self._all.setdefault(self._name, {})[f"{turn}.{part}"] = scores.tolist()
        if self._path:
            write_atomically(self._path, json.dumps(self._all).encode())


def _digests(
    images: Sequence[ImageSource], sixteen_bit: str, on_error: OnError | None
) -> list[str | None]:
    """A digest of the pixels of each; None for what cannot be read."""
    found: list[str | None] = []
    for image in images:
        try:
            found.append(content_digest(read_image(image, sixteen_bit)))
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)
            found.append(None)
    return found


def _twins(digests: Sequence[str | None]) -> NDArray[np.int64]:
    """The place of the first image with the same pixels as each; -1 for what cannot be read."""
    first: dict[str, int] = {}
    places = enumerate(digests)
    return np.array([-1 if d is None else first.setdefault(d, place) for place, d in places])


def _scored(
    make: Callable[[], Detector],
    images: Sequence[ImageSource],
    fold: NDArray[np.int64],
    part: int,
    kept: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Scores of the images of a part, by a detector fitted on what is kept of the others."""
    others = [images[n] for n in np.flatnonzero((fold != part) & kept).tolist()]
    detector = make().fit(others, synthetic=False)
    mine = [images[n] for n in np.flatnonzero(fold == part).tolist()]
    return np.array([prediction.score for prediction in detector.stream(mine)])


def _limit(scores: NDArray[np.float64], kept: NDArray[np.bool_], share: Share) -> float:
    """The largest score that is kept."""
    if share != "auto":
        return float(np.nanquantile(scores, 1 - share))
    inner = scores[kept & np.isfinite(scores)]
    middle = float(np.median(inner))
    deviation = float(np.median(np.abs(inner - middle)))
    # Where most score the same nothing is known of how far apart good ones lie.
    return middle + _OUTLYING * _DEVIATION * deviation if deviation else math.inf
