"""What is known of the defective images that a training learns from, prepared as the images are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Known", "Labels"]


class Known(NamedTuple):
    """What is known of the images of a batch.

    Attributes
    ----------
    labels : Tensor of shape (B,), int64
        1 for a defective image.
    targets : Tensor of shape (B, h, w), uint8
        0 good, 1 defective, 255 not known.
    kinds : Tensor of shape (B, K), float32
        1 for each class of an image's defects, 255 for those that it may have as well; zeros for a
        good one.
    instances : Tensor of shape (B, h, w), uint8
        Place of the mark that a pixel belongs to, from 1; 0 for none.
    instance_kinds : tuple of tuple of int
        For each image the class of each of its marks, in their order; -1 where it may be any.
    """

    labels: Tensor
    targets: Tensor
    kinds: Tensor
    instances: Tensor
    instance_kinds: tuple[tuple[int, ...], ...]


class Labels:
    """Of images that are stored together, the good ones first.

    Parameters
    ----------
    targets, instances : uint8 arrays of shape (m, h, w)
        Of the defective ones; see :class:`Known`.
    kinds : float32 array of shape (m, K)
    instance_kinds : sequence of tuple of int
    """

    def __init__(
        self,
        targets: NDArray[np.uint8],
        instances: NDArray[np.uint8],
        kinds: NDArray[np.float32],
        instance_kinds: Sequence[tuple[int, ...]],
    ) -> None:
        self.targets, self.instances = targets, instances
        self.kinds, self.instance_kinds = kinds, list(instance_kinds)

    def __len__(self) -> int:
        return len(self.targets)

    def known(self, numbers: Sequence[int], good: int) -> Known:
        """What is known of some images, by their numbers, of which the first ones are good."""
        side = self.targets.shape[1:]
        targets = np.zeros((len(numbers), *side), np.uint8)
        instances = np.zeros_like(targets)
        kinds = np.zeros((len(numbers), self.kinds.shape[1]), np.float32)
        of_marks: list[tuple[int, ...]] = []
        for place, number in enumerate(numbers):
            of_marks.append(() if number < good else self.instance_kinds[number - good])
            if number >= good:
                targets[place] = self.targets[number - good]
                instances[place] = self.instances[number - good]
                kinds[place] = self.kinds[number - good]
        labels = torch.tensor([int(number >= good) for number in numbers])
        a, b, c = (torch.from_numpy(each) for each in (targets, kinds, instances))
        return Known(labels, a, b, c, tuple(of_marks))
