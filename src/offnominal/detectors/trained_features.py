"""Trained detectors over a frozen backbone, whose features are computed once."""

import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from offnominal.detectors.backboned import BackboneDetector
from offnominal.detectors.trained import TrainedDetector
from offnominal.errors import OptionError
from offnominal.training.augment import check_augment
from offnominal.training.images import Batch, FrozenCache, Images

__all__ = ["TrainedFeatureDetector"]


class TrainedFeatureDetector(TrainedDetector, BackboneDetector):
    """A trained method that looks at images through a frozen backbone.

    Beside what every trained method writes, it writes :meth:`frozen`. As long as nothing random
    changes the images, what that gives is computed once for each and kept on disk.
    """

    _cache: FrozenCache | None = None

    @abstractmethod
    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """What the frozen network gives of normalised pixels (B, 3, h, w): (B, ...) each."""

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
