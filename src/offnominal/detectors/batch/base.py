"""Detectors that learn from no good image: the images of a batch judge each other."""

from abc import abstractmethod
from collections.abc import Iterator
from datetime import datetime
from typing import Any, ClassVar, Self

import numpy as np

from offnominal.detectors.features import FeatureDetector
from offnominal.detectors.options import OnError, Progress, ShowProgress
from offnominal.errors import NotFittedError, OptionError
from offnominal.images import Channels, ImageSource, describe
from offnominal.labels.labelled import Defects
from offnominal.prediction import Prediction
from offnominal.progress import shown
from offnominal.scoring import Scores
from offnominal.sources import ImageSources, several
from offnominal.tensors import no_gradients

__all__ = ["BatchDetector"]


class BatchDetector(FeatureDetector):
    """A detector that takes in a whole batch, and then judges one image after the other.

    There is nothing to fit or to save, and no good image to set a threshold by: scores rank the
    images of the batch.
    """

    needs_references: ClassVar[bool] = False

    @abstractmethod
    def take(self, index: int, image: np.ndarray) -> None:
        """Take in one image of the batch, uint8 (H, W, 3)."""

    def compare_all(self, count: int, progress: Progress | None) -> None:
        """What needs all of the batch and comes before any image is judged."""

    @abstractmethod
    def judge_image(self, index: int, image: np.ndarray) -> Scores:
        """What the score and the map of one image are made of."""

    def exportable(self) -> str | None:
        """Why not."""
        return "the images of a batch judge one another, so there is nothing learned to export"

    def check_count(self, count: int) -> None:
        """Raise an :class:`OptionError` if a batch is too small."""
        if count < 2:
            raise OptionError("a batch needs at least two readable images to compare")

    def stream(
        self,
        images: ImageSources,
        on_error: OnError | None = None,
        progress: ShowProgress = None,
        channels: Channels = "rgb",
    ) -> Iterator[Prediction]:
        """Predictions for a batch: all of it is taken in first, then judged image by image.

        Images are read twice: what is kept of a batch fits in memory, its images may not.

        Parameters
        ----------
        images : paths, uint8 or uint16 arrays, PIL images or tensors
            As :meth:`~offnominal.detectors.base.Detector.fit` has them, all of the batch at once.
        on_error : callable or None
            Called with each :class:`~offnominal.errors.ImageError`, and the image is left out of
            the batch; None: it is raised.
        progress : callable, bool or None
            Called with the stage and the number of images that it has done; True: a bar.
        channels : {"rgb", "bgr"}
            Order of the channels of arrays and tensors.

        Raises
        ------
        OptionError
            If there are too few readable images to compare.
        """
        self.load_network()
        self.begin()
        readable: list[ImageSource] = []
        found = several(images, channels)
        with shown(progress, found) as told:
            for source, image in self.read(found, on_error):
                with no_gradients():
                    self.take(len(readable), image)
                readable.append(source)
                if told:
                    told("features", len(readable))
            self.check_count(len(readable))
            with no_gradients():
                self.compare_all(len(readable), told)
            for index, (source, seen) in enumerate(self.pictures(readable, None)):
                with no_gradients():
                    scores = self.judge_image(index, seen.pixels)
                judged = self.judged_or_told(describe(source), seen, scores, on_error)
                if told:
                    told("predict", index + 1)
                if judged:
                    yield judged

    def fit(
        self,
        images: ImageSources = (),
        on_error: OnError | None = None,
        progress: ShowProgress = None,
        synthetic: bool | None = None,
        channels: Channels = "rgb",
        *,
        when: datetime | None = None,
        defects: Defects = (),
    ) -> Self:
        """Refused: there is nothing to fit."""
        raise OptionError(f"{self.method} has nothing to fit: it scores the images of a batch")

    def compare(self, features: Any, without: int | None = None) -> Any:
        """Refused: an image alone has nothing to be compared with."""
        raise OptionError(f"{self.method} scores batches: use predict or stream with all images")

    def check_fitted(self) -> None:
        """Refused: nothing is learned."""
        raise NotFittedError(f"{self.method} learns nothing, so there is nothing to save")
