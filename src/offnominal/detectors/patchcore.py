"""PatchCore: locally aware mid-level features, a coreset of them, nearest neighbours.

Roth, Pemula, Zepeda, Schölkopf, Brox and Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022 (arXiv 2106.08265).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Literal, NamedTuple, Unpack, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.detectors import measuring
from offnominal.detectors.banked import Banked
from offnominal.detectors.base import Progress, Size
from offnominal.detectors.common import CommonOptions, Storage, check_bank, check_choice
from offnominal.detectors.farthest import farthest_rows
from offnominal.detectors.growing import Change
from offnominal.detectors.locally_aware import locally_aware
from offnominal.detectors.places import Layout, whole_layout
from offnominal.detectors.reach import (
    ALONE,
    Compared,
    Found,
    Learned,
    addresses,
    as_stored,
    span,
)
from offnominal.detectors.views import Views, tiled_views
from offnominal.errors import OptionError
from offnominal.images import ImageSource
from offnominal.memory import MemoryBank
from offnominal.memory.coreset import select_coreset
from offnominal.memory.room import Room
from offnominal.scoring import anomaly_map, check_aggregate
from offnominal.sizing import fit_size, to_pixels

__all__ = ["Distance", "PatchCore", "PatchCoreOptions", "Reference"]

Distance = Literal["euclidean", "squared"]


class PatchCoreOptions(CommonOptions, total=False):
    """Options that :class:`PatchCore` adds, for those who pass them on (all but ``reweight``)."""

    coreset: float
    reweight_neighbours: int
    neighbours: int
    distance: Distance
    crop: int
    patch: int
    level_dim: int
    dim: int
    aggregate: str
    project: int
    seed: int
    calibrate_on: int
    search_memory: int
    storage: Storage
    search: str


@dataclass(frozen=True)
class Reference:
    """Where an image's patches lie among all rows, in the order of its views."""

    owner: int
    size: Size
    grids: list[Size]
    start: int

    @property
    def counts(self) -> list[int]:
        """Patches of each view."""
        return [rows * columns for rows, columns in self.grids]

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.start + sum(self.counts)


class _Measured(NamedTuple):
    """Patches (n,) of a view: scores, distance to the nearest row, its number, and eq. 7."""

    scores: Tensor
    distance: Tensor
    row: Tensor
    weight: Tensor


class PatchCore(Banked):
    """A memory bank of locally aware patch features, thinned to a coreset.

    Parameters
    ----------
    coreset : float
        Share of the patches that the bank keeps, on (0, 1]. The paper compares 0.25, 0.1 and 0.01;
        1 keeps all.
    reweight : bool
        Whether the image score is weighted by how crowded the bank is around the nearest entry of
        the most anomalous patch (eq. 7), as in the paper. False: the plain statistic, as in the
        released code. The weight multiplies whatever ``aggregate`` gives; in the paper that is
        ``max``.
    reweight_neighbours : int
        Entries in that neighbourhood, the nearest entry itself among them; at least 2. (b in the
        paper, which gives no number.)
    neighbours : int
        The score of a patch is the mean over this many nearest entries.
    distance : {"euclidean", "squared"}
        As the paper has it (eq. 6), or squared, as the released code has it. The order of images
        under ``max`` without re-weighting is the same; maps and averages are not.
    crop : int
        Side of the central part of the resized image that is looked at, in pixels; what lies
        outside it is NOT inspected, and the map is 0 there. 0: the whole image. The paper's is 224
        of 256, which suits a data set whose parts lie in the middle; a fault at the rim of a part
        would pass, so it is not the default. Not used with ``tile``.
    patch : int
        Side of the neighbourhood that makes features locally aware, odd.
    level_dim, dim : int
        Lengths of each level's features and of the final ones.
    project : int
        Length that rows are projected to at random while the coreset is selected (section 3.2), 128
        in the released code; 0: not at all, which costs little here and keeps a better selection.
    seed : int
        Of the coreset's first row and of that projection.
    calibrate_on : int
        0: every reference is scored to set the threshold. A number: at most so many, evenly spread.
    search_memory : int
        Bound on the search's working memory, in MiB.
    storage : {"fp32", "fp16", "int8"}
        How the bank keeps its patches: in full, a half or a quarter of the size. Patches that are
        looked up are rounded in the same way.
    search : str
        ``exact``; or an approximate index with a target for its recall, for very large banks:
        ``recall=0.99``, or a kind and ``recall=0.99`` with a comma between (see
        :func:`~offnominal.memory.index_choice.parse_search`).
    **common
        See :class:`~offnominal.detectors.base.Detector`. Without ``backbone``, the network is what
        the weights file says of itself, otherwise WideResNet-50-2; ``layers`` are those of stride 8
        and 16, the second and third stage of a residual network; ``resolution`` is 256.

    Notes
    -----
    While fitting, every patch of every reference is held in float32: 4 MiB for a square image
    with the defaults. The fitted bank is ``coreset`` times that.

    **Threshold.** Each reference is scored against the bank without its own entries. With
    ``coreset=1`` that is exact leave-one-out and the false-reject rate is promised, as for
    AnomalyDINO. With a smaller coreset it is an approximation: had the reference never been there,
    other patches would have been chosen in place of its own, so the bank that is left has gaps
    that a new part does not meet. The scores, and with them the threshold, tend to be too high
    rather than too low, but no theorem says so. ``calibrate`` with further good images gives a
    threshold with a promise.

    **Growing.** Of an image that is added, the share ``coreset`` of its patches joins the bank,
    those farthest from it. The other references keep the scores that they had, which can only be
    too high for the larger bank; where ``coreset`` is 1, they are scored anew.

    Examples
    --------
    >>> from offnominal.detectors.patchcore import PatchCore
    >>> detector = PatchCore(backbone="resnet18").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "patchcore"
    default_backbone: ClassVar[str] = "wide_resnet50_2"

    def __init__(
        self,
        coreset: float = 0.1,
        reweight: bool = True,
        reweight_neighbours: int = 9,
        neighbours: int = 1,
        distance: Distance = "euclidean",
        crop: int = 0,
        patch: int = 3,
        level_dim: int = 1024,
        dim: int = 1024,
        aggregate: str = "max",
        project: int = 0,
        seed: int = 0,
        calibrate_on: int = 0,
        search_memory: int = 512,
        storage: Storage = "fp32",
        search: str = "exact",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        check_bank(storage, search)
        if not 0 < coreset <= 1:
            raise OptionError(f"--coreset {coreset}: give a share above 0 and up to 1, as 0.1")
        check_choice("distance", distance, get_args(Distance))
        check_aggregate(aggregate)
        _check_least("reweight_neighbours", reweight_neighbours, 2)
        _check_least("neighbours", neighbours, 1)
        _check_least("crop", crop, 0)
        _check_least("level_dim", level_dim, 1)
        _check_least("dim", dim, 1)
        _check_least("project", project, 0)
        _check_least("calibrate_on", calibrate_on, 0)
        _check_least("search_memory", search_memory, 1)
        if patch < 1 or patch % 2 == 0:
            raise OptionError(f"patch {patch}: give an odd number of positions, as 3")
        self.coreset = coreset
        self.reweight = reweight
        self.reweight_neighbours = reweight_neighbours
        self.neighbours = neighbours
        self.distance = distance
        self.crop = crop
        self.patch = patch
        self.level_dim = level_dim
        self.dim = dim
        self.aggregate = aggregate
        self.project = project
        self.seed = seed
        self.calibrate_on = calibrate_on
        self.search_memory = search_memory
        self.storage: Storage = storage
        self.search = search

    @property
    def promises(self) -> bool:
        """Only of the whole bank: see the class's notes on the threshold."""
        return self.coreset == 1 and super().promises

    def prepare_state(self) -> None:
        """An empty bank."""
        self.load_network()
        memory = self.search_memory * 2**20
        bank = MemoryBank(self.dim, memory=memory, storage=self.storage)
        self.bank = bank.to(self._device)
        super().prepare_state()

    # -- from the image to features -----------------------------------------------------------

    def views(self, image: np.ndarray) -> Views:
        """Resize an image, uint8 (H, W, 3), bilinearly as the released code does, and crop it."""
        net = self.load_network()
        if self.tile:
            return tiled_views(image, net, self.tile)
        resized, (top, left, height, width) = self._window((image.shape[0], image.shape[1]))
        picture = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR)
        cut = np.asarray(picture)[top : top + height, left : left + width]
        return Views([to_pixels(cut, net.mean, net.std)], [], None, net.stride)

    def _default_resolution(self, net: Backbone) -> int:
        return 256

    def _window(self, size: Size) -> tuple[Size, tuple[int, int, int, int]]:
        """Size that an image is resized to, and top, left, height and width of what is looked at.

        Raises
        ------
        OptionError
            If the backbone cannot take a crop that small.
        """
        net = self.load_network()
        resolution = self.resolution or self._default_resolution(net)
        resized, whole = fit_size(*size, resolution, net.multiple, self.resize or net.resize)
        if not self.crop:
            return resized, (0, 0, *whole)
        height, width = (min(self.crop, side) // net.multiple * net.multiple for side in resized)
        if not height or not width:
            raise OptionError(f"crop {self.crop}: {net.name} takes at least {net.multiple} px")
        # Rounded as torchvision's CenterCrop rounds.
        top, left = round((resized[0] - height) / 2), round((resized[1] - width) / 2)
        return resized, (top, left, height, width)

    def _layout(self, size: Size) -> Layout:
        """How the views of an image lie in it."""
        if self.tile:
            return super()._layout(size)
        resized, window = self._window(size)
        return whole_layout(size, resized, window, self.load_network().stride)

    def _rows(self, pixels: Tensor) -> tuple[Tensor, Size]:
        """Patch features (N, dim) in float32 of one view (3, h, w), and their grid."""
        levels = self.levels(pixels[None]).maps
        maps = locally_aware(levels, self.patch, self.level_dim, self.dim)[0]
        return maps.flatten(1).T.contiguous(), (maps.shape[1], maps.shape[2])

    # -- learning -----------------------------------------------------------------------------

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.prepare_state()
        held, room = {"rows": torch.empty((0, self.dim), device=self._device)}, Room()
        references: list[Reference] = []
        for index, image in images:
            found = [self._rows(pixels) for pixels in self.views(image).pixels]
            for rows, _ in found:
                room.append(held, "rows", rows)
            size = (image.shape[0], image.shape[1])
            start = references[-1].stop if references else 0
            references.append(Reference(index, size, [grid for _, grid in found], start))
            if progress:
                progress("features", index + 1)
        if not references:
            return
        rows = held["rows"]
        chosen = self._choose(rows, references, progress)
        learned: dict[int, Learned] = {}
        for reference in references:
            own = rows[reference.start : reference.stop]
            inside = (chosen >= reference.start) & (chosen < reference.stop)
            views = list(torch.split(own, reference.counts))
            self._put(reference.owner, views, chosen[inside] - reference.start)
            learned[reference.owner] = _learned(reference.size, views)
        self._fitted(learned, progress)

    def _put(self, owner: int, views: Sequence[Tensor], chosen: Tensor) -> None:
        """Put some of an image's rows into the bank: numbers over all views, ascending."""
        start = 0
        for tile, rows in enumerate(views):
            patch = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
            self.bank.add(rows[patch], owner, tile, patch)
            start += len(rows)

    def _learn(self, owner: int, image: np.ndarray) -> Learned:
        """Put a further image into the bank: the patches that are farthest from it."""
        views = [self._rows(pixels)[0] for pixels in self.views(image).pixels]
        rows = torch.cat(views)
        chosen = torch.arange(len(rows), device=rows.device)
        if not self._keeps_all:
            count = max(1, int(len(rows) * self.coreset))
            chosen = farthest_rows(as_stored(rows, self.storage), self.bank, count).sort().values
        self._put(owner, views, chosen)
        return _learned((image.shape[0], image.shape[1]), views)

    def _choose(
        self, rows: Tensor, references: list[Reference], progress: Progress | None
    ) -> Tensor:
        """Numbers of the rows that the bank keeps, ascending (section 3.2)."""
        return self._thin(rows, max(1, int(len(rows) * self.coreset)), progress)

    def _thin(self, rows: Tensor, count: int, progress: Progress | None) -> Tensor:
        """Numbers of a coreset of the rows, ascending: then an image's rows lie together."""
        if count >= len(rows):
            return torch.arange(len(rows), device=rows.device)
        project = self.project or None
        found = select_coreset(rows, count, seed=self.seed, project=project, progress=progress)
        return found.sort().values

    # -- how references are measured, see Banked ----------------------------------------------

    @property
    def _keeps_all(self) -> bool:
        return self.coreset == 1

    @property
    def _only_nearest(self) -> bool:
        return self.neighbours == 1 and not self.reweight

    def _neighbours(self, bank: int, left: int) -> int:
        return min(self.neighbours, left)

    @property
    def _index_neighbours(self) -> int:
        return max(self.neighbours, self.reweight_neighbours if self.reweight else 1)

    def _distance(self, bank: int, squared: Tensor) -> Tensor:
        return self._unit(squared).mean(-1)

    def _unit(self, squared: Tensor) -> Tensor:
        return squared if self.distance == "squared" else squared.sqrt()

    def _joined(self, layout: Layout, distance: Tensor) -> Tensor:
        tiles = torch.split(distance, layout.patches)
        return layout.views.merge([tile.reshape(layout.grid) for tile in tiles])

    def _reach(self, owner: int, learned: Learned) -> Found:
        views = learned.rows
        if views is None:
            cells = measuring.cells_of(self, self._layout(learned.size))
            views = [self.bank.take(measuring.own_rows(self, owner, each)[0]) for each in cells]
        if not self._left(owner):
            alone = torch.full((len(learned.counted), 2), ALONE, dtype=torch.int32)
            distance = torch.full((len(alone),), torch.inf, device=self._device)
            return Found(distance, alone.to(self._device), 1.0)
        found = [self._measure(rows, owner) for rows in views]
        # Of several views the most anomalous one speaks for the image.
        weight = max(found, key=lambda view: float(view.scores.max())).weight
        nearest = torch.cat([addresses(self.bank, view.row) for view in found])
        return Found(torch.cat([view.scores for view in found]), nearest, float(weight))

    def _bounded(self, found: Found, away: Tensor, gap: Tensor, nearest: Tensor) -> Found:
        distance, places = found.distance.clone(), found.nearest.clone()
        if self.distance == "squared":
            distance[away] = (distance[away].sqrt() + gap).square()
        else:
            distance[away] += gap
        places[away] = nearest
        worst = distance.argmax()
        same = bool(worst == found.distance.argmax()) and not bool(away[worst])
        # The weight belongs to the worst patch; of another one it is not known, but at most 1.
        return Found(distance, places, found.term if same else 1.0)

    def forget(
        self,
        image: ImageSource | Sequence[ImageSource],
        when: datetime | None = None,
        progress: Progress | None = None,
    ) -> Change:
        """Give up a reference; see :class:`~offnominal.detectors.growing.Growing`."""
        if self.neighbours > 1 and not self._keeps_all:
            raise OptionError(
                f"--neighbours {self.neighbours}: with a coreset and several neighbours the "
                "thresholds cannot be set anew without the references: fit anew without the image"
            )
        return super().forget(image, when, progress)

    # -- from features to scores --------------------------------------------------------------

    def _left(self, skip: int | None) -> int:
        """Entries of the bank without those of an image."""
        start, stop = (0, 0) if skip is None else span(self.bank, skip)
        return len(self.bank) - (stop - start)

    def _measure(self, rows: Tensor, skip: int | None = None) -> _Measured:
        """Compare a view's rows with the bank (eq. 6), and find the weight of eq. 7."""
        rows = as_stored(rows, self.storage)
        left = self._left(skip)
        squared, index = self.bank.search(rows, min(self.neighbours, left), skip)
        distance = self._unit(squared)
        scores = self._softened(distance, index).mean(-1)
        weight = scores.new_ones(())
        if self.reweight and left > 1:
            worst = scores.argmax()
            weight = self._weight(rows[worst], index[worst, 0], left, skip)
        return _Measured(scores, distance[:, 0], index[:, 0], weight)

    def _softened(self, distance: Tensor, index: Tensor) -> Tensor:
        """Distances (N, k) to the nearest entries, as they count."""
        return distance

    def _weight(self, row: Tensor, nearest: Tensor, left: int, skip: int | None) -> Tensor:
        """Weight of the image score (eq. 7).

        One minus the softmax, over the bank's entries around the nearest one, of the distances from
        the patch to them, taken at the nearest one: small where that entry lies alone, and at most
        1. Always of Euclidean distances, as printed.
        """
        [centre] = self.bank.take(nearest[None])
        _, around = self.bank.search(centre[None], min(self.reweight_neighbours, left), skip)
        distances = torch.linalg.vector_norm(self.bank.take(around[0]) - row, dim=1)
        own = torch.linalg.vector_norm(centre - row)
        # exp itself overflows beyond 88.
        return 1 - torch.exp(own - distances.logsumexp(0))

    def _compared(self, pixels: Tensor) -> Compared:
        rows, grid = self._rows(pixels)
        found = self._measure(rows)
        row = found.row.reshape(grid)
        scores, distance = found.scores.reshape(grid), found.distance.reshape(grid)
        return Compared(scores, distance, row, torch.zeros_like(row))

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        return torch.stack([self._compared(one).scores for one in pixels])

    def _score_view(self, pixels: Tensor) -> tuple[Tensor, float | None]:
        rows, grid = self._rows(pixels)
        found = self._measure(rows, self._left_out)
        return found.scores.reshape(grid), float(found.weight)

    def forward(self, pixels: Tensor, size: Size | None = None) -> tuple[Tensor, Tensor]:
        """Image scores and patch scores of a batch; see :class:`Detector`.

        With ``size``, the pixels are taken for the crop of images of that size.
        """
        scores, grids = [], []
        for one in pixels:
            rows, shape = self._rows(one)
            found = self._measure(rows)
            grid = found.scores.reshape(shape)
            grids.append(grid)
            if size is None and self.aggregate == "map-max":
                height, width = pixels.shape[-2:]
                plain = anomaly_map(grid, (height, width), self.smoothing).max()
            else:
                plain = self._image_score(grid, size or (0, 0))
            scores.append(plain * found.weight)
        return torch.stack(scores), torch.stack(grids)

    # -- from scores to predictions -----------------------------------------------------------

    def _map(self, patch_scores: Tensor, size: Size, cover: Size | None) -> Tensor:
        """Map (H, W) of an image; 0 outside the crop, whose border is smoothed as an image's is."""
        if cover is not None or not self.crop:
            return anomaly_map(patch_scores, size, self.smoothing, cover)
        resized, (top, left, height, width) = self._window(size)
        rows, columns = size[0] / resized[0], size[1] / resized[1]
        above, below = round(top * rows), size[0] - round((top + height) * rows)
        before, after = round(left * columns), size[1] - round((left + width) * columns)
        inner = (size[0] - above - below, size[1] - before - after)
        seen = anomaly_map(patch_scores, inner, self.smoothing)
        return F.pad(seen, (before, after, above, below))

    def _image_score(
        self,
        patch_scores: Tensor,
        size: Size,
        cover: Size | None = None,
        image_term: float | None = None,
    ) -> Tensor:
        plain = super()._image_score(patch_scores, size, cover)
        return plain if image_term is None else plain * image_term


def _learned(size: Size, views: list[Tensor]) -> Learned:
    counted = torch.ones(sum(map(len, views)), dtype=torch.bool, device=views[0].device)
    return Learned(size, counted, views)


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise OptionError(f"--{name.replace('_', '-')} {value}: give {least} or more")
