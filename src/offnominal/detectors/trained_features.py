"""Trained detectors over a frozen backbone, whose features are computed once."""

import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from offnominal.checks import check_augment
from offnominal.detectors.backboned import BackboneDetector
from offnominal.detectors.joining import joined_levels
from offnominal.detectors.knowing import KnowingDetector
from offnominal.detectors.trained import TrainedDetector
from offnominal.errors import OptionError
from offnominal.good_scores import CalibrationScores
from offnominal.scoring import Scores, Size, size_of
from offnominal.training.images import Batch, FrozenCache, Images

__all__ = ["TrainedFeatureDetector"]


class TrainedFeatureDetector(TrainedDetector, KnowingDetector, BackboneDetector):
    """A trained method that looks at images through a frozen backbone.

    Beside what every trained method writes, it writes :meth:`frozen`. As long as nothing random
    changes the images, what that gives is computed once for each and kept on disk. Known
    defects are told by its levels as well, or by what :meth:`known_by` gives.
    """

    takes_defects: ClassVar[bool] = True

    _cache: FrozenCache | None = None

    @abstractmethod
    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """What the frozen network gives of normalised pixels (B, 3, h, w): (B, ...) each."""

    def known_by(self, pixels: Tensor) -> Sequence[Tensor]:
        """Levels (1, C, h, w), each over all of normalised pixels (1, 3, h', w')."""
        return [one for one in self.frozen(pixels) if one.ndim == 4]

    def frozen_of(self, batch: Batch) -> tuple[Tensor, ...]:
        """The same of a batch, without gradients, from the cache where that is right."""
        if self._cache is None:
            with torch.no_grad():
                return self.frozen(batch.pixels)
        # One by one: sums of a batch depend on its size in their last bits, and which of its images
        # are not there yet depends on where a training was broken off.
        for place in self._cache.missing(batch.numbers).tolist():
            with torch.no_grad():
                found = self.frozen(batch.pixels[place : place + 1])
            if not self._cache.put(batch.numbers[place : place + 1], found):
                warnings.warn(
                    f"{tempfile.gettempdir()}: no room to keep features there, so they are "
                    "computed anew in every step; set TMPDIR to a folder on another disk",
                    stacklevel=2,
                )
                self._cache = None
                return self.frozen_of(batch)
        return tuple(each.to(self._device) for each in self._cache.get(batch.numbers))

    # -- known defects ------------------------------------------------------------------------

    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """What the score and the map of an image are made of."""
        found = super().score(image)
        if self.known_defects is None:
            return found
        return self.as_known(found, self.patch_features(image, found.patches.shape))

    def patch_features(self, image: np.ndarray, grid: Size) -> Tensor:
        """Features (D, *grid) of an image's patches, by another pass of the frozen network."""
        pixels = self.images(self.sized(image)[None], [0]).pixels([0])
        return joined_levels(self.known_by(pixels), grid)

    def scores_alone(
        self, read: Callable[[Iterable[int]], Iterator[np.ndarray]]
    ) -> CalibrationScores:
        """Scores of the images that were held back."""
        if self.good.held_out.numbers:
            return self.good.held_out
        pairs = [(self.score(image), size_of(image)) for image in read(self.held_back_)]
        return CalibrationScores.measured("held-out", pairs, self.judged, self.held_back_)

    # -- what is computed once ----------------------------------------------------------------

    @property
    def side(self) -> int:
        """Side of the images, in pixels: one that the backbone takes."""
        network = self.load_network()
        step = network.multiple
        if self.resolution is None:
            return max(step, self.default_side // step * step)
        if self.resolution % step:
            told = f"{network.name} takes multiples of {step} px"
            raise OptionError(f"--resolution {self.resolution}: {told}")
        return self.resolution

    def open_cache(self, images: Images) -> None:
        """Keep what is computed of images, unless they are augmented."""
        names = check_augment(self.augment or self.default_augment)
        self._cache = None if names else FrozenCache(len(images))

    def fill_cache(self, images: Images) -> None:
        """Compute it of all images at once, so that steps can be timed."""
        if self._cache is not None:
            for _ in self.frozen_of_all(images):
                pass

    def frozen_of_all(self, images: Images) -> Iterator[tuple[Tensor, ...]]:
        """What the frozen network gives of all images, not augmented, some at a time in order."""
        rng = np.random.default_rng(0)
        for numbers in torch.split(torch.arange(len(images)), 8):
            listed = numbers.tolist()
            pixels = images.pixels(listed)
            yield self.frozen_of(Batch(images.uint8(listed), pixels, numbers, rng))

    def moments(self, images: Images) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel (D,), float64, of the first that :meth:`frozen` gives.

        Over all positions of all images, of which few are held at a time.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for features, *_ in self.frozen_of_all(images):
            rows = features.double().movedim(1, -1).flatten(0, 2)
            count += len(rows)
            total, squares = total + rows.sum(0), squares + rows.square().sum(0)
        mean = total / count
        return mean, (squares / count - mean.square()).clamp(min=0)

    def release(self) -> None:
        """Let go of the cache, and of the images."""
        super().release()
        self._cache = None

    def make_networks(self) -> None:
        """Load the backbone, and build what is trained on it."""
        network = self.load_network()
        self.mean, self.std = network.mean, network.std  # type: ignore[misc]
        super().make_networks()

    def train(self, mode: bool = True) -> "TrainedFeatureDetector":
        """Switch what is trained; the backbone never learns, its statistics neither."""
        super().train(mode)
        if self.network is not None:
            self.network.eval()
        return self
