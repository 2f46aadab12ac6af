"""Detectors of features that may know defects on top of what good images showed."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.base import Detector
from offnominal.detectors.deciding import LeaveOneOut
from offnominal.detectors.known import KnownDefects
from offnominal.detectors.known_learning import learn_known
from offnominal.detectors.learned_state import must, must_fit
from offnominal.detectors.options import OnError, ShowProgress
from offnominal.good_scores import CalibrationScores
from offnominal.labels.labelled import Defects
from offnominal.scoring import Scores, Size
from offnominal.sources import ImageSources

__all__ = ["KnowingDetector"]


class KnowingDetector(Detector):
    """A detector that known defects can be told by, if its class says ``takes_defects``.

    It writes :meth:`patch_features`, and hands its scores to :meth:`as_known`.
    """

    @abstractmethod
    def patch_features(self, image: np.ndarray, grid: Size) -> Any:
        """Features (D, *grid), an array or a tensor, of an image's patches; of any length.

        Parameters
        ----------
        image : uint8 array of shape (H, W, 3)
        grid : (gh, gw)
            That of the image's patch scores.
        """

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Approximate where a layer of known defects changes scores: one that left out a fold."""
        found, known = super().leave_one_out, self.known_defects
        return "approximate" if found == "exact" and known and known.layer else found

    def as_known(self, scores: Scores, features: Any) -> Scores:
        """Scores of an image, with what known defects change of them.

        Parameters
        ----------
        scores : Scores
            As they are without.
        features : array or tensor of shape (D, gh, gw)
            As :meth:`patch_features` gives them.
        """
        return self.known_defects.judged(scores, features) if self.known_defects else scores

    def scores_alone(
        self, read: Callable[[Iterable[int]], Iterator[np.ndarray]]
    ) -> CalibrationScores:
        """Scores of references, each as if never learned; ``read`` gives images by numbers."""
        return self.good.references.of(self.references.active)

    def learn_defects(
        self,
        defects: Defects,
        images: ImageSources = (),
        on_error: OnError | None = None,
        progress: ShowProgress = None,
    ) -> KnownDefects:
        """Know some defects on top of what good images showed, instead of those known before.

        Each prediction then says which class of defect it is nearest to. A
        :class:`~offnominal.detectors.known_layer.Layer` changes scores, if defects that it did not
        learn from gain by it; with fewer than three defective parts, or eight good images, scores
        stay as they are. The thresholds are set anew by the references, each scored by a layer
        without it. Where scores change, held-out images, synthetic
        defects and a threshold set by hand no longer count; a warning says so.

        Parameters
        ----------
        defects : Labelled, path, array, PIL image or tensor, or several of them
            See :class:`~offnominal.labels.labelled.Labelled`.
        images : paths, arrays, PIL images or tensors
            The references, recognised by their pixels; none: the files that they were learned from.
        on_error : callable or None
            Called with each :class:`~offnominal.errors.ImageError` of a defect, which is left out;
            None: it is raised.
        progress : callable, bool or None
            As :meth:`fit` has it.

        Raises
        ------
        OptionError
            If the method cannot, none is readable, or a reference is no longer there.
        """
        self.refuse_defects()
        self.check_fitted()
        return learn_known(self, defects, images, on_error, progress)

    # -- files --------------------------------------------------------------------------------

    def header(self) -> dict[str, Any]:
        """All that is no array, and what is known of defects."""
        known = {"known": self.known_defects.facts()} if self.known_defects else {}
        return super().header() | known

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Learned arrays and calibration scores, and patches of known defects."""
        return super().arrays() | (self.known_defects.arrays() if self.known_defects else {})

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was learned, and what is known of defects."""
        own = {name: array for name, array in arrays.items() if name.startswith("known.")}
        super().restore(header, {name: a for name, a in arrays.items() if name not in own})
        with must_fit():
            must(bool(own) == ("known" in header), "known defects without their patches")
            self.known_defects = KnownDefects.of(header["known"], own) if own else None
