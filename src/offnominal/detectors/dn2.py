"""DN2: nearest neighbours of one vector an image, the plain baseline.

Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020 (arXiv 2002.10445).
"""

from collections.abc import Iterator
from typing import ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from offnominal.detectors.base import Progress, Scored
from offnominal.detectors.common import CommonOptions
from offnominal.detectors.whole import LevelsDetector
from offnominal.errors import OptionError
from offnominal.scoring import check_aggregate

__all__ = ["DN2", "neighbour_distance"]


def neighbour_distance(
    vectors: Tensor, queries: Tensor, neighbours: int, skip: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mean squared Euclidean distance to the nearest references, and the order of all of them.

    ``1/k * sum over the k nearest f of |f - f_y|^2`` (Bergman et al., 2020, section 3; the same in
    Cohen and Hoshen, 2020, section 3.2).

    Parameters
    ----------
    vectors : Tensor of shape (N, D), float32
        One row a reference.
    queries : Tensor of shape (Q, D), float32
    neighbours : int
        k. Where it exceeds N - 1, that number is used: a reference has no more others to be
        compared with, and by one rule for both its score against the others is never below the one
        against all.
    skip : int or None
        Number of the reference that is left out.

    Returns
    -------
    distance : Tensor of shape (Q,), float32
    order : Tensor of shape (Q, N) or, without the one left out, (Q, N - 1), int64
        Numbers of the references, the nearest first.
    """
    # Differences rather than products: a copy is at 0, not at what rounding leaves.
    exact = "donot_use_mm_for_euclid_dist"
    squared = torch.cdist(queries, vectors, compute_mode=exact).square()
    used = max(1, min(neighbours, len(vectors) - 1))
    if skip is not None:
        squared[:, skip] = torch.inf
    nearest, order = squared.sort(dim=1, stable=True)
    left = len(vectors) - (skip is not None)
    return nearest[:, :used].mean(1), order[:, :left]


class DN2(LevelsDetector):
    """An image's distance to its nearest references, by one vector each.

    The vector is the mean of the network's last level (the class token of a transformer that has
    one), as it is, without normalisation.

    Nothing is said of where a fault lies: the grid has one patch, the map is the image score at
    every pixel, and a rejected image is one region. The method is a baseline; whatever looks at
    patches should beat it.

    Memory: one vector a reference (8 kB with ResNet-101), beside the network.

    Parameters
    ----------
    neighbours : int
        How many references the distance is averaged over, 2 in the paper; at most the number of
        references less one, and at least 1.
    aggregate : str
        Makes no difference, since the map is constant; every method has it.
    **common
        See :class:`~offnominal.detectors.whole.LevelsDetector`. The paper's network is ResNet-101.

    Examples
    --------
    >>> from offnominal.detectors.dn2 import DN2
    >>> detector = DN2(backbone="resnet18").fit(["good/0.png", "good/1.png", "good/2.png"])
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.score, prediction.is_anomalous
    """

    vectors_: Tensor

    method: ClassVar[str] = "dn2"
    default_backbone: ClassVar[str] = "resnet101.tv_in1k"
    default_layers: ClassVar[tuple[int, ...]] = (-1,)

    def __init__(
        self, neighbours: int = 2, aggregate: str = "max", **common: Unpack[CommonOptions]
    ) -> None:
        super().__init__(**common)
        if neighbours < 1:
            raise OptionError(f"--neighbours {neighbours}: give 1 or more")
        check_aggregate(aggregate)
        self.neighbours = neighbours
        self.aggregate = aggregate
        self.register_buffer("vectors_", torch.empty(0, 1))

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.load_network()
        vectors: list[Tensor] = []
        sizes: list[tuple[int, int]] = []
        for index, image in images:
            vectors.append(self.levels(self.views(image).pixels[0][None]).summary)
            sizes.append((image.shape[0], image.shape[1]))
            if progress:
                progress("features", index + 1)
        if not vectors:
            return
        self.vectors_ = torch.cat(vectors)
        if len(vectors) < 2:
            return
        scored: list[Scored] = []
        for index, size in enumerate(sizes):
            grid = self._grid(self.vectors_[index : index + 1], skip=index)
            scored.append(Scored(grid[0], size, None))
        self._set_good(scored, "leave-one-out")

    def _grid(self, summary: Tensor, skip: int | None = None) -> Tensor:
        """The distance as a grid of one patch, (B, 1, 1)."""
        distance, _ = neighbour_distance(self.vectors_, summary, self.neighbours, skip)
        return distance[:, None, None]

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        return self._grid(self.levels(pixels).summary)
