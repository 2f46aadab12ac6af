"""SubspaceAD without any reference: the subspace is that of the batch itself.

Lendering, Akdag and Bondarev, "SubspaceAD", CVPR 2026 (arXiv 2602.23013), batched zero-shot. Most
parts of a batch are good, so what few of them show takes up little of the variance.
"""

from typing import ClassVar, Unpack

import numpy as np
import torch

from offnominal.detectors.base import Progress, Scored
from offnominal.detectors.batched import BatchDetector
from offnominal.detectors.subspace import Moments, Subspace
from offnominal.detectors.subspace_base import SubspaceModel, SubspaceOptions

__all__ = ["BatchedSubspaceAD"]


class BatchedSubspaceAD(SubspaceModel, BatchDetector):
    """Batched zero-shot detection: every image is scored by the subspace of the whole batch.

    There is nothing to fit or to save, and no good image to set a threshold by: scores rank the
    images of the batch. Images are read and go through the network twice, once for the subspace and
    once for the scores, so that memory does not grow with the batch.

    Parameters
    ----------
    leave_one_out : bool
        Whether each image is scored by the subspace of the others. False is the released code's:
        with few images, a defect then takes part in the subspace that is to miss it. True takes an
        eigendecomposition for every image.
    **options
        See :class:`~offnominal.detectors.subspace_base.SubspaceModel`.
    """

    method: ClassVar[str] = "subspacead-batched"

    def __init__(self, leave_one_out: bool = False, **options: Unpack[SubspaceOptions]) -> None:
        super().__init__(**options)
        self.leave_one_out = leave_one_out

    def _begin(self) -> None:
        self._total: Moments | None = None

    def _take(self, index: int, image: np.ndarray) -> None:
        own = Moments.of(torch.cat([self._tokens(p)[0] for p in self.views(image).pixels]))
        self._total = own if self._total is None else self._total.plus(own)

    def _compare(self, count: int, progress: Progress | None) -> None:
        assert self._total is not None
        self._learn(self._total)

    def _judge(self, index: int, image: np.ndarray) -> Scored:
        views = self.views(image)
        seen = [self._tokens(pixels) for pixels in views.pixels]
        subspace = self.subspace
        if self.leave_one_out:
            own = Moments.of(torch.cat([tokens for tokens, _ in seen]))
            assert self._total is not None
            subspace = Subspace.of(self._total.minus(own), self.variance)
        merged = views.merge([subspace.residual(tokens).reshape(grid) for tokens, grid in seen])
        return Scored(merged, (image.shape[0], image.shape[1]), views.cover)
