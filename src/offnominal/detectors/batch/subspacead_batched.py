"""SubspaceAD without any reference: the subspace is that of the batch itself.

Lendering, Akdag and Bondarev, "SubspaceAD", CVPR 2026 (arXiv 2602.23013), batched zero-shot. Most
parts of a batch are good, so what few of them show takes up little of the variance.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offnominal.detectors.batch.base import BatchDetector
from offnominal.detectors.features import joined, tokens_of
from offnominal.detectors.options import Progress
from offnominal.detectors.subspace import Moments, Subspace, SubspaceModel
from offnominal.scoring import Scores
from offnominal.views import View

__all__ = ["BatchedSubspaceAD"]


class BatchedSubspaceAD(BatchDetector, SubspaceModel):
    """Batched zero-shot detection: every image is scored by the subspace of the whole batch.

    There is nothing to fit or to save, and no good image to set a threshold by: scores rank the
    images of the batch. Images are read and go through the network twice, once for the subspace and
    once for the scores, so that memory does not grow with the batch.

    Parameters
    ----------
    leave_own_out : bool
        Whether each image is scored by the subspace of the others. False is the released code's:
        with few images, a defect then takes part in the subspace that is to miss it. True takes an
        eigendecomposition for every image.
    **options
        See :class:`~offnominal.detectors.subspace.SubspaceModel`.
    """

    method: ClassVar[str] = "subspacead-batched"

    def __init__(self, leave_own_out: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.leave_own_out = leave_own_out

    def begin(self) -> None:
        """Forget the batch before."""
        super().begin()
        self._total: Moments | None = None

    def take(self, index: int, image: np.ndarray) -> None:
        """Add an image to the sums."""
        own = self._moments(self._seen(image)[1])
        self._total = own if self._total is None else self._total.plus(own)

    def compare_all(self, count: int, progress: Progress | None) -> None:
        """The subspace of the batch."""
        assert self._total is not None
        self.set_moments(self._total)

    def judge_image(self, index: int, image: np.ndarray) -> Scores:
        """Squared distance of each patch from the subspace."""
        views, features = self._seen(image)
        subspace = self.subspace
        if self.leave_own_out:
            assert self._total is not None
            subspace = Subspace.of(self._total.minus(self._moments(features)), self.variance)
        return joined(views, [self.outside(each, subspace) for each in features])

    def _seen(self, image: np.ndarray) -> tuple[list[View], list[Tensor]]:
        views = self.views(image)
        return views, [self.embed(torch.from_numpy(view.pixels)) for view in views]

    @staticmethod
    def _moments(features: list[Tensor]) -> Moments:
        return Moments.of(torch.cat([tokens_of(each) for each in features]))
