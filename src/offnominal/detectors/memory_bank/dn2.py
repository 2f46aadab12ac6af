"""DN2: nearest neighbours of one vector an image, the plain baseline.

Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020 (arXiv 2002.10445).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from offnominal.checks import check_range
from offnominal.detectors.features import FeatureDetector, ViewScores
from offnominal.detectors.learned_state import must
from offnominal.detectors.options import Progress

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


class DN2(FeatureDetector):
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
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`. The paper's network is
        ResNet-101, at 224 pixels as every residual network.

    Examples
    --------
    >>> from offnominal import DN2
    >>> detector = DN2(backbone="resnet18").fit(["good/0.png", "good/1.png", "good/2.png"])
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.score, prediction.is_anomalous
    """

    method: ClassVar[str] = "dn2"
    looks: ClassVar[bool] = True
    takes_defects: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    default_backbone: ClassVar[str] = "resnet101.tv_in1k"
    default_layers: ClassVar[tuple[int, ...] | None] = (-1,)
    # The papers of DN2, SPADE and PaDiM scale to 256 and look at the middle 224 pixels. A fault may
    # lie at the rim, so here the whole image is scaled to 224, which gives grids of their sizes.
    default_resolutions: ClassVar[Mapping[str, int]] = {"resnet": 224, "wide_resnet": 224}
    takes_tiles: ClassVar[bool] = False

    def __init__(self, neighbours: int = 2, aggregate: str = "max", **options: Any) -> None:
        super().__init__(aggregate=aggregate, **options)
        check_range("neighbours", neighbours, whole=True, least=1)
        self.neighbours = neighbours
        self.begin()

    def begin(self) -> None:
        """No reference yet."""
        super().begin()
        self.vectors_ = torch.empty(0, 1)
        self._learned: list[Tensor] = []

    def embed(self, pixels: Tensor) -> Tensor:
        """The image's vector, (1, D)."""
        return self.levels(pixels[None]).summary

    def patches_of(self, features: Tensor) -> Tensor:
        """The vector, as the one patch that there is."""
        return features.T[..., None]

    def learn_features(self, number: int, features: Tensor, view: int, upright: bool) -> None:
        """Keep the vector."""
        self._learned.append(features)

    def finish(self, progress: Progress | None) -> None:
        """One matrix of all vectors."""
        self.vectors_ = torch.cat(self._learned)
        self._learned = []

    def check_learned(self) -> None:
        """Every reference has its vector."""
        super().check_learned()
        must(self.vectors_.ndim == 2 and len(self.vectors_) == len(self.references) > 0,
             "vectors_ are not one for each reference")  # fmt: skip

    def exportable(self) -> str | None:
        """Why not; None: distances of vectors."""
        return None

    def compare(self, features: Tensor, without: int | None = None) -> ViewScores:
        """The distance, as a grid of one patch."""
        distance, _ = neighbour_distance(self.vectors_, features, self.neighbours, without)
        return ViewScores(distance[:, None])
