"""Images to train on, all of one size, kept on disk so that thousands need no memory."""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offnominal.errors import OptionError
from offnominal.training.augment import augmented, augmented_alike
from offnominal.training.labels import Labels

__all__ = ["Batch", "Batches", "FrozenCache", "ImageStore", "Images", "Triple"]

Triple = tuple[float, float, float]


class Batch(NamedTuple):
    """The images of a step.

    Attributes
    ----------
    images : Tensor of shape (B, 3, h, w), uint8, or (B, 6, h, w), float32, of scans
        Augmented.
    pixels : Tensor of shape (B, C, h, w), float32
        The same, normalised, on the device; points as they are.
    numbers : Tensor of shape (B,), int64
        Their places among the images that are trained on.
    rng : numpy.random.Generator
        Of this step.
    labels, targets, kinds, instances, instance_kinds
        See :class:`~offnominal.training.labels.Known`; on the device. None where a method learns
        from good images alone.
    """

    images: Tensor
    pixels: Tensor
    numbers: Tensor
    rng: np.random.Generator
    labels: Tensor | None = None
    targets: Tensor | None = None
    kinds: Tensor | None = None
    instances: Tensor | None = None
    instance_kinds: tuple[tuple[int, ...], ...] = ()


class Images:
    """Some images of a store, in order.

    Parameters
    ----------
    stored : uint8 array of shape (n, 3, h, w), or float32 of shape (n, 6, h, w) of scans
    numbers : sequence of int
        Which of them.
    mean, std : three floats
        How pixels on [0, 1] are shifted and scaled.
    device : torch.device
    """

    def __init__(
        self,
        stored: NDArray[Any],
        numbers: Sequence[int],
        mean: Triple,
        std: Triple,
        device: torch.device,
    ) -> None:
        self._stored, self.numbers = stored, list(numbers)
        self.mean, self.std, self.device = mean, std, device

    def __len__(self) -> int:
        return len(self.numbers)

    def some(self, places: Sequence[int]) -> "Images":
        """Those at some places."""
        chosen = [self.numbers[place] for place in places]
        return Images(self._stored, chosen, self.mean, self.std, self.device)

    def uint8(self, places: Sequence[int]) -> Tensor:
        """Images (B, 3, h, w), uint8, on the CPU; of scans as they are stored."""
        return torch.from_numpy(self._stored[[self.numbers[place] for place in places]])

    def pixels(self, places: Sequence[int]) -> Tensor:
        """The same, float32, normalised, on the device."""
        return self.normalised(self.uint8(places))

    def normalised(self, images: Tensor) -> Tensor:
        """Images as a network takes them: the three channels of colour are shifted and scaled."""
        mean = torch.tensor(self.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.std, device=self.device)[:, None, None]
        moved = images.to(self.device).float()
        colour = (moved[:, :3] / 255 - mean) / std
        return colour if moved.shape[1] == 3 else torch.cat([colour, moved[:, 3:]], 1)

    def batches(self, size: int = 8) -> Iterator[Tensor]:
        """All of them, normalised, in order."""
        for start in range(0, len(self), size):
            yield self.pixels(range(start, min(start + size, len(self))))


class Batches:
    """Images in full batches, shuffled anew in each round; what is left over waits for another.

    Parameters
    ----------
    images : Images
        With ``labels`` the good ones first.
    size : int
        Of a batch.
    augment : list of str
        Names of :data:`~offnominal.training.augment.AUGMENTATIONS`.
    labels : Labels or None
        Of the last of the images, which are defective; None: all are good.
    share : float
        Of a batch that is defective: one image or more, and not all. A round is one through the
        good images; the defective ones come in rounds of their own.
    """

    def __init__(
        self,
        images: Images,
        size: int,
        augment: list[str],
        labels: Labels | None = None,
        share: float = 0.5,
    ) -> None:
        self._images, self._size, self._augment = images, size, augment
        self._labels, self._share = labels, share
        self._good = len(images) - (len(labels) if labels else 0)

    def __len__(self) -> int:
        return len(self._images)

    def move(self, device: torch.device) -> None:
        """Prepare pixels on another device."""
        self._images.device = device

    def plan(self, size: int, generator: torch.Generator) -> list[Tensor]:
        """Numbers of the images of each step."""
        order = torch.randperm(self._good, generator=generator)
        if not self._labels:
            return list(torch.split(order[: self._good // size * size], size))
        bad = min(max(1, round(self._share * size)), size - 1)
        good = min(size - bad, self._good)
        steps = self._good // good
        turns = -(-steps * bad // len(self._labels))
        rounds = [torch.randperm(len(self._labels), generator=generator) for _ in range(turns)]
        defects = torch.split(self._good + torch.cat(rounds)[: steps * bad], bad)
        chosen = torch.split(order[: steps * good], good)
        return [torch.cat(both) for both in zip(chosen, defects, strict=True)]

    def load(self, planned: Tensor) -> Batch:
        """The batch of a step."""
        images = self._images.uint8(planned.tolist())
        if not self._labels:
            images = augmented(images, self._augment)
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
            return Batch(images, self._images.normalised(images), planned, rng)
        known = self._labels.known(planned.tolist(), self._good)
        masks = torch.stack([known.targets, known.instances], 1)
        images, masks = augmented_alike(images, masks, self._augment)
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        device = self._images.device
        targets, instances = masks.to(device).unbind(1)
        told = known.labels.to(device), targets, known.kinds.to(device), instances
        pixels = self._images.normalised(images)
        return Batch(images, pixels, planned, rng, *told, known.instance_kinds)

    def endless(self) -> Iterator[Batch]:
        """Batches to try, round after round."""
        generator = torch.Generator().manual_seed(0)
        while True:
            yield from map(self.load, self.plan(self._size, generator))


class ImageStore:
    """Images of one size on their way to the disk; a temporary file that goes with the object."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="offnominal-")  # noqa: SIM115
        self._shape: tuple[int, ...] = ()
        self._type = np.dtype(np.uint8)
        self.count = 0

    def add(self, image: NDArray[Any]) -> None:
        """Append an image (C, h, w), of the shape and type of those before.

        Raises
        ------
        OptionError
            If the disk is full.
        """
        self._shape, self._type = image.shape, image.dtype
        try:
            self._file.write(np.ascontiguousarray(image).tobytes())
        except OSError as error:
            raise no_room(error) from error
        self.count += 1

    def array(self) -> NDArray[Any]:
        """All of them, (n, C, h, w)."""
        try:
            self._file.flush()
        except OSError as error:
            raise no_room(error) from error
        return np.memmap(self._file, self._type, "r", shape=(self.count, *self._shape))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class FrozenCache:
    """What a frozen network gives of images that nothing random has changed, kept on disk.

    Parameters
    ----------
    count : int
        How many images there are.
    """

    def __init__(self, count: int) -> None:
        self._known = np.zeros(count, bool)
        self._kept: list[NDArray[np.float32]] = []

    def missing(self, numbers: Tensor) -> Tensor:
        """Which of some images, by their places in the list, are not there yet."""
        return torch.from_numpy(np.flatnonzero(~self._known[numbers.numpy()]))

    def put(self, numbers: Tensor, found: Sequence[Tensor]) -> bool:
        """Keep what belongs to some images, one row each; False if there is no room for all."""
        if not self._kept:
            shapes = [(len(self._known), *each.shape[1:]) for each in found]
            needed = 4 * sum(math.prod(shape) for shape in shapes)
            if shutil.disk_usage(tempfile.gettempdir()).free < needed * 1.1:
                return False
            for shape in shapes:
                with tempfile.TemporaryFile(prefix="offnominal-") as file:
                    # The map holds what it needs.
                    self._kept.append(np.memmap(file, np.float32, "w+", shape=shape))
        for array, each in zip(self._kept, found, strict=True):
            array[numbers.numpy()] = each.float().cpu().numpy()
        self._known[numbers.numpy()] = True
        return True

    def get(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """What belongs to some images."""
        return tuple(torch.from_numpy(array[numbers.numpy()]) for array in self._kept)


def no_room(error: OSError) -> OptionError:
    """The error of a temporary file that cannot be written."""
    return OptionError(
        f"{tempfile.gettempdir()}: no room for the images to train on ({error.strerror or error}); "
        "make some, or set TMPDIR to a folder on another disk"
    )
