"""Patch SVDD: patches that lie close together are mapped close together, and compared with all.

Yi and Yoon, "Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation", ACCV 2020
(arXiv 2006.16067).
"""

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam, Optimizer

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.one_class.patch_tasks import (
    DIM,
    LARGE,
    SMALL,
    Directions,
    PatchEncoder,
    PositionClassifier,
    neighbours,
    pair_losses,
    twins,
)
from offnominal.detectors.trained import TrainedDetector
from offnominal.errors import OptionError
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images

__all__ = ["PatchSVDD", "nearest", "spread"]

_STRIDE = 16  # of the large patches


def nearest(queries: Tensor, rows: Tensor) -> Tensor:
    """Distances (Q,) of vectors (Q, D) to the nearest of others (N, D)."""
    queries, squares = queries.float(), rows.square().sum(1)
    with torch.autocast(rows.device.type, enabled=False):
        found = [(squares - 2 * part @ rows.T).argmin(1) for part in torch.split(queries, 512)]
    # By differences: a small distance is lost in the rounding of products.
    distances: Tensor = torch.linalg.vector_norm(queries - rows[torch.cat(found)], dim=1)
    return distances


def spread(distances: Tensor, side: int, stride: int) -> Tensor:
    """Give each pixel the mean of the patches that hold it: (gh, gw) -> (h, w)."""
    kernel = distances.new_ones(1, 1, side, side)
    both = torch.stack([distances, torch.ones_like(distances)])[:, None]
    total, count = F.conv_transpose2d(both, kernel, stride=stride)[:, 0]
    mean: Tensor = total / count
    return mean


class PatchSVDD(TrainedDetector):
    """Nearest neighbours of patch embeddings that learned what lies close together.

    An encoder is trained from scratch, on the good images alone, by two tasks: to tell in which
    direction a patch's neighbour lies, and to give almost the same patch almost the same vector.
    Each patch of a new image is compared with those of the good images; a pixel's score is the mean
    distance of the patches that hold it, of 64 pixels times of 32 (section 3.4).

    Parameters
    ----------
    embedding_weight : float
        Lambda, the weight of the second task, 0 or more; 1 in the released code, whose example has
        0.001. The paper chooses it for each category.
    directions : {"trained", "fixed"}
        See :class:`PositionClassifier`.
    stride : {2, 4, 8, 16}
        Pixels from a small patch to the next; 4 in the paper. From a large one it is 16.
    rows : int
        Most patches of either size that are kept, drawn at random where the good images have more;
        the paper keeps all.
    resolution : int
        A multiple of 32, at least 96; 256 as in the paper.
    **options
        See :class:`~offnominal.detectors.trained.TrainedDetector`.
    """

    method: ClassVar[str] = "patch-svdd"
    schedule: ClassVar[Schedule] = Schedule(batch=64, steps=800, paper_epochs=30_000)
    side_multiple: ClassVar[int] = 32
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(
        self,
        embedding_weight: float = 1.0,
        directions: Directions = "trained",
        stride: int = 4,
        rows: int = 50_000,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("embedding_weight", embedding_weight, least=0)
        check_choice("directions", directions, Directions)
        check_range("rows", rows, least=1, most=10**8, whole=True)
        check_choice("stride", stride, (2, 4, 8, 16))
        if self.side < 96:
            raise OptionError(f"--resolution {self.side}: patch-svdd takes 96 or more")
        self.embedding_weight = embedding_weight
        self.directions: Directions = directions
        self.stride = stride
        self.rows = rows

    def build(self) -> None:
        """Encoder and classifiers; the latter are not saved, as their name begins with _."""
        self.encoder = PatchEncoder()
        self._of_large = PositionClassifier(self.directions)
        self._of_small = PositionClassifier(self.directions)
        self.mean_image_ = torch.empty(0)
        self.large_ = torch.empty(0, DIM)
        self.small_ = torch.empty(0, DIM)

    def optimisers(self) -> list[Optimizer]:
        """Adam at a constant rate."""
        return [Adam([p for p in self.parameters() if p.requires_grad], lr=1e-4)]

    def prepare(self, images: Images) -> None:
        """The mean image, which all are seen without."""
        total = sum((pixels.sum(0) for pixels in images.batches()), torch.zeros(()))
        self.mean_image_ = total / len(images)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Both tasks on one pair of patches of either size from each image."""
        parts: dict[str, Tensor] = {}
        total = batch.pixels.new_zeros(())
        pixels, count = batch.pixels - self.mean_image_, len(batch.pixels)
        for side, classifier in ((LARGE, self._of_large), (SMALL, self._of_small)):
            room = self.side - side
            close = twins(batch.rng, count, room, side)
            around = neighbours(batch.rng, count, room, side)
            told = (self.encoder, classifier, pixels, side, close, around)
            position, embedding = pair_losses(*told)
            parts |= {f"position {side}": position, f"embedding {side}": embedding}
            total = total + position + self.embedding_weight * embedding
        return {"total": total, **parts}

    def settle(self, images: Images) -> None:
        """Keep patches, as many of each image."""
        draw, each = np.random.default_rng(self.seed), max(1, self.rows // len(images))
        large: list[Tensor] = []
        small: list[Tensor] = []
        for pixels in images.batches(1):
            for kept, grid in zip((large, small), self.embeddings(pixels), strict=True):
                rows = grid.flatten(0, 2)
                chosen = draw.choice(len(rows), min(len(rows), each), replace=False)
                kept.append(rows[np.sort(chosen)])
        self.large_, self.small_ = torch.cat(large), torch.cat(small)

    def embeddings(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of all large and all small patches of images (B, 3, h, w): (B, gh, gw, 64) each."""
        large, small = self.encoder.grids(pixels - self.mean_image_, (_STRIDE, self.stride))
        return large.movedim(1, -1), small.movedim(1, -1)

    def exportable(self) -> str | None:
        """Why not."""
        return (
            "its patches lie so close together that the rounding of another engine decides between "
            "them; use simplenet, or run it with Python"
        )

    def compare(self, pixels: Tensor) -> ViewScores:
        """The product of both sizes' maps, as fine as the image; the score is its maximum."""
        maps = []
        for side, stride, rows, grid in zip(
            (LARGE, SMALL), (_STRIDE, self.stride), (self.large_, self.small_),
            self.embeddings(pixels), strict=True,
        ):  # fmt: skip
            distances = nearest(grid.flatten(0, 2), rows).reshape(grid.shape[1:3])
            maps.append(spread(distances, side, stride))
        return ViewScores(maps[0] * maps[1])
