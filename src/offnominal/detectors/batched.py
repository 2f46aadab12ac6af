"""Detectors that learn from no good image: the images of a batch judge each other."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from offnominal.detectors.base import Detector, OnError, Progress, Scored
from offnominal.detectors.prediction import Prediction
from offnominal.errors import NotFittedError, OptionError
from offnominal.images import ImageSource, describe

__all__ = ["BatchDetector"]


class BatchDetector(Detector):
    """A detector that takes in a whole batch, and then judges one image after the other.

    There is nothing to fit or to save, and no good image to set a threshold by: scores rank the
    images of the batch. Where a method has a base of its own, that comes first.
    """

    @abstractmethod
    def _begin(self) -> None:
        """Forget the batch before."""

    @abstractmethod
    def _take(self, index: int, image: np.ndarray) -> None:
        """Take in one image of the batch, uint8 (H, W, 3)."""

    def _compare(self, count: int, progress: Progress | None) -> None:
        """What needs all of the batch and comes before any image is judged."""

    @abstractmethod
    def _judge(self, index: int, image: np.ndarray) -> Scored:
        """What the score and the map of one image are made of."""

    def _check_count(self, count: int) -> None:
        if count < 2:
            raise OptionError("a batch needs at least two readable images to compare")

    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Predictions for a batch: all of it is taken in first, then judged image by image.

        Images are read twice: what is kept of a batch fits in memory, its images may not.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
        on_error : callable or None
            Called with each :class:`~offnominal.errors.ImageError`, and the image is left out of
            the batch; None: it is raised.
        progress : callable or None
            Called with the stage and the number of images that it has done.

        Raises
        ------
        OptionError
            If there are too few readable images to compare.
        """
        self.load_network()
        self._begin()
        readable: list[ImageSource] = []
        for source, image in self._read(images, on_error):
            with torch.inference_mode():
                self._take(len(readable), image)
            readable.append(source)
            if progress:
                progress("features", len(readable))
        self._check_count(len(readable))
        with torch.inference_mode():
            self._compare(len(readable), progress)
        for index, (source, image) in enumerate(self._read(readable, None)):
            with torch.inference_mode():
                found = self._prediction(describe(source), image, self._judge(index, image))
            if progress:
                progress("predict", index + 1)
            yield found

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        raise OptionError(f"{self.method} has nothing to fit: it scores the images of a batch")

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        raise OptionError(f"{self.method} scores batches: use predict or stream with all images")

    def _check_fitted(self) -> None:
        raise NotFittedError(f"{self.method} learns nothing, so there is nothing to save")
