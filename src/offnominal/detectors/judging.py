"""From scores to decisions: what every detector does once its method has scored an image."""

import math
import warnings
from collections.abc import Mapping
from copy import copy
from typing import ClassVar, Self

import numpy as np
from torch import nn

from offnominal.calibration import FalseReject, Threshold, p_value
from offnominal.detectors.categories import check_category, names_of, scores_of
from offnominal.detectors.options import LeaveOneOut, OnError
from offnominal.detectors.references import References
from offnominal.errors import ImageError, OptionError, ThresholdWarning
from offnominal.good_scores import CalibrationScores, GoodScores
from offnominal.prediction import Prediction
from offnominal.scoring import Scores, Size, anomaly_map, image_score, size_of
from offnominal.synthesis.sizes import CELLS, Missed

__all__ = ["Judge"]


class Judge(nn.Module):
    """Thresholds from scores of good images, and predictions from scores of new ones.

    Attributes
    ----------
    aggregate, smoothing, false_reject
        Options of :class:`~offnominal.detectors.base.Detector`.
    references : References
        The images that were learned from.
    good : GoodScores
        Scores of good images, which thresholds follow from.
    category : str or None
        Whose threshold is in force, of a model of several categories.
    """

    # The value of `aggregate` that stands for the image's own score, where the method gives one.
    own_score: ClassVar[str | None] = None

    aggregate: str
    smoothing: float
    false_reject: FalseReject
    references: References
    good: GoodScores
    category: str | None = None

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Whether references are scored as if never learned; ``none``: there is no such thing."""
        return "exact"

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of part that the model was fitted to, where they were named."""
        return names_of(self.references)

    def for_category(self, name: str) -> Self:
        """The same model, sharing all that it learned, with a category's threshold in force."""
        check_category(self.references, name)
        other = copy(self)
        other.category = name
        return other

    def check_category(self) -> None:
        """Raise an :class:`OptionError` unless it is clear whose threshold is in force."""
        check_category(self.references, self.category)

    def each_category(self) -> list[Self]:
        """:meth:`for_category` of each, or this one where it is clear which is meant."""
        names = self.categories if self.category is None else ()
        return [self.for_category(name) for name in names] if len(names) > 1 else [self]

    @property
    def calibration(self) -> CalibrationScores:
        """Scores of good images that the thresholds follow from.

        Raises
        ------
        OptionError
            Of a model of several categories, unless :attr:`category` is one of them.
        """
        return scores_of(self.good.in_force, self.references, self.category)

    @property
    def threshold(self) -> Threshold | None:
        """Threshold of the image score; None where too few good images are known."""
        return self.calibration.threshold(
            "images", self.false_reject, self.leave_one_out == "exact"
        )

    @property
    def decides(self) -> bool:
        """Whether predictions say if a part is to be rejected."""
        return self.threshold is not None

    @property
    def pixel_threshold(self) -> Threshold | None:
        """Threshold of the map: that many good images have no pixel above it."""
        return self.calibration.threshold("peaks", self.false_reject, self.leave_one_out == "exact")

    @property
    def calibration_note(self) -> str | None:
        """What should be known of held-out scores that other references measured."""
        return self.good.note(self.references.active)

    @property
    def estimated(self) -> bool:
        """Whether the threshold is for a rate that the good images cannot promise."""
        return self.threshold is not None and self.threshold.kind == "estimate"

    @property
    def missed_defects(self) -> list[Missed]:
        """How many synthetic defects the threshold would pass, by kind and size.

        Empty without a threshold, where none were made, and once the references are others.
        """
        threshold, made = self.threshold, self.good.defects_of(self.references.active)
        if threshold is None:
            return []
        passed = {number: [0, 0] for number in made.numbers}
        for number, score in zip(made.numbers, made.images, strict=True):
            passed[number][0] += int(score <= threshold.value)
            passed[number][1] += 1
        return [Missed(CELLS[number], *passed[number]) for number in sorted(passed)]

    @property
    def threshold_warning(self) -> str | None:
        """What should be known of an estimate: that it passes plain defects, or may do so."""
        threshold = self.threshold
        made = self.good.defects_of(self.references.active).images
        if threshold is None or not self.estimated:
            return None
        if not len(made):
            return (
                f"the threshold, {threshold.value:.4g}, is an estimate, and there are no synthetic "
                "defects of these references to check it by: fit anew, or ask for "
                "--false-reject auto"
            )
        if threshold.value <= made.min():
            return None
        promised = float(self.calibration.images.max())
        return (
            f"the estimated threshold, {threshold.value:.4g}, lies above the smallest score of a "
            f"synthetic defect, {made.min():.4g}: it would pass {(made <= threshold.value).sum()} "
            f"of {len(made)}, and {promised:.4g}, which --false-reject auto would take, "
            f"{(made <= promised).sum()}"
        )

    def warn(self) -> None:
        """Hand that on to whoever listens to warnings."""
        for one in self.each_category():
            if told := one.threshold_warning:
                name = f"{one.category}: " if one.category else ""
                warnings.warn(name + told, ThresholdWarning, stacklevel=3)

    def image_score(self, scores: Scores, size: Size) -> float:
        """The image score, as ``aggregate`` has it."""
        if self.aggregate == self.own_score and scores.image is not None:
            return scores.image
        return image_score(scores, size, self.aggregate, self.smoothing)

    def map(self, scores: Scores, size: Size) -> np.ndarray:
        """Anomaly map, float32 (H, W)."""
        return anomaly_map(scores.patches, size, self.smoothing, scores.window)

    def prediction(self, source: str, image: np.ndarray, scores: Scores) -> Prediction:
        """What is said of an image with these scores.

        Raises
        ------
        ImageError
            If they are not finite: nothing can be decided by them.
        """
        size = size_of(image)
        score = self.image_score(scores, size)
        if not (math.isfinite(score) and np.isfinite(scores.patches).all()):
            raise ImageError(
                source,
                f"its score is not a finite number ({score}), so it cannot be judged; check the "
                "backbone's weights and --precision",
            )
        threshold, pixel_threshold = self.threshold, self.pixel_threshold
        return Prediction(
            source=source,
            score=score,
            anomaly_map=self.map(scores, size),
            scores=scores,
            image=image,
            threshold=threshold.value if threshold else None,
            pixel_threshold=pixel_threshold.value if pixel_threshold else None,
            p_value=self.p_value(score),
        )

    def p_value(self, score: float) -> float | None:
        """How unusual a score is among those of good images; None where there are none."""
        known = self.calibration
        return None if known.kind == "copies" else p_value(score, known.images)

    def judged_or_told(
        self, source: str, image: np.ndarray, scores: Scores, on_error: OnError | None
    ) -> Prediction | None:
        """:meth:`prediction`, or None where there can be none and ``on_error`` was told so."""
        try:
            return self.prediction(source, image, scores)
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
        return self.prediction(prediction.source, prediction.image, prediction.scores)
