"""AnomalyDINO without any reference: the images of a batch judge each other.

Damm et al., 2024 (arXiv 2405.14529), appendix D. Most parts of a batch are good, so a patch of a
good part has near neighbours in many of the other images, and a patch of a defect has few.
"""

from typing import ClassVar, Unpack

import numpy as np
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.detectors.base import Progress, Scored
from offnominal.detectors.batched import BatchDetector
from offnominal.detectors.patches import PatchDetector, PatchOptions
from offnominal.detectors.views import Views
from offnominal.errors import OptionError

__all__ = ["BatchedAnomalyDINO"]

_RESOLUTION = 672  # the paper's, for DINOv2


class BatchedAnomalyDINO(PatchDetector, BatchDetector):
    """Batched zero-shot detection: every image of a batch is scored against all the others.

    A patch's score is the mean of its distances below the ``quantile`` of those to all patches of
    the other images. There is nothing to fit or to save, and no good image to set a threshold by:
    scores rank the images of the batch.

    Parameters
    ----------
    quantile : float
        Share of the other images' patches, on (0, 1); the paper's is 0.001.
    resolution : int or None
        None: 672 with DINOv2, as in the paper, otherwise the backbone's default.
    **options
        See :class:`~offnominal.detectors.patches.PatchDetector`.
    """

    method: ClassVar[str] = "anomalydino-batched"

    def __init__(
        self,
        quantile: float = 0.001,
        **options: Unpack[PatchOptions],
    ) -> None:
        super().__init__(**options)
        if not 0 < quantile < 1:
            raise OptionError(f"quantile {quantile}: give a share between 0 and 1, as 0.001")
        self.quantile = quantile

    def _default_resolution(self, net: Backbone) -> int:
        return _RESOLUTION if "dinov2" in net.name else net.resolution

    def _begin(self) -> None:
        self.prepare_state()
        # Of each image: how its views lie, and of each view its first row in the bank and its mask.
        self._seen: list[tuple[Views, list[tuple[int, Tensor]]]] = []

    def _take(self, index: int, image: np.ndarray) -> None:
        views = self.views(image)
        seen: list[tuple[int, Tensor]] = []
        for pixels in views.pixels:
            tokens, grid = self._tokens(pixels)
            if not len(self.bank):
                self._decide_mask(tokens, grid)
            seen.append((len(self.bank), self.foreground(tokens, grid)))
            raw = self.normalization != "l2"
            self.bank.add(tokens if raw else self._normalised(tokens), index)
        self._seen.append((views.layout(), seen))

    def _compare(self, count: int, progress: Progress | None) -> None:
        if self.normalization == "standardize":
            self._standardize_bank()

    def _judge(self, index: int, image: np.ndarray) -> Scored:
        layout, seen = self._seen[index]
        scores = []
        for start, mask in seen:
            queries = self.bank.take(slice(start, start + mask.numel()))
            distance = self._mean_below_quantile(queries, index)
            scores.append(distance.reshape(mask.shape) * mask)
        return Scored(layout.merge(scores), (image.shape[0], image.shape[1]), layout.cover)

    def _mean_below_quantile(self, queries: Tensor, owner: int) -> Tensor:
        half = self.bank.distances_below_quantile(queries, self.quantile, skip=owner)
        # Half the squared distance is the cosine distance of unit vectors; of others, take the
        # root of the mean square, so that the unit is that of the few-shot form.
        return half if self.normalization == "l2" else (2 * half).sqrt()
