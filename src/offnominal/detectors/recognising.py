"""One model of several kinds of part, which says itself of which kind an image is."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Self

from offnominal.detectors.base import Detector
from offnominal.detectors.categories import Categorised, check_all_there, told_apart
from offnominal.detectors.options import OnError, Progress, ShowProgress
from offnominal.images import Channels
from offnominal.labels.labelled import Defects
from offnominal.sources import ImageSources

__all__ = ["Recognising"]


class Recognising(Detector):
    """A detector whose scores name the category that an image was taken for.

    A method sets ``category`` of the :class:`~offnominal.scoring.Scores` that it gives. An image is
    then judged by the threshold of that category, unless one was named beforehand
    (:meth:`~offnominal.detectors.deciding.Decider.for_category`).
    """

    takes_categories: ClassVar[bool] = True
    recognises: ClassVar[bool] = True

    def fit(
        self,
        images: ImageSources | Categorised = (),
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
        images, on_error, progress, synthetic, channels, when, defects
            See :meth:`~offnominal.detectors.base.Detector.fit`. A mapping of names to images makes
            one model of several categories, each with a threshold from its own images; no synthetic
            defects are scored then.
        """
        self.category_of = {}
        if isinstance(images, Mapping):
            images, self.category_of = told_apart(images, channels)
            channels = "rgb"  # by now
        try:
            more: dict[str, Any] = {"when": when, "defects": defects}
            return super().fit(images, on_error, progress, synthetic, channels, **more)
        finally:
            self.category_of = {}

    def finish(self, progress: Progress | None) -> None:
        """All images were taken in, and enough of each category."""
        check_all_there(self.references, set(self.category_of.values()))
        super().finish(progress)

    def _score_made(self, *told: Any) -> None:
        """Synthetic defects tell of one threshold; of several there is none for all."""
        if len(self.categories) < 2:
            super()._score_made(*told)

    def nearest_category(self, numbers: Sequence[int]) -> str | None:
        """The category of the first of some references; None where none was named."""
        return self.references[numbers[0]].category or None
