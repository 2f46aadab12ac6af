"""What the frozen image tower makes of the training images: computed once, used every epoch.

Nothing of the tower is trained and images are not augmented (but for mosaics, where they are asked
for), so every epoch sees the same features. Each image goes through the tower by itself: its
features do not depend on its neighbours in a batch, and a run with the cache gives the same bits as
one without.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offnominal.backbones.cache import FeatureCache
from offnominal.datasets.sample import Sample
from offnominal.detectors.language.learned import LearnedDetector
from offnominal.detectors.language.training.losses import Batch
from offnominal.detectors.language.training.samples import (
    draw_mosaics,
    join_four,
    mask_of,
    truth_at,
)
from offnominal.detectors.options import OnError
from offnominal.errors import ImageError
from offnominal.prefetch import prefetch

__all__ = ["Tower"]

_Bits = npt.NDArray[np.uint8]
_Numbers = tuple[int, ...]


class Tower:
    """Batches of features, for :func:`offnominal.training.loop.run`.

    Parameters
    ----------
    detector : LearnedDetector
        What it sees of an image is what is trained on.
    samples : sequence of Sample
    masks : bool
        Whether the truth is wanted too.
    cache, names, on_error, tell
        As :func:`offnominal.train.train` has them, ``names`` by its ``class_names``.
    mosaic : float
        Share of images that give way to mosaics of four.

    Attributes
    ----------
    computed, from_cache : int
        Images that went through the network, and those that did not.
    """

    def __init__(
        self,
        detector: LearnedDetector,
        samples: Sequence[Sample],
        masks: bool,
        cache: FeatureCache | None = None,
        names: Mapping[str, str] | None = None,
        on_error: OnError | None = None,
        tell: Callable[[str], None] | None = None,
        mosaic: float = 0.0,
    ) -> None:
        self.detector, self.samples, self.masks = detector, samples, masks
        self.cache, self.names, self.mosaic = cache, names or {}, mosaic
        self.on_error, self.tell = on_error, tell
        self.computed, self.from_cache = 0, 0
        net, reading = detector.clip, detector.reading()
        self.device = net.visual.proj.device
        known = [detector.method, net.digest, json.dumps(reading, sort_keys=True)]
        known += [detector.precision, self.device.type, torch.__version__]
        self._known = "\n".join(known).encode()
        self.side = int(reading["resolution"]) // net.multiple * net.multiple
        self.grid = (self.side // net.stride, self.side // net.stride)
        self._keys: dict[_Numbers, str] = {}
        self._truth: dict[_Numbers, _Bits | None] = {}
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.samples)

    def part_names(self) -> list[str]:
        """What the parts on the images are called, each name once."""
        return list(dict.fromkeys(map(self._name, self.samples)))

    def _name(self, sample: Sample) -> str:
        return self.names.get(sample.category, sample.category)

    def plan(self, size: int, generator: torch.Generator) -> list[list[_Numbers]]:
        """What each step of an epoch takes: numbers of single images, or of four for a mosaic."""
        order = torch.randperm(len(self), generator=generator)
        mosaics = draw_mosaics(self.samples, self.mosaic, generator)
        return [
            [mosaics.get(number, (number,)) for number in numbers.tolist()]
            for numbers in torch.split(order, size)
        ]

    def load(self, planned: Sequence[_Numbers]) -> Batch | None:
        """The batch of a step; None if none of its images can be read.

        One that cannot be read is left out, and so is a mosaic that needs it.
        """
        found = [(numbers, *self._kept(numbers)) for numbers in planned]
        missing = [
            place
            for place, (numbers, entry, _) in enumerate(found)
            if entry is None and self._unreadable.isdisjoint(numbers)
        ]
        for place, this, error in prefetch(missing, lambda place: self._read(planned[place])):
            if this is not None:
                found[place] = (planned[place], self._computed(this[0], planned[place]), this[1])
                if len(planned[place]) == 1:
                    self._truth[planned[place]] = this[1]
            elif error is not None:
                self._leave_out(planned[place], error)
        there = [(numbers, entry, bits) for numbers, entry, bits in found if entry is not None]
        if not there:
            return None
        labels = [max(self.samples[number].label for number in numbers) for numbers, _, _ in there]
        levels = torch.stack([torch.from_numpy(entry[1]) for _, entry, _ in there], 1)
        truth = [self._unpacked(bits) for _, _, bits in there if bits is not None]
        return Batch(
            torch.stack([torch.from_numpy(entry[0]) for _, entry, _ in there]).to(self.device),
            list(levels.to(self.device)),
            self.grid,
            torch.tensor(labels, device=self.device),
            torch.stack(truth).to(self.device) if self.masks else None,
            [self._name(self.samples[numbers[0]]) for numbers, _, _ in there],
        )

    def _read(self, numbers: Sequence[int]) -> tuple[npt.NDArray[np.float32], _Bits | None]:
        """Pixels (3, S, S) of an image or of a mosaic, and its truth, packed."""
        samples = [self.samples[number] for number in numbers]
        images = [self.detector.image_of(sample.image) for sample in samples]
        bits = None
        if self.masks:
            masks = [
                mask_of(sample, (each.shape[0], each.shape[1])).astype(np.uint8) * 255
                for sample, each in zip(samples, images, strict=True)
            ]
            bits = np.packbits(truth_at(join_four(masks) > 127, self.side))
        return self.detector.views(join_four(images))[0].pixels, bits

    def _leave_out(self, numbers: Iterable[int], error: ImageError) -> None:
        if self.on_error is None:
            raise error
        bad = {number for number in numbers if str(self.samples[number].image) == error.source}
        # Of a batch, a picture and a mosaic that it is part of may both have been read ahead.
        if not bad <= self._unreadable:
            self._unreadable |= bad
            self.on_error(error)

    def _unpacked(self, packed: _Bits) -> Tensor:
        bits = np.unpackbits(packed, count=self.side * self.side)
        return torch.from_numpy(bits.reshape(self.side, self.side)).float()

    def _kept(self, numbers: _Numbers) -> tuple[list[np.ndarray] | None, _Bits | None]:
        """Features of an image and its truth, if they are kept; of a mosaic nothing is."""
        key = self._keys.get(numbers)
        entry = self.cache.get(key) if self.cache and key else None
        self.from_cache += entry is not None
        return entry, self._truth.get(numbers)

    def _computed(self, pixels: npt.NDArray[np.float32], numbers: _Numbers) -> list[np.ndarray]:
        cache = self.cache if len(numbers) == 1 else None
        if cache is not None and numbers not in self._keys:
            total = hashlib.blake2b(self._known, digest_size=20)
            total.update(np.ascontiguousarray(pixels).data)
            self._keys[numbers] = total.hexdigest()
            entry, _ = self._kept(numbers)
            if entry is not None:
                return entry
        with torch.no_grad():
            seen = self.detector.embed(torch.from_numpy(pixels))
        entry = [seen.whole.cpu().numpy(), torch.stack(seen.levels).cpu().numpy()]
        self.computed += 1
        if cache is not None:
            cache.put(self._keys[numbers], entry)
            needed = sum(array.nbytes for array in entry) * len(self)
            if self.tell and self.computed == 1 and needed > cache.limit:
                self.tell(
                    f"features of all images take {needed / 1e9:.1f} GB and the cache may take "
                    f"{cache.limit / 1e9:.1f} GB: the rest is computed anew in every epoch; "
                    "--cache-limit gives it more"
                )
        return entry
