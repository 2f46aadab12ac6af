"""How a detector comes to know defects: their patches, and how far those are to be trusted."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.known import (
    KnownDefect,
    KnownDefects,
    boxes_of,
    defective_rows,
    rows_of,
)
from offnominal.detectors.known_layer import FEWEST_GOOD, FEWEST_PARTS, Tested, cross_tested
from offnominal.detectors.options import OnError, ShowProgress
from offnominal.errors import ImageError, OptionError
from offnominal.good_scores import CalibrationScores
from offnominal.images import ImageSource, content_digest, describe
from offnominal.labels.alike import Thumbnail, groups_of, thumbnail
from offnominal.labels.labelled import Defects, Labelled, labelled
from offnominal.paths import is_elsewhere
from offnominal.progress import shown
from offnominal.scoring import Scores, Size, size_of
from offnominal.sources import ImageSources, several
from offnominal.tensors import no_gradients

__all__ = ["learn_known"]

Floats = NDArray[np.float32]
Told = Callable[[str, int], None] | None


class _Seen(NamedTuple):
    """A defective image as the detector has it that knows none: scores, and features (n, D)."""

    scores: Scores
    size: Size
    rows: Floats

    @property
    def peaks(self) -> Floats:
        """Largest value (D,) of each channel."""
        found: Floats = self.rows.max(0)
        return found


def learn_known(
    detector: Any,
    defects: Defects,
    images: ImageSources,
    on_error: OnError | None,
    progress: ShowProgress,
) -> KnownDefects:
    """Have a fitted detector of features know some defects; see its ``learn_defects``."""
    given, old = labelled(defects), detector.known_defects
    before = old.before if old else None
    read = partial(_references, detector, images)
    detector.known_defects = None  # all that is scored here is so without any
    try:
        with shown(progress, given) as told, no_gradients():
            known, seen, parts = _bank(detector, given, on_error, told)
            good = before or CalibrationScores()
            if len(set(parts)) >= FEWEST_PARTS:
                good = before or detector.scores_alone(read)
                if len(good) >= FEWEST_GOOD:
                    peaks = _peaks_of_good(detector, good, read(good.numbers), told)
                    tested = _tested(known, good, peaks, seen, np.array(parts))
                    if tested.helps:
                        known.before = good
                        good = _with_layer(detector, known, good, peaks, seen, tested)
    except BaseException:
        detector.known_defects = old
        raise
    if known.layer or before:
        _replace_scores(detector, good)
    detector.known_defects = known
    return known


# -- the bank -------------------------------------------------------------------------------------


def _bank(
    detector: Any, given: Sequence[Labelled], on_error: OnError | None, told: Told
) -> tuple[KnownDefects, list[_Seen], list[int]]:
    """The bank; of each defect how it is seen, and which part it shows.

    A part is the place of the first picture of it: other exposures and copies are one.
    """
    rows, boxes, owners, kinds = [], [], [], []
    seen: list[_Seen] = []
    small: list[Thumbnail] = []
    known: list[KnownDefect] = []
    references = {one.digest for one in detector.references if one.active}
    for done, one in enumerate(given, start=1):
        try:
            image = detector.image_of(one.image)
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        digest, size = content_digest(image), size_of(image)
        if digest in references:
            told_by = "it is among the good images that the detector learned from; leave "
            told_by += "it out of one of the two, and fit anew if it is defective"
            raise OptionError(f"--defects {describe(one.image)}: {told_by}")
        if any(digest == other.digest for other in known):
            continue
        scores = detector.score(image)
        own = rows_of(detector.patch_features(image, scores.patches.shape))
        found = defective_rows(one, scores, size)
        places = [place for place, _ in found]
        rows.append(own[places])
        boxes.append(boxes_of(places, scores, size))
        owners += [len(known)] * len(places)
        kinds += [kind for _, kind in found]
        names = sorted({kind for _, kind in found})
        name, marked = describe(one.image), bool(one.marks)
        known.append(KnownDefect(file=name, digest=digest, kinds=names, marked=marked))
        seen.append(_Seen(scores, size, own))
        small.append(thumbnail(image))
        if told:
            told("defects", done)
    if not known:
        raise OptionError("--defects: no defective image can be read; check the files")
    names = sorted(set(kinds))
    bank = KnownDefects(
        np.concatenate(rows),
        np.array(owners, np.int32),
        np.array([names.index(kind) for kind in kinds], np.int32),
        np.concatenate(boxes),
        names,
        known,
    )
    bank.scores = np.array([detector.image_score(one.scores, one.size) for one in seen])
    bank.scored_by = (detector.aggregate, float(detector.smoothing))
    return bank, seen, groups_of(small)


# -- the layer ------------------------------------------------------------------------------------


def _peaks_of_good(
    detector: Any, good: CalibrationScores, images: Iterable[NDArray[np.uint8]], told: Told
) -> Floats:
    """Largest value (n, D) of each channel over the patches of each good image."""
    found = []
    for done, (image, scores) in enumerate(zip(images, good.scores, strict=True), start=1):
        found.append(rows_of(detector.patch_features(image, scores.patches.shape)).max(0))
        if told:
            told("good images", done)
    return np.stack(found)


def _tested(
    known: KnownDefects,
    good: CalibrationScores,
    peaks: Floats,
    seen: Sequence[_Seen],
    parts: NDArray[np.intp],
) -> Tested:
    """A layer, and what it is worth to defects that it did not learn from."""
    lowest = min(float(one.patches.min()) for one in good.scores)
    known.floor = min(0.0, lowest, float(good.images.min()))
    found = cross_tested(
        np.concatenate([peaks, [one.peaks for one in seen]]).astype(np.float32),
        np.maximum(np.r_[good.images, known.scores] - known.floor, 0),
        np.arange(len(good) + len(seen)) >= len(good),
        np.r_[np.arange(len(good)), parts],
    )
    known.gain = found.gain
    return found


def _with_layer(
    detector: Any,
    known: KnownDefects,
    good: CalibrationScores,
    peaks: Floats,
    seen: Sequence[_Seen],
    tested: Tested,
) -> CalibrationScores:
    """Adopt the layer; scores of good images, and of the defects, are by layers without them.

    A threshold from them is approximate, held back from the training or not: the layers that score
    the good ones are others than the one that scores new images.
    """
    known.layer = tested.layer
    by = [tested.without[number] for number in tested.fold]
    known.scores = np.array([
        detector.image_score(layer.weighed(one.scores, one.peaks, known.floor), one.size)
        for layer, one in zip(by[len(good):], seen, strict=True)
    ])  # fmt: skip
    each = zip(by[: len(good)], good.scores, peaks, good.sizes, strict=True)
    pairs = [(layer.weighed(one, own, known.floor), size) for layer, one, own, size in each]
    return CalibrationScores.measured("leave-one-out", pairs, detector.judged, good.numbers)


# -- what follows for good images -----------------------------------------------------------------


def _replace_scores(detector: Any, good: CalibrationScores) -> None:
    """Set the thresholds by good images as they are scored from now on, and by nothing else."""
    all_of, active = detector.good, detector.references.active
    # Those that a training held back are references, and scored anew.
    held = 0 if all_of.held_out.numbers else len(all_of.held_out)
    lost = [f"{held} held-out good images"] * bool(held)
    lost += [f"{len(all_of.defects)} synthetic defects"] * bool(len(all_of.defects))
    lost += ["a threshold set by hand"] * (all_of.by_hand is not None)
    all_of.held_out, all_of.defects = CalibrationScores(), CalibrationScores()
    all_of.measured_by, all_of.defects_by, all_of.by_hand = [], [], None
    if good.kind == "held-out":
        all_of.calibrate(good, active)
    else:
        all_of.references = good
        all_of.choose(active)
    if lost:
        warnings.warn(
            "known defects change what images score, so what was scored before no longer counts "
            f"({', '.join(lost)}); the thresholds are set from the good images of the fit. "
            "Calibrate anew, as `offnominal calibrate part.offn more-good/ --defects bad/`",
            stacklevel=4,
        )


def _references(
    detector: Any, images: ImageSources, numbers: Iterable[int]
) -> Iterator[NDArray[np.uint8]]:
    """References by their numbers, in that order, recognised by their pixels."""
    elsewhere: dict[str, ImageSource] | None = None  # looked through once one is not in its place
    for one in [detector.references[number] for number in numbers]:
        image = None if is_elsewhere(one.file) else _read_if(one.file, detector)
        if image is None or content_digest(image) != one.digest:
            if elsewhere is None:
                elsewhere = _by_digest(detector, images)
            if one.digest not in elsewhere:
                raise OptionError(
                    f"{one.file}: this good image is no longer there, and defects are weighed "
                    "against it; give a folder where it is with --references FOLDER"
                )
            image = detector.image_of(elsewhere[one.digest])
        yield image


def _by_digest(detector: Any, images: ImageSources) -> dict[str, ImageSource]:
    found: dict[str, ImageSource] = {}
    for one in several(images):
        image = _read_if(one, detector)
        if image is not None:
            found[content_digest(image)] = one
    return found


def _read_if(source: ImageSource, detector: Any) -> NDArray[Any] | None:
    """An image, or None where it cannot be read, as whatever else lies in a folder."""
    try:
        found: NDArray[Any] = detector.image_of(source)
    except ImageError:
        return None
    return found
