"""SubspaceAD without any reference: the subspace is that of the batch itself.

Lendering, Akdag and Bondarev, "SubspaceAD", CVPR 2026 (arXiv 2602.23013), batched zero-shot. Most
parts of a batch are good, so what few of them show takes up little of the variance.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from offnominal.detectors.base import OnError, Progress, Scored
from offnominal.detectors.prediction import Prediction
from offnominal.detectors.subspace import Moments, Subspace
from offnominal.detectors.subspace_base import SubspaceModel, SubspaceOptions
from offnominal.errors import OptionError
from offnominal.images import ImageSource, describe

__all__ = ["BatchedSubspaceAD"]


class BatchedSubspaceAD(SubspaceModel):
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

    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Predictions for a batch: its subspace first, then one image after the other.

        Raises
        ------
        OptionError
            If there are fewer than two readable images.
        """
        readable: list[ImageSource] = []
        total: Moments | None = None
        self.load_network()
        with torch.inference_mode():
            for source, image in self._read(images, on_error):
                own = self._moments(image)
                total = own if total is None else total.plus(own)
                readable.append(source)
                if progress:
                    progress("features", len(readable))
            if total is None or len(readable) < 2:
                raise OptionError("a batch needs at least two readable images to compare")
            self._learn(total)
        for done, (source, image) in enumerate(self._read(readable, None), start=1):
            with torch.inference_mode():
                prediction = self._predict_one(describe(source), image, total)
            if progress:
                progress("predict", done)
            yield prediction

    def _moments(self, image: np.ndarray) -> Moments:
        views = [self._tokens(pixels)[0] for pixels in self.views(image).pixels]
        return Moments.of(torch.cat(views))

    def _predict_one(self, source: str, image: np.ndarray, total: Moments) -> Prediction:
        views = self.views(image)
        seen = [self._tokens(pixels) for pixels in views.pixels]
        subspace = self.subspace
        if self.leave_one_out:
            own = Moments.of(torch.cat([tokens for tokens, _ in seen]))
            subspace = Subspace.of(total.minus(own), self.variance)
        merged = views.merge([subspace.residual(tokens).reshape(grid) for tokens, grid in seen])
        scored = Scored(merged, (image.shape[0], image.shape[1]), views.cover)
        return self._prediction(source, image, scored)

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        raise OptionError(f"{self.method} has nothing to fit: it scores the images of a batch")

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        raise OptionError(f"{self.method} scores batches: use predict or stream with all images")

    def extra_state(self) -> dict[str, Any]:
        """Nothing is learned."""
        return {}
