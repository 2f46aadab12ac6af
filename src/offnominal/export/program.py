"""What a detector computes of prepared pixels, as one module of tensors that can be exported.

Memory banks are searched in the graph by products, in blocks of rows that bound the memory; the
distances that count are those of differences, as the library's own search has them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.detectors.distribution.subspacead import SubspaceAD
from offnominal.detectors.features import FeatureDetector, ViewScores, tokens_of
from offnominal.detectors.joining import joined_levels
from offnominal.detectors.masked import MaskedFeatures
from offnominal.detectors.memory_bank.anomalydino import AnomalyDINO
from offnominal.detectors.memory_bank.dn2 import DN2
from offnominal.detectors.memory_bank.multilayer import MultiLayerNN
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.detectors.memory_bank.softpatch import SoftPatch
from offnominal.detectors.trainable import Trainable
from offnominal.errors import OptionError
from offnominal.memory import MemoryBank
from offnominal.tensors import to_numpy

__all__ = ["Program", "program"]

_RANKED = 2**24  # distances that stand in memory at once
_GROUP = 64  # rows whose nearest is looked for first: engines find a place slowly, a minimum fast
_FAR = 3e38  # squared distance of what fills the last group


class Program(nn.Module):
    """Pixels (1, 3, h, w) -> patches (gh, gw), and what else there is of it.

    That is image (1,), weight (1,), kinds (K,), the probabilities of classes of defects, and, where
    it knows defects on top, the features (D, gh, gw) that those are told by.

    Attributes
    ----------
    outputs : tuple of str
        Names of what comes out, in order: ``patches``, ``image``, ``weight``, ``kinds``,
        ``features``; known once it ran.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.outputs: tuple[str, ...] = ()
        self._detector = [detector]  # in a list: what it holds is no part of this module
        if isinstance(detector, nn.Module):
            self.trained = detector
        elif isinstance(detector, FeatureDetector):
            self.network = detector.torch_network()

    @property
    def detector(self) -> Any:
        """Whose program it is."""
        return self._detector[0]

    def scores(self, pixels: Tensor) -> ViewScores:
        """What the detector says of pixels (1, 3, h, w)."""
        found: ViewScores = self.detector.compare(self.embedded(pixels))
        return found

    def embedded(self, pixels: Tensor) -> Any:
        """What the detector compares of pixels (1, 3, h, w)."""
        self._embedded = self.detector.embed(pixels[0])
        return self._embedded

    def known_by(self, pixels: Tensor, grid: Sequence[int]) -> Tensor:
        """Features (D, *grid) that known defects are told by, of pixels that were scored."""
        found: Tensor = self.detector.patches_of(self._embedded)
        return found

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Only what there is, as :attr:`outputs` names it."""
        found = self.scores(pixels)
        named = {
            "patches": found.patches.float(),
            "image": None if found.image is None else found.image.float().reshape(1),
            "weight": None if found.weight is None else found.weight.float().reshape(1),
            "kinds": None if found.kinds is None else found.kinds.float(),
            "features": None,
        }
        if self.detector.known_defects is not None:
            named["features"] = self.known_by(pixels, found.patches.shape).float()
        self.outputs = tuple(name for name, value in named.items() if value is not None)
        return tuple(value for value in named.values() if value is not None)


class _Trained(Program):
    """A trained detector's."""

    def scores(self, pixels: Tensor) -> ViewScores:
        found: ViewScores = self.detector.condensed(self.detector.compare(pixels))
        return found

    def known_by(self, pixels: Tensor, grid: Sequence[int]) -> Tensor:
        return joined_levels(self.detector.known_by(pixels), grid)


class _Rows(nn.Module):
    """The active rows of a memory bank, in blocks."""

    def __init__(self, rows: np.ndarray, half: bool = False) -> None:
        super().__init__()
        self.halved = half
        every = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
        self.count = len(every)
        filler = -self.count % _GROUP
        norms = F.pad(every.square().sum(1), (0, filler), value=_FAR)
        every = F.pad(every, (0, 0, 0, filler))
        self.register_buffer("rows", every.half() if half else every)
        self.register_buffer("norms", norms)

    @classmethod
    def of(cls, bank: MemoryBank) -> "_Rows":
        """Those of a bank, but for forgotten references'."""
        return cls(_active(bank, bank.take(slice(None))), bank.storage == "fp16")

    def nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Squared distances (n, count), ascending, to the nearest rows; their numbers."""
        queries = queries.half().float() if self.halved else queries
        every, norms = self.get_buffer("rows").float(), self.get_buffer("norms")
        count = min(count, self.count)
        step = max(1, _RANKED // len(queries) // _GROUP) * _GROUP
        last = len(every) if count == 1 else self.count
        best: tuple[Tensor, Tensor] | None = None
        for start in range(0, last, step):
            here = slice(start, min(start + step, last))
            rows = every[here]
            ranking = F.linear(queries * -2, rows, norms[here])
            if count == 1:
                index = _lowest(ranking)
            else:
                index = ranking.topk(min(count, len(rows)), dim=1, largest=False).indices
            squared = (queries[:, None] - rows[index]).square().sum(2)
            found = squared, index + start
            best = found if best is None else _closest(best, found, count)
        assert best is not None
        return best

    def row(self, number: Tensor) -> Tensor:
        """A row (dim,)."""
        return self.get_buffer("rows")[number.reshape(1)][0].float()


def _lowest(ranking: Tensor) -> Tensor:
    """Place (n, 1) of the smallest value in each row (n, m), m being whole groups."""
    groups = ranking.reshape(len(ranking), -1, _GROUP)
    best = groups.amin(2).argmin(1, keepdim=True)
    own = groups.gather(1, best[:, :, None].expand(-1, 1, _GROUP))[:, 0]
    return best * _GROUP + own.argmin(1, keepdim=True)


def _closest(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], count: int
) -> tuple[Tensor, Tensor]:
    squared = torch.cat([first[0], second[0]], dim=1)
    near, place = squared.topk(min(count, squared.shape[1]), dim=1, largest=False)
    return near, torch.cat([first[1], second[1]], dim=1).gather(1, place)


def _active(bank: MemoryBank, column: Any) -> np.ndarray:
    gone = np.isin(to_numpy(bank.reference), list(bank.inactive))
    return to_numpy(column)[~gone]


class _AnomalyDINO(Program):
    """Distance to the nearest rows of normalised features."""

    def __init__(self, detector: AnomalyDINO) -> None:
        super().__init__(detector)
        self.bank = _Rows.of(detector.bank)
        self.cosine = detector.normalization == "l2"
        for name in ("centre_", "scale_"):
            self.register_buffer(name, torch.from_numpy(to_numpy(getattr(detector, name)).copy()))

    def scores(self, pixels: Tensor) -> ViewScores:
        return ViewScores(self.apart(self.embedded(pixels)))

    def apart(self, features: Tensor) -> Tensor:
        """Patch scores (gh, gw) of features (D, gh, gw)."""
        rows = tokens_of(features)
        if self.cosine:
            rows = F.normalize(rows, dim=-1)
        else:
            rows = (rows - self.get_buffer("centre_")) / self.get_buffer("scale_")
        squared, _ = self.bank.nearest(rows, self.detector.neighbours)
        scores = squared.mean(1) / 2 if self.cosine else squared.mean(1).sqrt()
        return scores.reshape(features.shape[1:])


class _MultiLayer(_AnomalyDINO):
    """The same of several ways to look, averaged."""

    def __init__(self, detector: MultiLayerNN) -> None:
        super().__init__(detector)
        self.summaries = _Rows.of(detector.summaries)
        given = detector.query_views
        self.names: Sequence[str] = given.split(",") if isinstance(given, str) else given

    def scores(self, pixels: Tensor) -> ViewScores:
        grids = []
        for name in self.names:
            axis = {"vflip": 0, "hflip": 1}.get(name)
            seen = pixels.clamp(min=0) if name == "clamp" else pixels
            seen = seen if axis is None else seen.flip(axis + 2)
            features, summary = self.detector.embed(seen[0])
            grid = self.apart(features)
            if self.detector.summary_weight:
                squared, _ = self.summaries.nearest(summary, 1)
                grid = grid + self.detector.summary_weight * (squared[0, 0] / 2)
            grids.append(grid if axis is None else grid.flip(axis))
        return ViewScores(torch.stack(grids).mean(0))


class _PatchCore(Program):
    """Distance to the nearest entries of a coreset, and the weight of the image score."""

    def __init__(self, detector: PatchCore) -> None:
        super().__init__(detector)
        self.bank = _Rows.of(detector.bank)
        found = np.ones(0, np.float32)
        if isinstance(detector, SoftPatch) and detector.soft:
            found = _active(detector.bank, detector.weights_)
        self.register_buffer("softness", torch.from_numpy(found.copy()))

    def scores(self, pixels: Tensor) -> ViewScores:
        features = self.embedded(pixels)
        rows = tokens_of(features)
        squared, index = self.bank.nearest(rows, self.detector.neighbours)
        apart = squared if self.detector.distance == "squared" else squared.sqrt()
        softness = self.get_buffer("softness")
        scores = (apart * softness[index] if len(softness) else apart).mean(1)
        weight = self._weight(rows, scores, index[:, 0]) if self.detector.reweight else None
        return ViewScores(scores.reshape(features.shape[1:]), None, weight)

    def _weight(self, rows: Tensor, scores: Tensor, nearest: Tensor) -> Tensor | None:
        """Equation 7; see :class:`~offnominal.detectors.memory_bank.patchcore.PatchCore`."""
        if self.bank.count < 2:
            return None
        worst = scores.argmax().reshape(1)
        row, centre = rows[worst][0], self.bank.row(nearest[worst])
        row = row.half().float() if self.bank.halved else row
        _, around = self.bank.nearest(centre[None], self.detector.reweight_neighbours)
        others = self.bank.get_buffer("rows")[around[0]].float()
        distances = (others - row).square().sum(1).sqrt()
        own = (centre - row).square().sum().sqrt()
        return 1 - torch.exp(own - distances.logsumexp(0))


class _Vectors(Program):
    """Mean squared distance of an image's vector to the nearest references'."""

    def __init__(self, detector: DN2) -> None:
        super().__init__(detector)
        vectors = to_numpy(detector.vectors_)
        self.bank = _Rows(vectors)
        self.used = max(1, min(detector.neighbours, len(vectors) - 1))

    def scores(self, pixels: Tensor) -> ViewScores:
        squared, _ = self.bank.nearest(self.embedded(pixels), self.used)
        return ViewScores(squared.mean(1)[:, None])


class _Subspace(Program):
    """Distance from a subspace, and from a bank if that counts."""

    def __init__(self, detector: SubspaceAD) -> None:
        super().__init__(detector)
        self.near = _Rows.of(detector.bank) if detector.nearest else None

    def scores(self, pixels: Tensor) -> ViewScores:
        detector = self.detector
        features = self.embedded(pixels)
        found = detector.outside(features, detector.subspace)
        if self.near is None:
            return ViewScores(found.patches)
        squared, _ = self.near.nearest(F.normalize(tokens_of(features), dim=-1), 1)
        near = squared[:, 0].reshape(found.patches.shape) / 2
        return ViewScores(found.patches ** (1 - detector.nearest) * near**detector.nearest)


_KINDS: tuple[tuple[type, type[Program]], ...] = (
    (MultiLayerNN, _MultiLayer),
    (AnomalyDINO, _AnomalyDINO),
    (PatchCore, _PatchCore),
    (DN2, _Vectors),
    (SubspaceAD, _Subspace),
    (Trainable, _Trained),
)


def program(detector: Any) -> Program:
    """What a fitted detector computes of prepared pixels, on the CPU.

    Parameters
    ----------
    detector : Detector
        Brought to the CPU.

    Raises
    ------
    OptionError
        If its predict is no program of tensors alone: what ``detector.exportable()`` says.
    """
    if told := detector.exportable():
        raise OptionError(f"{detector.method}: {told}")
    if isinstance(detector, MaskedFeatures) and detector.masks_:
        raise OptionError(
            f"{detector.method}: the mask of the background takes a decomposition of each image's "
            "own features; fit anew with --mask off"
        )
    detector.check_fitted()
    if hasattr(detector, "move"):
        detector.move(torch.device("cpu"))
    kind = next((made for known, made in _KINDS if isinstance(detector, known)), Program)
    return kind(detector).eval()
