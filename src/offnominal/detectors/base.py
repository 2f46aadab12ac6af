"""What every detector shares: images in, leave-one-out, calibration, predictions out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Self

import numpy as np

from offnominal.checks import (
    FalseReject,
    check_aggregate,
    check_choice,
    check_range,
    check_rate,
    parse_sixteen_bit,
)
from offnominal.detectors.categories import refuse_several
from offnominal.detectors.estimator import Estimator
from offnominal.detectors.known import KnownDefects
from offnominal.detectors.made_scores import copy_scores, defect_scores
from offnominal.detectors.options import OnError, Progress, ShowProgress, refuse_unknown
from offnominal.detectors.reading import Reading
from offnominal.detectors.references import References, Sample
from offnominal.errors import OptionError
from offnominal.good_scores import CalibrationScores, GoodScores
from offnominal.images import (
    Channels,
    ImageSource,
    describe,
)
from offnominal.labels.labelled import Defects, labelled
from offnominal.prediction import Prediction
from offnominal.progress import shown
from offnominal.scans.scan import Modality
from offnominal.scoring import Scores, Size
from offnominal.sources import ImageSources, several
from offnominal.synthesis.sizes import PER_CELL
from offnominal.tensors import no_gradients

__all__ = ["Detector"]


class Detector(Reading, Estimator, ABC):
    """Base of every method.

    A method writes :meth:`learn`, :meth:`score` and :meth:`score_reference`, or, over a backbone,
    the few that :class:`~offnominal.detectors.features.FeatureDetector` asks for. What it learned
    is kept in attributes whose names end in ``_`` (arrays, tensors and plain values), in memory
    banks and in learned networks; all of it is saved and restored by that rule.

    Parameters
    ----------
    aggregate : str
        Image score from patch scores: ``top1`` (mean of the top 1 %), ``max``, ``map-max``,
        ``map-top1``, ``mean``, ``quantile99``, or the name of the method's own image score.
    sixteen_bit : str
        ``range`` or two percentiles such as ``0.5,99.5``; how 16-bit images become 8-bit ones.
    modality : {"auto", "colour", "depth", "height", "normals", "scan"}
        What is seen of a scan: its colour picture; one that is drawn of its depths, of heights
        above its plane or of its normals; or colour and points together. ``auto``: those together
        where the backbone takes points, and the colour picture otherwise.
    smoothing : float
        Standard deviation of the map's Gaussian, in pixels of the image.
    false_reject : float or "auto"
        Rate of good parts that may be rejected, on (0, 1). ``auto``: the tightest that the good
        images can promise, 1 / (n + 1) with n of them, down to 0.01.
    """

    # Whether `fit` must, and may, be given images; zero-shot methods are fitted without any.
    needs_references: ClassVar[bool] = True
    accepts_references: ClassVar[bool] = True
    # Whether defects can be known on top of what good images showed.
    takes_defects: ClassVar[bool] = False
    # Whether it can look at points; with a backbone that is the backbone's to say.
    takes_scans: ClassVar[bool] = False
    # Options beside the weights that name a file which `fit` reads.
    file_options: ClassVar[tuple[str, ...]] = ()
    # Options that say where images and keys go; see `unconfirmed`.
    confirmed_options: ClassVar[tuple[str, ...]] = ()
    # At most so many references are scored to set the thresholds; 0: all.
    calibrate_on: int = 0
    seed: int = 0
    # Of each image of a fit its category, by the image's identity, where categories were named.
    category_of: Mapping[int, str] = {}  # replaced, never written into
    takes_categories: ClassVar[bool] = False

    def __init__(
        self,
        aggregate: str = "top1",
        sixteen_bit: str = "range",
        smoothing: float = 4.0,
        false_reject: FalseReject = "auto",
        modality: Modality = "auto",
        **unknown: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(self.method, unknown, self.option_defaults())
        check_aggregate(aggregate, self.own_score)
        parse_sixteen_bit(sixteen_bit)
        check_choice("modality", modality, Modality)
        if modality == "scan" and not self.takes_scans:
            raise OptionError(
                f"--modality scan: {self.method} looks at pictures; give colour, depth, height or "
                "normals"
            )
        check_range("smoothing", smoothing, least=0, most=10_000)
        check_rate(false_reject)
        self.aggregate = aggregate
        self.sixteen_bit = sixteen_bit
        self.smoothing = smoothing
        self.false_reject = false_reject
        self.modality: Modality = modality
        self.unverified = None
        self.expected: int | None = None  # how many images a fit was given, where that is known
        self._forget_references()

    def _forget_references(self) -> None:
        self.fitted, self.copies = False, 0
        self.references = References()
        self.good = GoodScores()
        self.depths_ = []
        self.known_defects: KnownDefects | None = None

    # -- what a method writes -----------------------------------------------------------------

    def begin(self) -> None:
        """Empty what was learned, or make room for it: before a fit, and in a constructor's end."""

    @abstractmethod
    def learn(self, number: int, image: np.ndarray) -> Any:
        """Take in one good image, uint8 (H, W, 3), or a scan, float32 (H, W, 6).

        What is returned is handed to :meth:`score_reference` while the fit lasts.
        """

    def finish(self, progress: Progress | None) -> None:
        """All images were taken in."""

    def scored_all(self, scored: Mapping[int, Scores]) -> Mapping[int, Scores]:
        """Scores of the references that thresholds are set from, once all are known."""
        return scored

    def release(self) -> None:
        """The fit is over: let go of what only it needed."""

    @abstractmethod
    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """What the score and the map of an image, uint8 (H, W, 3), or a scan are made of.

        ``without``: as if that reference had never been learned, while the fit lasts.
        """

    @abstractmethod
    def score_reference(self, number: int, kept: Any) -> Scores:
        """Score a reference as if it had never been learned; ``leave_one_out`` says if it is so."""

    def not_inspected(self, size: Size) -> str | None:
        """What of an image (H, W) is never looked at, in words; None: all of it is."""

    def exportable(self) -> str | None:
        """Why it cannot be exported as one program of tensors; None: it can.

        A program takes pixels to patch scores by tensor operations alone, the same ones for every
        image. A method that is one says so by returning None.
        """
        return "it does not say that what it computes is a program of tensors alone"

    # -- the estimator's contract -------------------------------------------------------------

    def fit(
        self,
        images: ImageSources = (),
        on_error: OnError | None = None,
        progress: ShowProgress = None,
        synthetic: bool | None = None,
        channels: Channels = "rgb",
        *,
        when: datetime | None = None,
        defects: Defects = (),
    ) -> Self:
        """Learn from images of good parts, and set the thresholds from each without itself.

        Parameters
        ----------
        images : paths, uint8 or uint16 arrays, PIL images, tensors, or a single one
            A folder or a pattern stands for the images in it, a data loader for those of its
            batches; see :func:`~offnominal.sources.several`. None at all for zero-shot methods;
            others need some, or an :class:`OptionError` says so. Exact copies count once
            (``copies`` says how many were left out): a copy would score nothing against its twin
            and spoil the threshold.
        on_error : callable or None
            Called with each :class:`ImageError`, and the image is left out; None: it is raised.
        progress : callable, bool or None
            Called with the stage and the number of images that it has done; True: a bar, in a
            terminal or a notebook.
        synthetic : bool or None
            Whether synthetic defects on the references are scored as well, 48 of them, so that
            ``missed_defects`` says how many the threshold would pass; none are made of scans that
            are seen as such. None: where the threshold is
            an estimate; a :class:`ThresholdWarning` says so if it would pass the plainest of them.
        channels : {"rgb", "bgr"}
            Order of the channels of arrays and tensors: ``"bgr"`` for frames of OpenCV. Files and
            PIL images say their own.
        when : datetime or None
            Noted in the history; None: no time, and the same images give the same file.
        defects : Labelled, path, array, PIL image or tensor, or several of them
            Defective images, with what is known about each
            (:class:`~offnominal.labels.labelled.Labelled`), for methods that learn from such; see
            :meth:`learn_defects`.
        """
        known, found = labelled(defects), several(images, channels)
        if known:
            self.refuse_defects()
            found = list(found)  # which are looked at again
        with shown(progress, found) as told:
            self._fit(found, on_error, told, synthetic, when)
        if known:
            self.learn_defects(known, found, on_error, progress)
        self.warn()
        return self

    def _fit(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None,
        progress: Progress | None,
        synthetic: bool | None,
        when: datetime | None,
    ) -> None:
        self._forget_references()
        self.unverified = None
        self.expected = len(images) if isinstance(images, Sequence) else None
        copies: list[str] = []
        kept = Sample(self.calibrate_on, self.seed)
        scored: dict[int, Scores] = {}
        originals = Sample(self.calibrate_on or PER_CELL, self.seed)  # some of those that are kept
        try:
            with no_gradients():
                self.begin()
                good = self.references.take_in(self.read(images, on_error), copies)
                for number, image, source in good:
                    if not self.accepts_references:
                        told = "give none, and good images to calibrate for a threshold"
                        raise OptionError(f"{self.method} learns from no image: {told}")
                    self.references[number].category = self.category_of.get(id(source), "")
                    kept.offer(number, self.learn(number, image))
                    originals.offer(number, source)
                    if progress:
                        progress("features", number + 1)
                if not self.references and self.needs_references:
                    raise OptionError("no image to learn from: give one of a good part, or more")
                self.finish(progress)
                if self.leave_one_out != "none" and len(self.references) > 1:
                    for number in sorted(kept):
                        held = kept[number] if number in originals else kept.pop(number)
                        scored[number] = self.score_reference(number, held)
                        if progress:
                            progress("threshold", len(scored))
                self.copies = len(copies)
                self.set_references(self.scored_all(scored))
                if self.leave_one_out != "none" and self.references:
                    self._score_made(originals, kept, synthetic, progress)
        finally:
            self.release()
        self.references.note("fit", range(len(self.references)), self.bank_rows, when)
        # Only now: a fit that was broken off must not pass for a whole one.
        self.fitted = True

    def _score_made(
        self,
        originals: Mapping[int, ImageSource],
        kept: Mapping[int, Any],
        synthetic: bool | None,
        progress: Progress | None,
    ) -> None:
        """Score what is made of the references: copies of an only one, and synthetic defects."""
        alone = len(self.references) == 1

        def original(number: int) -> np.ndarray:
            if self.leave_one_out == "approximate" and not alone:
                self.score_reference(number, kept[number])  # a model without it is there again
            return self.image_of(originals[number])

        if self.seen_as == "scan":  # copies and defects are drawn on pictures
            return
        if alone:
            self.good.copies = copy_scores(original(0), self.score, self.judged)
            self.good.choose(self.references.active)
        if synthetic or (synthetic is None and self.estimated):
            told = (original, self.score, self.judged, alone, progress)
            self.good.defects = defect_scores(originals, *told)
            self.good.defects_by = self.references.active

    def predict(
        self,
        images: ImageSources,
        progress: ShowProgress = None,
        channels: Channels = "rgb",
    ) -> list[Prediction]:
        """Predictions for an image or several, in their order; the first bad image raises.

        Parameters as :meth:`fit` has them.
        """
        return list(self.stream(several(images, channels), progress=progress))

    def stream(
        self,
        images: ImageSources,
        on_error: OnError | None = None,
        progress: ShowProgress = None,
        channels: Channels = "rgb",
    ) -> Iterator[Prediction]:
        """Predictions as they come, in order, reading ahead; parameters as :meth:`fit` has them."""
        self.check_fitted()
        found = several(images, channels)
        with shown(progress, found) as told:
            for done, (source, seen) in enumerate(self.pictures(found, on_error), start=1):
                with no_gradients():
                    scores = self.score(seen.pixels)
                self.verify()
                judged = self.judged_or_told(describe(source), seen, scores, on_error)
                if told:
                    told("predict", done)
                if judged:
                    yield judged

    def calibrate(
        self,
        images: ImageSources,
        false_reject: FalseReject | None = None,
        on_error: OnError | None = None,
        progress: ShowProgress = None,
        channels: Channels = "rgb",
        *,
        when: datetime | None = None,
    ) -> int:
        """Set the thresholds from good images that the detector has not learned from.

        They take the place of a threshold that was set by hand, and of the scores of the
        references, which are a little too high: each reference was scored without itself.
        References among them are left out, since they would score next to nothing, and so are
        copies; how many is returned. They stay in force while references are added, and are put
        aside while some that they were scored by are forgotten. ``when`` is noted in the history.
        """
        rate = self.false_reject if false_reject is None else false_reject
        check_rate(rate)
        refuse_several(self.references)
        known = {one.digest for one in self.references if one.active}
        scored: list[tuple[Scores, Size]] = []
        skipped = 0
        for prediction in self.stream(several(images, channels), on_error, progress):
            digest = prediction.digest
            if digest in known:
                skipped += 1
                continue
            known.add(digest)
            scored.append((prediction.scores, prediction.seen_size))
        if not scored:
            raise OptionError(
                "no image to calibrate with: give good images that the detector has not learned "
                f"from ({skipped} of those given are among its references)"
            )
        # To undo it, the scores that it takes the place of would be needed, where there are any.
        before = None if len(self.good.held_out) else self._before_calibration()
        self.false_reject = rate
        measured = CalibrationScores.measured("held-out", scored, self.judged)
        self.good.calibrate(measured, self.references.active)
        self._note_calibration(len(scored), before, when)
        self.warn()
        return skipped

    def learn_defects(
        self,
        defects: Defects,
        images: ImageSources = (),
        on_error: OnError | None = None,
        progress: ShowProgress = None,
    ) -> KnownDefects:
        """Know some defects on top of what good images showed; refused where a method cannot."""
        self.refuse_defects()
        raise NotImplementedError

    def learned_digests(self) -> set[str]:
        """Digests of the images that it has learned from: of good parts, and of known defects."""
        known = self.known_defects.defects if self.known_defects else ()
        return {one.digest for one in (*self.references, *known) if getattr(one, "active", True)}

    def refuse_defects(self) -> None:
        """Raise an :class:`OptionError` that says what to do, if no defects can be known."""
        if not self.takes_defects:
            raise OptionError(
                f"--defects: {self.method} learns from good images alone; `offnominal methods` "
                "lists those that take defects, and `offnominal calibrate --cost-miss` sets the "
                "threshold of any by some"
            )
