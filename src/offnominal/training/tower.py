"""What the frozen image tower makes of the training images: computed once, used every epoch.

Nothing of the tower is trained and images are not augmented (but for mosaics, where they are asked
for), so every epoch sees the same features. Each image goes through the tower by itself: its
features do not depend on its neighbours in a batch, and a run with the cache gives the same bits as
one without.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offnominal.backbones.cache import FeatureCache
from offnominal.datasets.sample import Sample
from offnominal.detectors.base import OnError
from offnominal.detectors.learned import LearnedDetector
from offnominal.errors import ImageError
from offnominal.images import read_image
from offnominal.prefetch import prefetch
from offnominal.training.mosaic import Four, join_four
from offnominal.training.samples import mask_of, truth_at

__all__ = ["Batch", "Tower"]

_Bits = npt.NDArray[np.uint8]


class Batch(NamedTuple):
    """Features and truth of some images, on the detector's device.

    Attributes
    ----------
    whole : Tensor of shape (B, E), float32
        Unit vectors of the images.
    levels : list of Tensor of shape (B, N, D), float32
        Of the patches, one tensor a level, as the detector sees them.
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
    detector : LearnedDetector
        What it sees of an image is what is trained on.
    samples : sequence of Sample
    masks : bool
        Whether the truth is wanted too.
    cache : FeatureCache or None
        None: every image goes through the network in every epoch.
    names : mapping
        What the parts of a category are called; those that it lacks are called by the category.
    on_error : callable or None
        Called once with the error of each unreadable image, which is left out; None: it is raised.
    tell : callable or None
        Called with a line for a person where the cache is too small for all images.

    Attributes
    ----------
    computed, from_cache : int
        Images that went through the network, and those that did not.
    seconds : float
        Spent in the network.
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
    ) -> None:
        self.detector = detector
        self.samples = samples
        self.masks = masks
        self.cache = cache
        self.names = names or {}
        self.on_error = on_error
        self.tell = tell
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
        self._truth: dict[int, _Bits] = {}
        self._unreadable: set[int] = set()

    def part_names(self) -> list[str]:
        """What the parts on the images are called, each name once."""
        return list(dict.fromkeys(map(self._name, self.samples)))

    def _name(self, sample: Sample) -> str:
        return self.names.get(sample.category, sample.category)

    def batch(
        self, numbers: Sequence[int], mosaics: Mapping[int, Four] | None = None
    ) -> Batch | None:
        """Features of images; None if none of them can be read.

        Parameters
        ----------
        numbers : sequence of int
            Of the images.
        mosaics : mapping or None
            Numbers whose image gives way to a mosaic of four; one that needs an unreadable image
            is left out.
        """
        four = mosaics or {}
        parts = {number: four.get(number, (number,)) for number in numbers}
        found = {number: None if number in four else self._kept(number) for number in numbers}
        missing = [
            number
            for number, entry in found.items()
            if entry is None and self._unreadable.isdisjoint(parts[number])
        ]
        truth: dict[int, _Bits] = {}
        for number, this, error in prefetch(missing, lambda number: self._read(parts[number])):
            if this is not None:
                pixels, bits = this
                found[number] = self._computed(pixels, None if number in four else number)
                if bits is not None:
                    (truth if number in four else self._truth)[number] = bits
            elif error is not None:
                self._leave_out(parts[number], error)
        entries = {number: entry for number, entry in found.items() if entry is not None}
        if not entries:
            return None
        device = self.device
        labels = [max(self.samples[part].label for part in parts[number]) for number in entries]
        levels = [torch.from_numpy(entry[1]) for entry in entries.values()]
        packed = [(truth if n in four else self._truth)[n] for n in entries if self.masks]
        return Batch(
            torch.stack([torch.from_numpy(entry[0]) for entry in entries.values()]).to(device),
            list(torch.stack(levels, 1).to(device)),
            self.grid,
            torch.tensor(labels, device=device),
            self._masks(packed).to(device) if self.masks else None,
            [self._name(self.samples[number]) for number in entries],
        )

    def _read(self, numbers: Sequence[int]) -> tuple[Tensor, _Bits | None]:
        """Pixels (3, S, S) of an image or of a mosaic, and its truth, packed."""
        samples = [self.samples[number] for number in numbers]
        images = [read_image(sample.image, self.detector.sixteen_bit) for sample in samples]
        image = images[0] if len(images) == 1 else join_four(images)
        bits = None
        if self.masks:
            masks = [
                mask_of(sample, (each.shape[0], each.shape[1]))
                for sample, each in zip(samples, images, strict=True)
            ]
            mask = masks[0]
            if len(masks) > 1:
                mask = join_four([each.astype(np.uint8) * 255 for each in masks]) > 127
            bits = np.packbits(truth_at(mask, self.side))
        return self.detector.views(image).pixels[0], bits

    def _leave_out(self, numbers: Iterable[int], error: ImageError) -> None:
        if self.on_error is None:
            raise error
        bad = {number for number in numbers if str(self.samples[number].image) == error.source}
        # Of a batch, a picture and a mosaic that it is part of may both have been read ahead.
        if not bad <= self._unreadable:
            self._unreadable |= bad
            self.on_error(error)

    def _masks(self, packed: Sequence[_Bits]) -> Tensor:
        count = self.side * self.side
        bits = np.stack([np.unpackbits(each, count=count) for each in packed])
        return torch.from_numpy(bits.reshape(-1, self.side, self.side)).float()

    def _kept(self, number: int) -> list[np.ndarray] | None:
        key = self._keys.get(number)
        if self.cache is None or key is None:
            return None
        entry = self.cache.get(key)
        self.from_cache += entry is not None
        return entry

    def _computed(self, pixels: Tensor, number: int | None) -> list[np.ndarray]:
        """Features of pixels, kept under an image's number; those of a mosaic are not kept."""
        if number is not None and self.cache is not None and number not in self._keys:
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
        if number is not None and self.cache is not None:
            self.cache.put(self._keys[number], entry)
            if self.tell and self.computed == 1:
                self._tell_needed(sum(array.nbytes for array in entry), self.cache.limit)
        return entry

    def _tell_needed(self, each: int, limit: int) -> None:
        needed = each * len(self.samples)
        if self.tell and needed > limit:
            self.tell(
                f"features of all images take {needed / 1e9:.1f} GB and the cache may take "
                f"{limit / 1e9:.1f} GB: the rest is computed anew in every epoch; --cache-limit "
                "gives it more"
            )
