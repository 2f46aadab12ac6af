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
from offnominal.detectors.language.training.mosaic import Four, draw_mosaics, join_four
from offnominal.detectors.language.training.samples import mask_of, truth_at
from offnominal.detectors.options import OnError
from offnominal.errors import ImageError
from offnominal.images import read_image
from offnominal.prefetch import prefetch

__all__ = ["Tower"]

_Bits = npt.NDArray[np.uint8]
_Planned = tuple[list[int], dict[int, Four]]


class Tower:
    """Batches of features, for :func:`offnominal.training.loop.run`.

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
        self._keys: dict[int, str] = {}
        self._truth: dict[int, _Bits | None] = {}
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.samples)

    def part_names(self) -> list[str]:
        """What the parts on the images are called, each name once."""
        return list(dict.fromkeys(map(self._name, self.samples)))

    def _name(self, sample: Sample) -> str:
        return self.names.get(sample.category, sample.category)

    def plan(self, size: int, generator: torch.Generator) -> list[_Planned]:
        """Numbers of the images of each step of an epoch, and the epoch's mosaics."""
        order = torch.randperm(len(self), generator=generator)
        mosaics = draw_mosaics(self.samples, self.mosaic, generator)
        return [(numbers.tolist(), mosaics) for numbers in torch.split(order, size)]

    def load(self, planned: _Planned) -> Batch | None:
        """The batch of a step; None if none of its images can be read."""
        return self.batch(*planned)

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
        truth = {number: self._truth.get(number) for number in numbers}
        missing = [
            number
            for number, entry in found.items()
            if entry is None and self._unreadable.isdisjoint(parts[number])
        ]
        for number, this, error in prefetch(missing, lambda number: self._read(parts[number])):
            if this is not None:
                pixels, truth[number] = this
                found[number] = self._computed(pixels, None if number in four else number)
                if number not in four:
                    self._truth[number] = truth[number]
            elif error is not None:
                self._leave_out(parts[number], error)
        entries = {number: entry for number, entry in found.items() if entry is not None}
        if not entries:
            return None
        labels = [max(self.samples[part].label for part in parts[number]) for number in entries]
        levels = [torch.from_numpy(entry[1]) for entry in entries.values()]
        packed = [bits for bits in map(truth.get, entries) if bits is not None]
        return Batch(
            torch.stack([torch.from_numpy(entry[0]) for entry in entries.values()]).to(self.device),
            list(torch.stack(levels, 1).to(self.device)),
            self.grid,
            torch.tensor(labels, device=self.device),
            self._unpacked(packed).to(self.device) if self.masks else None,
            [self._name(self.samples[number]) for number in entries],
        )

    def _read(self, numbers: Sequence[int]) -> tuple[npt.NDArray[np.float32], _Bits | None]:
        """Pixels (3, S, S) of an image or of a mosaic, and its truth, packed."""
        samples = [self.samples[number] for number in numbers]
        images = [read_image(sample.image, self.detector.sixteen_bit) for sample in samples]
        image = images[0] if len(images) == 1 else join_four(images)
        bits = None
        if self.masks:
            masks = [
                mask_of(sample, (each.shape[0], each.shape[1])).astype(np.uint8) * 255
                for sample, each in zip(samples, images, strict=True)
            ]
            mask = masks[0] if len(masks) == 1 else join_four(masks)
            bits = np.packbits(truth_at(mask > 127, self.side))
        return self.detector.views(image)[0].pixels, bits

    def _leave_out(self, numbers: Iterable[int], error: ImageError) -> None:
        if self.on_error is None:
            raise error
        bad = {number for number in numbers if str(self.samples[number].image) == error.source}
        # Of a batch, a picture and a mosaic that it is part of may both have been read ahead.
        if not bad <= self._unreadable:
            self._unreadable |= bad
            self.on_error(error)

    def _unpacked(self, packed: Sequence[_Bits]) -> Tensor:
        count = self.side * self.side
        bits = np.stack([np.unpackbits(each, count=count) for each in packed])
        return torch.from_numpy(bits.reshape(-1, self.side, self.side)).float()

    def _kept(self, number: int) -> list[np.ndarray] | None:
        key = self._keys.get(number)
        entry = self.cache.get(key) if self.cache and key else None
        self.from_cache += entry is not None
        return entry

    def _computed(self, pixels: npt.NDArray[np.float32], number: int | None) -> list[np.ndarray]:
        """Features of pixels, kept under an image's number; those of a mosaic are not kept."""
        if self.cache is not None and number is not None and number not in self._keys:
            total = hashlib.blake2b(self._known, digest_size=20)
            total.update(np.ascontiguousarray(pixels).data)
            self._keys[number] = total.hexdigest()
            entry = self._kept(number)
            if entry is not None:
                return entry
        with torch.no_grad():
            seen = self.detector.embed(torch.from_numpy(pixels))
            entry = [seen.whole.cpu().numpy(), torch.stack(seen.levels).cpu().numpy()]
        self.computed += 1
        if self.cache is not None and number is not None:
            self.cache.put(self._keys[number], entry)
            needed = sum(array.nbytes for array in entry) * len(self)
            if self.tell and self.computed == 1 and needed > self.cache.limit:
                self.tell(
                    f"features of all images take {needed / 1e9:.1f} GB and the cache may take "
                    f"{self.cache.limit / 1e9:.1f} GB: the rest is computed anew in every epoch; "
                    "--cache-limit gives it more"
                )
        return entry
