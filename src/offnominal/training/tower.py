"""What the frozen image tower makes of the training images: computed once, used every epoch.

Nothing of the tower is trained and images are not augmented, so every epoch sees the same features.
Each image goes through the tower by itself: its features do not depend on its neighbours in a
batch, and a run with the cache gives the same bits as one without.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offnominal.benchmark.features import FeatureCache
from offnominal.datasets.sample import Sample
from offnominal.detectors.base import OnError
from offnominal.detectors.prompted import PromptedDetector
from offnominal.images import read_image
from offnominal.prefetch import prefetch
from offnominal.training.samples import truth_at

__all__ = ["Batch", "Tower"]


class Batch(NamedTuple):
    """Features and truth of some images, on the detector's device.

    Attributes
    ----------
    whole : Tensor of shape (B, E), float32
        Unit vectors of the images.
    levels : list of Tensor of shape (B, N, E), float32
        Unit vectors of the patches, one tensor a level.
    grid : (gh, gw)
    labels : Tensor of shape (B,), int64
        0 good, 1 defective.
    truth : Tensor of shape (B, S, S), float32, or None
        1 where the part is defective.
    names : list of str
        What each part is called.
    """

    whole: Tensor
    levels: list[Tensor]
    grid: tuple[int, int]
    labels: Tensor
    truth: Tensor | None
    names: list[str]


class Tower:
    """Batches of features.

    Parameters
    ----------
    detector : PromptedDetector
        What it sees of an image is what prompts are trained on.
    samples : sequence of Sample
    masks : bool
        Whether the truth is wanted too.
    cache : FeatureCache or None
        None: every image goes through the network in every epoch.
    names : mapping
        What the parts of a category are called; those that it lacks are called by the category.
    on_error : callable or None
        Called once with the error of each unreadable image, which is left out; None: it is raised.

    Attributes
    ----------
    computed, from_cache : int
        Images that went through the network, and those that did not.
    seconds : float
        Spent in the network.
    """

    def __init__(
        self,
        detector: PromptedDetector,
        samples: Sequence[Sample],
        masks: bool,
        cache: FeatureCache | None = None,
        names: Mapping[str, str] | None = None,
        on_error: OnError | None = None,
    ) -> None:
        self.detector = detector
        self.samples = samples
        self.masks = masks
        self.cache = cache
        self.names = names or {}
        self.on_error = on_error
        self.computed, self.from_cache, self.seconds = 0, 0, 0.0
        net = detector.clip
        reading = json.dumps(detector.reading(), sort_keys=True)
        self.device = detector.text_features_.device
        known = [detector.method, net.digest, reading, detector.precision, self.device.type]
        self._known = "\n".join([*known, torch.__version__]).encode()
        side = detector.reading()["resolution"]
        self.side = int(side) - int(side) % net.multiple
        self.grid = (self.side // net.stride, self.side // net.stride)
        self._keys: dict[int, str] = {}
        self._truth: dict[int, npt.NDArray[np.uint8]] = {}
        self._unreadable: set[int] = set()

    def batch(self, numbers: Sequence[int]) -> Batch | None:
        """Features of the images with these numbers; None if none of them can be read."""
        found = {number: self._kept(number) for number in numbers}
        missing = [number for number, entry in found.items() if entry is None]
        for number, pixels, error in prefetch(
            [number for number in missing if number not in self._unreadable], self._read
        ):
            if pixels is not None:
                found[number] = self._computed(number, pixels)
            elif error is not None:
                if self.on_error is None:
                    raise error
                self._unreadable.add(number)
                self.on_error(error)
        entries = [(number, entry) for number, entry in found.items() if entry is not None]
        if not entries:
            return None
        device = self.device
        chosen = [self.samples[number] for number, _ in entries]
        levels = torch.stack([torch.from_numpy(entry[1]) for _, entry in entries], 1).to(device)
        return Batch(
            torch.stack([torch.from_numpy(entry[0]) for _, entry in entries]).to(device),
            list(levels),
            self.grid,
            torch.tensor([sample.label for sample in chosen], device=device),
            self._masks([number for number, _ in entries]).to(device) if self.masks else None,
            [self.names.get(sample.category, sample.category) for sample in chosen],
        )

    def _read(self, number: int) -> Tensor:
        """Pixels (3, S, S) of an image; its truth is noted on the way."""
        sample = self.samples[number]
        image = read_image(sample.image, self.detector.sixteen_bit)
        if self.masks and number not in self._truth:
            truth = truth_at(sample, (image.shape[0], image.shape[1]), self.side)
            self._truth[number] = np.packbits(truth)
        return self.detector.views(image).pixels[0]

    def _masks(self, numbers: Sequence[int]) -> Tensor:
        count = self.side * self.side
        bits = np.stack([np.unpackbits(self._truth[number], count=count) for number in numbers])
        return torch.from_numpy(bits.reshape(-1, self.side, self.side)).float()

    def _kept(self, number: int) -> list[np.ndarray] | None:
        key = self._keys.get(number)
        if self.cache is None or key is None:
            return None
        entry = self.cache.get(key)
        self.from_cache += entry is not None
        return entry

    def _computed(self, number: int, pixels: Tensor) -> list[np.ndarray]:
        if self.cache is not None and number not in self._keys:
            total = hashlib.blake2b(self._known, digest_size=20)
            total.update(np.ascontiguousarray(pixels.numpy()).data)
            self._keys[number] = total.hexdigest()
            entry = self._kept(number)
            if entry is not None:
                return entry
        start = time.perf_counter()
        with torch.no_grad():
            seen = self.detector.see(pixels[None])
            entry = [seen.whole[0].cpu().numpy(), torch.cat(seen.levels).cpu().numpy()]
        self.seconds += time.perf_counter() - start
        self.computed += 1
        if self.cache is not None:
            self.cache.put(self._keys[number], entry)
        return entry
