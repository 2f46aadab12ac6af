"""Thresholds of a detector, or of a model file, from scores of good images: without torch."""

import warnings
from copy import copy
from typing import ClassVar, Literal, Self

from offnominal.calibration import Threshold, by_hand
from offnominal.checks import FalseReject
from offnominal.detectors.categories import check_category, names_of, scores_of
from offnominal.detectors.references import References
from offnominal.errors import ThresholdWarning
from offnominal.good_scores import CalibrationScores, GoodScores
from offnominal.synthesis.sizes import CELLS, Missed
from offnominal.text import apart, digits

__all__ = ["Decider", "LeaveOneOut"]

LeaveOneOut = Literal["exact", "approximate", "none"]


class Decider:
    """Thresholds from scores of good images.

    Attributes
    ----------
    false_reject
        Option of :class:`~offnominal.detectors.base.Detector`.
    references : References
        The images that were learned from.
    good : GoodScores
        Scores of good images, which thresholds follow from.
    category : str or None
        Whose threshold is in force, of a model of several categories.
    """

    # Whether a threshold may be extrapolated from good scores, and whether there is a verdict
    # without one.
    extrapolates: ClassVar[bool] = True
    judges_alone: ClassVar[bool] = False
    # Whether it says itself of which category an image is.
    recognises: ClassVar[bool] = False

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
        if self.category is not None or not self.recognises:
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
        if self.good.by_hand is not None:
            return by_hand(self.good.by_hand)
        return self._follows("images")

    def _follows(self, what: Literal["images", "peaks"]) -> Threshold | None:
        found = self.calibration.threshold(what, self.false_reject, self.leave_one_out == "exact")
        # Where answers are verdicts and not measures, nothing is extrapolated from them.
        estimate = found is not None and found.kind == "estimate"
        return None if estimate and not self.extrapolates else found

    @property
    def decides(self) -> bool:
        """Whether predictions say if a part is to be rejected."""
        return self.judges_alone or all(one.threshold for one in self.each_category())

    @property
    def pixel_threshold(self) -> Threshold | None:
        """Threshold of the map: that many good images have no pixel above it."""
        return self._follows("peaks")

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
                f"the threshold, {digits(threshold.value)}, is an estimate, and there are no "
                "synthetic defects of these references to check it by: fit anew, or ask for "
                "--false-reject auto"
            )
        if threshold.value <= made.min():
            return None
        promised = float(self.calibration.images.max())
        least, told = apart(float(made.min()), threshold.value)
        return (
            f"the estimated threshold, {told}, lies above the smallest score of a synthetic "
            f"defect, {least}: it would pass {(made <= threshold.value).sum()} of {len(made)}, "
            f"and {digits(promised)}, which --false-reject auto would take, "
            f"{(made <= promised).sum()}"
        )

    def warn(self) -> None:
        """Hand that on to whoever listens to warnings."""
        for one in self.each_category():
            if told := one.threshold_warning:
                name = f"{one.category}: " if one.category else ""
                warnings.warn(name + told, ThresholdWarning, stacklevel=3)
