"""Good images of several categories, a few of one beside each other: what RegAD learns from."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offnominal.datasets.synthetic import LOOKS, draw_good
from offnominal.training.augment import augmented

__all__ = ["PER_LOOK", "Pair", "Pairs", "made_category"]

PER_LOOK = 24  # images of a made category
_KEPT = 0.6  # of a look's sides, at least


class Pair(NamedTuple):
    """The images of a step, of one category, on [0, 1].

    Attributes
    ----------
    queries : Tensor of shape (B, 3, side, side), float32
    supports : Tensor of shape (B, k, 3, side, side), float32
        For each query some others of its category.
    """

    queries: Tensor
    supports: Tensor


class Pairs:
    """Batches of queries of one category each, with their supports; categories in any order.

    Parameters
    ----------
    stored : uint8 array of shape (n, 3, side, side)
    categories : sequence of sequences of int
        Which of them belong together.
    shots : int
        Supports of a query, drawn from the rest of its category.
    augment : list of str
        What happens to each image by itself; names of
        :data:`~offnominal.training.augment.AUGMENTATIONS`.
    device : torch.device
    """

    def __init__(
        self,
        stored: NDArray[np.uint8],
        categories: Sequence[Sequence[int]],
        shots: int,
        augment: list[str],
        device: torch.device,
    ) -> None:
        self._stored, self.device = stored, device
        self._categories = [torch.tensor(each) for each in categories]
        self._shots, self._augment = shots, augment

    def __len__(self) -> int:
        return sum(map(len, self._categories))

    def plan(self, size: int, generator: torch.Generator) -> list[Tensor]:
        """Numbers (B, 1 + k) of each step: of a query, and of its supports.

        What is left over of a category waits for another round.
        """
        steps = []
        for numbers in self._categories:
            order = torch.randperm(len(numbers), generator=generator)
            batch = min(size, len(numbers))
            for queries in torch.split(order[: len(order) // batch * batch], batch):
                rows = []
                for query in queries.tolist():
                    others = torch.randperm(len(numbers) - 1, generator=generator)[: self._shots]
                    rows.append(torch.tensor([query, *(others + (others >= query)).tolist()]))
                steps.append(numbers[torch.stack(rows)])
        return [steps[n] for n in torch.randperm(len(steps), generator=generator).tolist()]

    def load(self, planned: Tensor) -> Pair:
        """The images of a step."""
        stored = torch.from_numpy(self._stored[planned.flatten().numpy()])
        pixels = augmented(stored, self._augment).to(self.device).float() / 255
        pixels = pixels.reshape(*planned.shape, *pixels.shape[1:])
        return Pair(pixels[:, 0], pixels[:, 1:])


def made_category(number: int, seed: int, count: int = PER_LOOK) -> list[NDArray[np.uint8]]:
    """Images, uint8 (H, W, 3), of a category that is made up.

    It is one of the synthetic looks, of which one part is cut out, flipped and given other
    colours, the same in all images; in how they lie and are lit they differ as the look's do.
    """
    rng = np.random.default_rng([seed, number])
    look = LOOKS[number % len(LOOKS)]
    share, top, left = rng.uniform(_KEPT, 1), rng.uniform(), rng.uniform()
    flips = tuple(axis for axis in (0, 1) if rng.uniform() < 0.5)
    mix = 0.5 * np.eye(3) + 0.5 * rng.dirichlet(np.ones(3), 3)
    found = []
    for index in range(count):
        image = draw_good(look, seed + number, index)
        height, width = image.shape[:2]
        above, before = int((1 - share) * height * top), int((1 - share) * width * left)
        cut = image[above : above + int(share * height), before : before + int(share * width)]
        found.append(np.asarray(cv2.transform(np.flip(cut, flips), mix), np.uint8))
    return found
