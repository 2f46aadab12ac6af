"""SPADE: the most similar references, then correspondences of feature pyramids.

Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020
(arXiv 2005.02357).
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from offnominal.backbones.base import Levels
from offnominal.detectors.base import Progress, Scored, Size
from offnominal.detectors.common import CommonOptions, evenly
from offnominal.detectors.dn2 import neighbour_distance
from offnominal.detectors.whole import LevelsDetector
from offnominal.errors import OptionError
from offnominal.scoring import check_aggregate

__all__ = ["SPADE", "correspond"]

_NEIGHBOURS = "neighbours"  # the aggregate that takes the distance of the retrieval
# Bytes of the distances that are held at once: what stays near a core's cache, since ranking them
# takes several passes.
_BLOCK = 4 * 2**20


class SPADE(LevelsDetector):
    """Nearest references by one vector an image, and nearest features among theirs for each patch.

    First the K references nearest to the image are retrieved by the mean of the network's last
    level; the mean squared distance to them is the image score (section 3.2), the same as
    :class:`~offnominal.detectors.dn2.DN2`'s. Then every position's features, the other levels
    joined (section 3.4), are compared with those at all positions of the retrieved references; the
    mean squared distance to the nearest ``correspondences`` of them is the patch score (3.3).

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
        0: every reference is scored to set the threshold. A number: at most so many, evenly spread.
    **common
        See :class:`~offnominal.detectors.whole.LevelsDetector`. The paper's network is
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
    >>> from offnominal.detectors.spade import SPADE
    >>> detector = SPADE(backbone="resnet18").fit(["good/0.png", "good/1.png", "good/2.png"])
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.score, prediction.is_anomalous, prediction.regions()
    """

    method: ClassVar[str] = "spade"
    default_backbone: ClassVar[str] = "wide_resnet50_2"
    # A residual network's stages 1 to 3 for the pyramid, and the last for the vector.
    default_layers: ClassVar[tuple[int, ...]] = (-4, -3, -2, -1)

    vectors_: Tensor
    pyramids_: Tensor

    def __init__(
        self,
        neighbours: int = 50,
        correspondences: int = 1,
        aggregate: str = _NEIGHBOURS,
        calibrate_on: int = 0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        if neighbours < 1:
            raise OptionError(f"--neighbours {neighbours}: give 1 or more")
        if correspondences < 1:
            raise OptionError(f"correspondences {correspondences}: give 1 or more")
        if calibrate_on < 0:
            raise OptionError(f"calibrate_on {calibrate_on}: give 0 (all) or more")
        if aggregate != _NEIGHBOURS:
            check_aggregate(aggregate)
        self.neighbours = neighbours
        self.correspondences = correspondences
        self.aggregate = aggregate
        self.calibrate_on = calibrate_on
        self.shapes_: list[list[list[int]]] = []
        self.register_buffer("vectors_", torch.empty(0, 1))
        self.register_buffer("pyramids_", torch.empty(0))

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor."""
        return super().extra_state() | {"shapes_": self.shapes_}

    @property
    def promises(self) -> bool:
        """Of the image score always; of the map while every reference is retrieved."""
        return len(self.vectors_) <= self.neighbours

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.load_network()
        self.shapes_ = []
        vectors: list[Tensor] = []
        pieces: list[Tensor] = []
        sizes: list[tuple[int, int]] = []
        for index, image in images:
            pyramid, vector = _split(self.levels(self.views(image).pixels[0][None]))
            vectors.append(vector)
            pieces.append(torch.cat([level.flatten() for level in pyramid]))
            self.shapes_.append([list(level.shape[1:]) for level in pyramid])
            sizes.append((image.shape[0], image.shape[1]))
            if progress:
                progress("features", index + 1)
        if not vectors:
            return
        self.vectors_ = torch.cat(vectors)
        self.pyramids_ = _joined(pieces)
        if len(sizes) < 2:
            return
        scored: list[Scored] = []
        for index in evenly(range(len(sizes)), self.calibrate_on):
            own = self._pyramid(index), self.vectors_[index : index + 1]
            scores, distance = self._compare(*own, skip=index)
            scored.append(Scored(scores, sizes[index], None, distance))
            if progress:
                progress("threshold", len(scored))
        self._set_good(scored, "leave-one-out")

    def _pyramid(self, index: int) -> list[Tensor]:
        """Levels (1, C, h, w) of a reference, the finest first."""
        lengths = [[c * h * w for c, h, w in shapes] for shapes in self.shapes_[: index + 1]]
        start = sum(sum(each) for each in lengths[:-1])
        own = torch.split(self.pyramids_[start : start + sum(lengths[-1])], lengths[-1])
        return [
            part.reshape(1, *shape) for part, shape in zip(own, self.shapes_[index], strict=True)
        ]

    def _compare(
        self,
        pyramid: list[Tensor],
        vector: Tensor,
        skip: int | None = None,
    ) -> tuple[Tensor, float]:
        """Patch scores (gh, gw) of an image, and the distance of its retrieval."""
        distance, order = neighbour_distance(self.vectors_, vector, self.neighbours, skip)
        retrieved = order[0, : self.neighbours].tolist()
        gallery = (self._pyramid(index) for index in retrieved)
        scores = correspond(pyramid, gallery, self.correspondences)
        return scores, float(distance)

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        return torch.stack([self._score_view(one)[0] for one in pixels])

    def _score_view(self, pixels: Tensor) -> tuple[Tensor, float | None]:
        return self._compare(*_split(self.levels(pixels[None])))

    def forward(self, pixels: Tensor, size: Size | None = None) -> tuple[Tensor, Tensor]:
        """Image scores and patch scores; see :meth:`Detector.forward`."""
        found = [self._score_view(one) for one in pixels]
        seen = size or (pixels.shape[-2], pixels.shape[-1])
        scores = [self._image_score(grid, seen, None, distance) for grid, distance in found]
        return torch.stack(scores), torch.stack([grid for grid, _ in found])

    def _image_score(
        self,
        patch_scores: Tensor,
        size: Size,
        cover: Size | None = None,
        image_term: float | None = None,
    ) -> Tensor:
        if self.aggregate == _NEIGHBOURS:
            return patch_scores.new_tensor(image_term)
        return super()._image_score(patch_scores, size, cover)


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


def _split(levels: Levels) -> tuple[list[Tensor], Tensor]:
    """Pyramid and vector: the last level gives the vector, and a single one gives both."""
    return levels.maps[:-1] or levels.maps, levels.summary


def _joined(pieces: list[Tensor]) -> Tensor:
    """One tensor of all pieces, which are let go as it fills, so that a CPU needs no room twice."""
    whole = pieces[0].new_empty(sum(len(piece) for piece in pieces))
    end = len(whole)
    while pieces:
        piece = pieces.pop()
        whole[end - len(piece) : end] = piece
        end -= len(piece)
    return whole
