"""AnomalyDINO without any reference: the images of a batch judge each other.

Damm et al., 2024 (arXiv 2405.14529), appendix D. Most parts of a batch are good, so a patch of a
good part has near neighbours in many of the other images, and a patch of a defect has few.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.detectors.base import OnError, Progress, Scored
from offnominal.detectors.patches import PatchDetector, PatchOptions
from offnominal.detectors.prediction import Prediction
from offnominal.detectors.views import Views
from offnominal.errors import OptionError
from offnominal.images import ImageSource, describe

__all__ = ["BatchedAnomalyDINO"]

_RESOLUTION = 672  # the paper's, for DINOv2


class BatchedAnomalyDINO(PatchDetector):
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

    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Predictions for a batch: features of all of it first, then one image after the other.

        Raises
        ------
        OptionError
            If there are fewer than two readable images.
        """
        readable: list[ImageSource] = []
        starts, layouts = [0], []
        masks: list[Tensor] = []
        self.prepare_state()
        with torch.inference_mode():
            for source, image in self._read(images, on_error):
                views = self.views(image)
                for pixels in views.pixels:
                    tokens, grid = self._tokens(pixels)
                    if not masks:
                        self._decide_mask(tokens, grid)
                    raw = self.normalization != "l2"
                    self.bank.add(tokens if raw else self._normalised(tokens), len(readable))
                    masks.append(self.foreground(tokens, grid))
                    starts.append(starts[-1] + len(tokens))
                layouts.append((views.layout(), len(views.pixels)))
                readable.append(source)
                if progress:
                    progress("features", len(readable))
            if len(readable) < 2:
                raise OptionError("a batch needs at least two readable images to compare")
            if self.normalization == "standardize":
                self._standardize_bank()
        scored = self._score(readable, starts, masks, layouts)
        for done, prediction in enumerate(scored, start=1):
            if progress:
                progress("predict", done)
            yield prediction

    def _score(
        self,
        readable: list[ImageSource],
        starts: list[int],
        masks: list[Tensor],
        layouts: list[tuple[Views, int]],
    ) -> Iterator[Prediction]:
        first = 0
        # Pictures are read a second time: a batch's features fit in memory, its images may not.
        for index, (source, image) in enumerate(self._read(readable, None)):
            layout, count = layouts[index]
            with torch.inference_mode():
                scores = []
                for view in range(first, first + count):
                    queries = self.bank.rows[starts[view] : starts[view + 1]]
                    distance = self._mean_below_quantile(queries, index)
                    scores.append(distance.reshape(masks[view].shape) * masks[view])
                merged = layout.merge(scores)
                size = (image.shape[0], image.shape[1])
                scored = Scored(merged, size, layout.cover)
                yield self._prediction(describe(source), image, scored)
            first += count

    def _mean_below_quantile(self, queries: Tensor, owner: int) -> Tensor:
        half = self.bank.distances_below_quantile(queries, self.quantile, skip=owner)
        # Half the squared distance is the cosine distance of unit vectors; of others, take the
        # root of the mean square, so that the unit is that of the few-shot form.
        return half if self.normalization == "l2" else (2 * half).sqrt()

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        raise OptionError(f"{self.method} has nothing to fit: it scores the images of a batch")

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        raise OptionError(f"{self.method} scores batches: use predict or stream with all images")

    def extra_state(self) -> dict[str, Any]:
        """Nothing is learned."""
        return {}
