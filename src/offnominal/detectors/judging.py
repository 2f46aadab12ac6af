"""From scores to decisions: what every detector does once its method has scored an image."""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Self

import numpy as np

from offnominal.calibration import by_hand, p_value
from offnominal.detectors.categories import refuse_several
from offnominal.detectors.deciding import Decider
from offnominal.detectors.learned_state import parts
from offnominal.detectors.options import OnError, Progress
from offnominal.detectors.references import Change, Standing, Version
from offnominal.errors import ImageError, NotFittedError, OptionError
from offnominal.good_scores import CalibrationScores
from offnominal.images import Picture
from offnominal.memory import MemoryBank
from offnominal.prediction import Prediction
from offnominal.scans.scan import Scan, is_scan
from offnominal.scoring import Scores, Size, anomaly_map, image_score, size_of

__all__ = ["Judge"]


class Judge(Decider):
    """Predictions from scores of new images, by thresholds from scores of good ones.

    Attributes
    ----------
    aggregate, smoothing
        Options of :class:`~offnominal.detectors.base.Detector`.
    """

    # The value of `aggregate` that stands for the image's own score, where the method gives one.
    own_score: ClassVar[str | None] = None

    aggregate: str
    smoothing: float
    fitted: bool
    unverified: Callable[[], None] | None
    method: ClassVar[str]

    def image_score(self, scores: Scores, size: Size) -> float:
        """The image score, as ``aggregate`` has it."""
        if self.aggregate == self.own_score and scores.image is not None:
            return scores.image
        return image_score(scores, size, self.aggregate, self.smoothing)

    def map(self, scores: Scores, size: Size) -> np.ndarray:
        """Anomaly map, float32 (H, W); (1, N) of a cloud, whose points are not smoothed."""
        if size[0] == 1:
            return scores.patches
        return anomaly_map(scores.patches, size, self.smoothing, scores.window)

    def prediction(self, source: str, seen: Picture, scores: Scores) -> Prediction:
        """What is said of an image, as it was read, with these scores.

        Raises
        ------
        ImageError
            If they are not finite: nothing can be decided by them.
        """
        size = size_of(seen.pixels)
        score = self.image_score(scores, size)
        if not (math.isfinite(score) and np.isfinite(scores.patches).all()):
            raise ImageError(
                source,
                f"its score is not a finite number ({score}), so it cannot be judged; check the "
                "backbone's weights and --precision",
            )
        judge = self._judge_of(scores)
        threshold, pixel_threshold = judge.threshold, judge.pixel_threshold
        image, anomaly_map, scan = seen.pixels, self.map(scores, size), None
        if is_scan(seen.pixels):
            from offnominal.scans.draw import shown_with

            scan, known = seen.pixels, Scan.of(seen.pixels)
            if seen.owners is not None and seen.points is not None:
                known, anomaly_map = Scan(seen.points), anomaly_map[:, seen.owners]
            image, anomaly_map = shown_with(known, anomaly_map)
        return Prediction(
            source=source,
            score=score,
            anomaly_map=anomaly_map,
            scores=scores,
            image=image,
            points=seen.points,
            scan=scan,
            owners=seen.owners,
            threshold=threshold.value if threshold else None,
            pixel_threshold=pixel_threshold.value if pixel_threshold else None,
            p_value=judge.p_value(score),
            kinds=scores.kinds,
            category=judge.category if self.recognises else None,
        )

    def _judge_of(self, scores: Scores) -> Self:
        """The same with the threshold in force of the category that an image was taken for."""
        if self.category is None and scores.category is not None and len(self.categories) > 1:
            return self.for_category(scores.category)
        return self

    def p_value(self, score: float) -> float | None:
        """How unusual a score is among those of good images; None where there are none."""
        known = self.calibration
        return None if known.kind == "copies" else p_value(score, known.images)

    def judged_or_told(
        self, source: str, seen: Picture, scores: Scores, on_error: OnError | None
    ) -> Prediction | None:
        """:meth:`prediction`, or None where there can be none and ``on_error`` was told so."""
        try:
            return self.prediction(source, seen, scores)
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)
            return None

    def judged(self, scores: Scores, size: Size) -> tuple[float, float]:
        """Image score of an image, and the peak of its map."""
        return self.image_score(scores, size), float(self.map(scores, size).max())

    def set_references(self, scored: Mapping[int, Scores]) -> None:
        """Set the thresholds from references that were scored without themselves."""
        if any(np.isnan(one.patches).any() for one in scored.values()):
            raise OptionError(
                "scores of good images are not numbers, so nothing can be decided with this "
                "detector; check the backbone's weights and --precision"
            )
        # Infinite where a bank holds nothing of others.
        numbers = sorted(n for n, one in scored.items() if np.isfinite(one.patches).all())
        pairs = [(scored[number], self.references[number].size) for number in numbers]
        measured = CalibrationScores.measured("leave-one-out", pairs, self.judged, numbers)
        self.good.references = measured
        self.good.choose(self.references.active)

    def rescore(self, prediction: Prediction) -> Prediction:
        """A prediction of the same fit, with this detector's scoring and thresholds."""
        return self.prediction(prediction.source, prediction.picture_read, prediction.scores)

    # -- thresholds by hand, and going back ----------------------------------------------------

    def set_threshold(self, value: float, when: datetime | None = None) -> Change:
        """Set the threshold of the image score by hand; no rate of rejected good parts is promised.

        It stays until :meth:`calibrate` sets another, or :meth:`undo` takes it back. The map keeps
        its own threshold.

        Parameters
        ----------
        value : float
            A score above it means reject.
        when : datetime or None
            Noted in the history.

        Raises
        ------
        OptionError
            If it is no finite number, or the model has several categories.
        """
        self.check_fitted()
        refuse_several(self.references)
        standing, before = self.standing(), self._before_calibration()
        self.good.by_hand = by_hand(value).value
        self._note_calibration(0, before, when)
        return Change.between(standing, self.standing(), "calibrate", (), (), "none")

    def undo(self, progress: Progress | None = None) -> Change:
        """Take the last step of :meth:`history` back exactly, if it is a calibration.

        Parameters
        ----------
        progress : callable or None
            Not called.

        Raises
        ------
        OptionError
            If it is another step, or took the place of earlier good images, which are not kept.
        """
        self.check_fitted()
        if self.references.steps[-1].what != "calibrate":
            raise OptionError(
                f"{self.method} cannot undo {self.references.steps[-1].what}: it does not keep "
                "what it learned image by image; fit it anew"
            )
        return self._undo_calibration()

    def _undo_calibration(self) -> Change:
        standing, before = self.standing(), self.references.steps[-1].before
        if before is None:
            raise OptionError(
                "the last step, calibrate, took the place of the good images of an earlier one, "
                "which are not kept: calibrate with those again"
            )
        if self.references.steps.pop().good:
            self.good.held_out, self.good.measured_by = CalibrationScores(), []
        self.false_reject, self.good.by_hand = before["false_reject"], before["by_hand"]
        self.good.choose(self.references.active)
        return Change.between(standing, self.standing(), "undo", (), (), "none")

    def _before_calibration(self) -> dict[str, Any]:
        return {"false_reject": self.false_reject, "by_hand": self.good.by_hand}

    def _note_calibration(
        self, good: int, before: dict[str, Any] | None, when: datetime | None
    ) -> None:
        value = self.threshold.value if self.threshold else None
        more = {"threshold": value, "good": good, "before": before}
        self.references.note("calibrate", (), self.bank_rows, when, **more)

    def history(self) -> list[Version]:
        """The steps by which the detector came to know what it knows, the first one first."""
        return self.references.history()

    def standing(self) -> Standing:
        """What a change is told against."""
        return Standing(len(self.references.active), self.bank_rows, self.threshold)

    @property
    def bank_rows(self) -> int:
        """Patches in all memory banks; 0 where a method has none."""
        return sum(bank.left() for bank in parts(self).values() if isinstance(bank, MemoryBank))

    def check_fitted(self) -> None:
        """Raise a :class:`NotFittedError` unless something was learned."""
        if not self.fitted:
            raise NotFittedError(f"this {type(self).__name__} has learned nothing yet: call fit")
        self.verify()

    def verify(self) -> None:
        """Raise a :class:`ModelFileError` if large arrays of a file are not as they were written.

        They are compared with their checksums before their first use, and the file is looked at
        again before each image: it may be written over while it is open.
        """
        if self.unverified:
            self.unverified()
