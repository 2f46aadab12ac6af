"""AnomalyDINO without any reference: the images of a batch judge each other.

Damm et al., 2024 (arXiv 2405.14529), appendix D. Most parts of a batch are good, so a patch of a
good part has near neighbours in many of the other images, and a patch of a defect has few.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import check_range
from offnominal.detectors.batch.base import BatchDetector
from offnominal.detectors.features import ViewScores, joined, tokens_of
from offnominal.detectors.masked import MaskedFeatures
from offnominal.detectors.options import Progress
from offnominal.memory import MemoryBank
from offnominal.scoring import Scores

__all__ = ["BatchedAnomalyDINO"]


class BatchedAnomalyDINO(BatchDetector, MaskedFeatures):
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
    search_memory : int
        Bound on the search's working memory, in MiB.
    **options
        See :class:`~offnominal.detectors.masked.MaskedFeatures`.
    """

    method: ClassVar[str] = "anomalydino-batched"

    default_resolutions: ClassVar[Mapping[str, int]] = {"dinov2": 672}

    def __init__(self, quantile: float = 0.001, search_memory: int = 512, **options: Any) -> None:
        super().__init__(**options)
        check_range("quantile", quantile, above=0, below=1)
        check_range("search_memory", search_memory, whole=True, least=1)
        self.quantile = quantile
        self.search_memory = search_memory
        self.begin()

    def begin(self) -> None:
        """Forget the batch before."""
        super().begin()
        self.bank = MemoryBank(memory=self.search_memory * 2**20).to(self._device)
        self._masks: list[list[NDArray[np.bool_]]] = []  # of each image, of each view: (gh, gw)

    def take(self, index: int, image: np.ndarray) -> None:
        """Put an image into the bank; the mask is decided on the first."""
        masks: list[NDArray[np.bool_]] = []
        for place, view in enumerate(self.views(image)):
            features = self.embedded(view.pixels)
            if not len(self.bank):
                self.decide_mask(features)
            masks.append(self.foreground(features))
            self.bank.add(self.normalised(tokens_of(features)), index, place)
        self._masks.append(masks)

    def compare_all(self, count: int, progress: Progress | None) -> None:
        """Standardise the rows, where that is asked for."""
        self.standardize(self.bank)

    def judge_image(self, index: int, image: np.ndarray) -> Scores:
        """Mean of the distances below the quantile, of each patch."""
        own, found = self.bank.rows_of(index), []
        for place, mask in enumerate(self._masks[index]):
            rows = self.bank.take(own[self.bank.view[own] == place])
            # Half the squared distance is the cosine distance of unit vectors; of others, take the
            # root of the mean square, so that the unit is that of the few-shot form.
            half = self.bank.distances_below_quantile(rows, self.quantile, skip=index)
            distance = half if self.normalization == "l2" else np.sqrt(2 * half)
            found.append(ViewScores(distance.reshape(mask.shape) * mask))
        return joined(self.views_of((image.shape[0], image.shape[1])), found)
