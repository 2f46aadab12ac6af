"""SPADE: the most similar references, then correspondences of feature pyramids.

Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020
(arXiv 2005.02357).
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offnominal.checks import check_range
from offnominal.detectors.features import FeatureDetector, ViewScores
from offnominal.detectors.joining import joined_levels
from offnominal.detectors.learned_state import must
from offnominal.detectors.memory_bank.dn2 import neighbour_distance
from offnominal.detectors.options import LeaveOneOut, Progress
from offnominal.scoring import Scores

__all__ = ["SPADE", "correspond"]

# Bytes of the distances that are held at once: what stays near a core's cache, since ranking them
# takes several passes.
_BLOCK = 4 * 2**20


class SPADE(FeatureDetector):
    """Nearest references by one vector an image, and nearest features among theirs for each patch.

    First the K references nearest to the image are retrieved by the mean of the network's last
    level; the mean squared distance to them is the image score (section 3.2), the same as
    :class:`~offnominal.detectors.memory_bank.dn2.DN2`'s. Then every position's features, the other
    levels joined (section 3.4), are compared with those at all positions of the retrieved
    references; the mean squared distance to the nearest ``correspondences`` of them is the patch
    score (3.3).

    Parameters
    ----------
    neighbours : int
        K, 50 in the paper. With no more references than that all of them are searched for
        correspondences, and the image score is the mean over the nearest of all but one of them.
    correspondences : int
        Kappa, 1 in the paper.
    aggregate : str
        ``neighbours``: the image score of the paper. Otherwise a statistic of the map, as for every
        method: ``map-max``, ``max``, ``top1``...
    calibrate_on : int
        0: every reference is scored to set the threshold. A number: at most so many, drawn at
        random.
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`. The paper's network is
        WideResNet-50-2. The last of the ``layers`` gives the vector, the others the pyramid; a
        single level gives both.

    Notes
    -----
    Memory: the pyramids of all references, levels as the network gives them. WideResNet-50-2 at
    224 pixels takes 5.6 MB a reference, in memory and on disk; a search adds about 200 MB at most
    at that size. Time grows with K, with the square of the number of positions, and with the
    channels: 6 GFLOP a retrieved reference for that network.

    To set the threshold each reference is scored against the others. The image score, and with at
    most K references the map too, is never below the one against all of them, so the promise
    holds. With more, the map's threshold is that of one reference fewer, not a bound.

    Examples
    --------
    >>> from offnominal import SPADE
    >>> detector = SPADE(backbone="resnet18").fit(["good/0.png", "good/1.png", "good/2.png"])
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.score, prediction.is_anomalous, prediction.regions()
    """

    method: ClassVar[str] = "spade"
    takes_defects: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    default_backbone: ClassVar[str] = "wide_resnet50_2"
    # A residual network's stages 1 to 3 for the pyramid, and the last for the vector.
    default_layers: ClassVar[tuple[int, ...] | None] = (-4, -3, -2, -1)
    default_resolutions: ClassVar[Mapping[str, int]] = {
        "resnet": 224,
        "wide_resnet": 224,
    }  # see DN2
    takes_tiles: ClassVar[bool] = False
    own_score: ClassVar[str | None] = "neighbours"

    def __init__(
        self,
        neighbours: int = 50,
        correspondences: int = 1,
        aggregate: str = "neighbours",
        calibrate_on: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        check_range("neighbours", neighbours, whole=True, least=1)
        check_range("correspondences", correspondences, whole=True, least=1)
        check_range("calibrate_on", calibrate_on, whole=True, least=0)
        self.neighbours = neighbours
        self.correspondences = correspondences
        self.calibrate_on = calibrate_on
        self.begin()

    def begin(self) -> None:
        """No reference yet."""
        super().begin()
        self.vectors_ = torch.empty(0, 1)
        self.pyramids_ = torch.empty(0)
        self.shapes_: list[list[list[int]]] = []
        self._learned: list[tuple[Tensor, Tensor]] = []

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Of the image score always exact; of the map while every reference is retrieved."""
        return "exact" if len(self.vectors_) <= self.neighbours else "approximate"

    def embed(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Pyramid and vector: the last level gives the vector, and a single one gives both."""
        maps, summary = self.levels(pixels[None])
        return maps[:-1] or maps, summary

    def patches_of(self, features: Any) -> Tensor:
        """The pyramid, joined on its finest grid."""
        return joined_levels(features[0], features[0][0].shape[-2:])

    def learn(self, number: int, image: np.ndarray) -> Any:
        """Take in one good image, whose pyramid is kept once, with all others."""
        super().learn(number, image)

    def learn_features(self, number: int, features: Any, view: int, upright: bool) -> None:
        """Keep pyramid and vector."""
        pyramid, vector = features
        self.shapes_.append([list(level.shape[1:]) for level in pyramid])
        self._learned.append((vector, torch.cat([level.flatten() for level in pyramid])))

    def finish(self, progress: Progress | None) -> None:
        """One tensor of all pyramids; each piece is let go as it fills, so that none is twice."""
        self.vectors_ = torch.cat([vector for vector, _ in self._learned])
        pieces = [piece for _, piece in self._learned]
        self._learned = []
        self.pyramids_ = pieces[0].new_empty(sum(len(piece) for piece in pieces))
        end = len(self.pyramids_)
        while pieces:
            piece = pieces.pop()
            self.pyramids_[end - len(piece) : end] = piece
            end -= len(piece)

    def check_learned(self) -> None:
        """Every reference has its vector and its pyramid."""
        super().check_learned()
        must(self.vectors_.ndim == 2 and len(self.vectors_) == len(self.references) > 0,
             "vectors_ are not one for each reference")  # fmt: skip
        must(len(self.shapes_) == len(self.references), "shapes_ are not one for each reference")
        levels = [level for one in self.shapes_ for level in one]
        must(all(self.shapes_) and all(len(level) == 3 and min(level) > 0 for level in levels),
             "shapes_ are none of levels")  # fmt: skip
        length = sum(c * h * w for c, h, w in levels)
        must(self.pyramids_.shape == (length,), "pyramids_ are not as long as shapes_ say")

    def score_reference(self, number: int, kept: Any) -> Scores:
        """Score a reference against the others."""
        features = self._pyramid(number), self.vectors_[number : number + 1]
        return super().score_reference(number, [features])

    def exportable(self) -> str | None:
        """Why not."""
        return (
            "it compares each image with the references that it finds for it, and no graph can "
            "choose among their feature pyramids; use dn2 or patchcore"
        )

    def compare(self, features: Any, without: int | None = None) -> ViewScores:
        """Retrieve the nearest references, and find each position's features among theirs."""
        pyramid, vector = features
        distance, order = neighbour_distance(self.vectors_, vector, self.neighbours, without)
        gallery = (self._pyramid(index) for index in order[0, : self.neighbours].tolist())
        return ViewScores(correspond(pyramid, gallery, self.correspondences), distance[0])

    def _pyramid(self, index: int) -> list[Tensor]:
        """Levels (1, C, h, w) of a reference, the finest first."""
        lengths = [[c * h * w for c, h, w in shapes] for shapes in self.shapes_[: index + 1]]
        start = sum(sum(each) for each in lengths[:-1])
        own = torch.split(self.pyramids_[start : start + sum(lengths[-1])], lengths[-1])
        return [
            part.reshape(1, *shape) for part, shape in zip(own, self.shapes_[index], strict=True)
        ]


def correspond(query: list[Tensor], gallery: Iterator[list[Tensor]], count: int = 1) -> Tensor:
    """Mean squared distance of every position to the nearest features of a gallery.

    The features of a position are those of all levels joined, each coarser vector repeated at the
    finer positions above it. A squared distance is then a sum over levels, so each level is
    compared once on its own grid.

    Parameters
    ----------
    query : list of Tensor of shape (1, C, h, w)
        A pyramid, the finest level first.
    gallery : iterator of pyramids
    count : int
        How many of the nearest; all, where there are no more.

    Returns
    -------
    Tensor of shape (gh, gw), float32, at the finest grid
    """
    height, width = query[0].shape[-2:]
    best: Tensor | None = None
    for pyramid in gallery:
        found = _nearest(query, pyramid, count)
        together = found if best is None else torch.cat([best, found], dim=1)
        best = together.topk(min(count, together.shape[1]), dim=1, largest=False).values
    assert best is not None
    return best.mean(1).reshape(height, width)


def _nearest(query: list[Tensor], pyramid: list[Tensor], count: int) -> Tensor:
    """Smallest squared distances (positions, count) of each position to those of one pyramid."""
    ours, theirs = [_rows(level) for level in query], [_rows(level) for level in pyramid]
    up = [_parents(query[0], level) for level in query]
    across = [_parents(pyramid[0], level) for level in pyramid]
    count = min(count, len(theirs[0]))
    coarse = [
        _ranking(a, b).index_select(1, columns)
        for a, b, columns in zip(ours[1:], theirs[1:], across[1:], strict=True)
    ]
    found = []
    step = max(1, _BLOCK // (4 * len(theirs[0])))
    for start in range(0, len(ours[0]), step):
        here = slice(start, start + step)
        ranking = _ranking(ours[0][here], theirs[0])
        for level, rows in zip(coarse, up[1:], strict=True):
            ranking += level.index_select(0, rows[here])
        # For a single one the minimum is several times faster.
        if count == 1:
            nearest = ranking.argmin(1, keepdim=True)
        else:
            nearest = ranking.topk(count, dim=1, largest=False).indices
        # Products lose digits where features are large and close, so they only choose.
        squared = [
            (a[rows[here]][:, None] - b[columns[nearest]]).square().sum(2)
            for a, b, rows, columns in zip(ours, theirs, up, across, strict=True)
        ]
        found.append(torch.stack(squared).sum(0))
    return torch.cat(found)


def _ranking(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n, m) but for what depends on the row of ``a`` alone."""
    return torch.addmm(b.square().sum(1)[None], a, b.T, alpha=-2)


def _rows(level: Tensor) -> Tensor:
    return level[0].flatten(1).T.contiguous()


def _parents(finest: Tensor, level: Tensor) -> Tensor:
    """For every position of the finest level, the one of a coarser level that lies over it."""
    (height, width), (rows, columns) = finest.shape[-2:], level.shape[-2:]
    y = torch.arange(height, device=level.device) * rows // height
    x = torch.arange(width, device=level.device) * columns // width
    return (y[:, None] * columns + x[None]).flatten()
