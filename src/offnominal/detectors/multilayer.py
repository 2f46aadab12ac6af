"""Nearest neighbours of features from several blocks, references and queries both augmented.

In the spirit of VisionAD: Wang et al., "Search is All You Need for Few-shot Anomaly Detection",
2025 (arXiv 2504.11895). Every piece is an option, so that each can be left out.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.augment import parse_rotations, rotate_image
from offnominal.backbones.base import Resize
from offnominal.detectors.banked import Banked
from offnominal.detectors.base import Detector, Progress
from offnominal.detectors.middle import Fusion, MiddleLayers
from offnominal.detectors.patches import MaskMode, PatchDetector, PatchOptions
from offnominal.detectors.places import Flip, Layout, Look
from offnominal.detectors.query_views import QueryView, parse_query_views, query_view, undo_view
from offnominal.detectors.reach import Compared, Learned
from offnominal.detectors.views import Views
from offnominal.errors import OptionError
from offnominal.memory import MemoryBank

__all__ = ["MultiLayerNN"]


_FLIPS: dict[QueryView, Flip] = {"vflip": "rows", "hflip": "columns"}


class MultiLayerNN(PatchDetector, Banked, MiddleLayers):
    """Few-shot detection by nearest neighbours in the fused features of several blocks.

    A test image is looked at in several ways (``query_views``), and each look has a bank of its
    own, filled from references that were changed in the same way. The maps, turned back, are
    averaged.

    Parameters
    ----------
    fusion : {"mean", "concat"} or None
        Of the blocks' raw outputs; None: the mean, where they have one shape.
    rotations : str
        Of the references: ``none``, ``agnostic`` or degrees. Quarter turns are exact.
    reference_flips : bool
        Whether the bank holds references flipped upside down and left to right as well.
    query_views : str
        Ways to look at a test image, by commas: ``plain``; ``vflip``, upside down; ``hflip``;
        ``clamp``, with all that is darker than the mean of the backbone's training images raised to
        it, channel by channel. VisionAD's code has ``plain,vflip,clamp``; of dark parts ``clamp``
        leaves nothing to see, so it is not a default here.
    summary_weight : float
        Weight of the distance from the image's class token (or pooled feature) to the nearest of
        the references', which is added to every patch score, so to the image score however it is
        aggregated. 0 leaves it out.
    neighbours : int
        The distance of a patch is the mean over this many nearest neighbours.
    calibrate_on : int
        0: every reference is scored to set the threshold. A number: at most so many, evenly spread.
    layers : sequence of int or None
        None: from a sixth to three quarters of the way up a transformer: blocks 4 to 18 of a ViT-L,
        2 to 9 of a ViT-B, counted from 0.
    resize : {"short", "square"} or None
        ``square`` as in the released code.
    mask : {"auto", "on", "off"}
        ``off`` as in the released code. With a mask, Otsu's threshold parts object and background
        unless ``mask_threshold`` says otherwise.
    **options
        See :class:`~offnominal.detectors.patches.PatchDetector` and
        :class:`~offnominal.detectors.base.Detector`.

    Notes
    -----
    A bank holds a row for every patch of every reference in every rotation and flip, and there are
    as many banks as query views: 12 rows a patch by default.
    """

    method: ClassVar[str] = "multilayer-nn"

    summaries: MemoryBank

    def __init__(  # type: ignore[misc]  # resize and mask have other defaults here
        self,
        fusion: Fusion | None = None,
        rotations: str | Sequence[float] = "0,90,180,270",
        reference_flips: bool = True,
        query_views: str | Sequence[str] = "plain,vflip",
        summary_weight: float = 0.0,
        neighbours: int = 1,
        calibrate_on: int = 0,
        resize: Resize | None = "square",
        mask: MaskMode = "off",
        **options: Unpack[PatchOptions],
    ) -> None:
        super().__init__(resize=resize, mask=mask, **options)
        self.check_fusion(fusion)
        parse_rotations(rotations)
        parse_query_views(query_views)
        if summary_weight < 0:
            raise OptionError(f"summary_weight {summary_weight}: give 0 or more")
        if neighbours < 1:
            raise OptionError(f"--neighbours {neighbours}: give 1 or more")
        if calibrate_on < 0:
            raise OptionError(f"calibrate_on {calibrate_on}: give 0 (all) or more")
        self.fusion = fusion
        self.rotations = rotations if isinstance(rotations, str) else tuple(rotations)
        self.reference_flips = reference_flips
        self.query_views = query_views if isinstance(query_views, str) else tuple(query_views)
        self.summary_weight = summary_weight
        self.neighbours = neighbours
        self.calibrate_on = calibrate_on
        self.more_banks = nn.ModuleList()
        self.summaries = MemoryBank(1)

    @staticmethod
    def default_blocks(count: int) -> tuple[int, ...]:
        """From a sixth to three quarters of the way up."""
        return tuple(range(count // 6, 3 * count // 4 + 1))

    @property
    def _mask_threshold(self) -> float | None:
        return self.mask_threshold  # a backbone's own holds for its last block's tokens only

    def prepare_state(self) -> None:
        """Empty banks; those of a file are adopted whatever their size."""
        super().prepare_state()
        self._make_banks(1, 1)

    def _make_banks(self, dim: int, summary_dim: int) -> None:
        views = parse_query_views(self.query_views)
        self.bank = self._new_bank(dim)
        self.more_banks = nn.ModuleList(self._new_bank(dim) for _ in views[1:])
        self.summaries = MemoryBank(summary_dim, self.bank.memory).to(self._device)
        self._make_attic()

    @property
    def _patch_banks(self) -> list[MemoryBank]:
        """The bank of each query view."""
        return [self.bank, *(cast(MemoryBank, bank) for bank in self.more_banks)]

    @property
    def _banks(self) -> list[MemoryBank]:
        banks = [*self._patch_banks, self.summaries]
        for bank in banks:
            bank.dim = bank.rows.shape[1]  # a loaded bank's width is that of its rows
        return banks

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.prepare_state()
        learned: dict[int, Learned] = {}
        for index, image in images:
            learned[index] = self._learn(index, image)
            if progress:
                progress("features", index + 1)
        if not learned:
            return
        if self.normalization == "standardize":
            self._standardize_bank()
            for bank in self._patch_banks[1:]:
                bank.standardize_(self.centre_, self.scale_)
        self._fitted(learned, progress)

    def _learn(self, owner: int, image: np.ndarray) -> Learned:
        """Put a reference into every bank, in every rotation and flip."""
        names = parse_query_views(self.query_views)
        upright = self.views(image)
        counted: list[Tensor] = []
        for pixels, view in self._augmented(image, upright):
            looks = [self._look(pixels, name) for name in names]
            tokens, grid, summary = looks[0]
            if not len(self.bank):
                self._make_banks(tokens.shape[1], summary.shape[1])
                self._decide_mask(tokens, grid)
            if view < len(upright.pixels):
                mask = self._upright_mask(tokens, grid)
                counted += [undo_view(mask, name).flatten() for name in names]
                if self.summary_weight:
                    counted.append(mask.new_ones(1))
            # A fit standardises all rows at the end; later ones take what it found.
            raw = self.normalization != "l2" and not self.is_fitted
            for bank, (found, _, _) in zip(self._patch_banks, looks, strict=True):
                bank.add(found if raw else self._normalised(found), owner, view)
            self.summaries.add(F.normalize(summary, dim=-1), owner, view)
        return Learned((image.shape[0], image.shape[1]), torch.cat(counted))

    def _augmented(self, image: np.ndarray, upright: Views) -> Iterator[tuple[Tensor, int]]:
        """Prepared pixels (3, h, w) of a reference, and the number of the view."""
        angles, tiles = parse_rotations(self.rotations), len(upright.pixels)
        for turn, angle in enumerate(angles):
            quarters, rest = divmod(angle, 90)
            turned = upright if not rest else self.views(rotate_image(image, angle))
            for tile, pixels in enumerate(turned.pixels):
                # Quarter turns of the prepared pixels lose nothing, as a warp would.
                exact = torch.rot90(pixels, int(quarters), (1, 2)) if not rest else pixels
                yield exact.contiguous(), turn * tiles + tile
        if self.reference_flips:
            for tile, pixels in enumerate(upright.pixels):
                yield pixels.flip(1), len(angles) * tiles + tile
                yield pixels.flip(2), (len(angles) + 1) * tiles + tile

    def _looks(self, bank: int) -> list[Look]:
        query = _FLIPS.get(parse_query_views(self.query_views)[bank], "")
        looks = [
            Look(angle, exact=not angle % 90, query=query)
            for angle in parse_rotations(self.rotations)
        ]
        if self.reference_flips:
            looks += [Look(flip=flip, query=query) for flip in _FLIPS.values()]
        return looks

    def _upright_mask(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mask (gh, gw) of the image as it is, from tokens of the first query view."""
        return undo_view(self.foreground(tokens, grid), parse_query_views(self.query_views)[0])

    # -- how references are measured, see Banked ----------------------------------------------

    def _counts(self, layout: Layout) -> list[int]:
        summaries = [1] if self.summary_weight else []
        return [layout.patches] * len(self._patch_banks) + summaries

    def _neighbours(self, bank: int, left: int) -> int:
        return self.neighbours if bank < len(self._patch_banks) else 1

    def _distance(self, bank: int, squared: Tensor) -> Tensor:
        if bank < len(self._patch_banks):
            return self._to_distance(squared)
        return squared[:, 0] / 2

    def _restate(self, bank: int, part: MemoryBank, other: Detector) -> None:
        if bank < len(self._patch_banks):
            super()._restate(bank, part, other)

    def _joined(self, layout: Layout, distance: Tensor) -> Tensor:
        counts = self._counts(layout)
        merged = []
        for tile in torch.split(distance, sum(counts)):
            parts = torch.split(tile, counts)
            maps = [part.reshape(layout.grid) for part in parts[: len(self._patch_banks)]]
            scores = self._mean_map(maps)
            if self.summary_weight:
                scores = scores + self.summary_weight * parts[-1][0]
            merged.append(scores)
        return layout.views.merge(merged)

    def _mean_map(self, maps: list[Tensor]) -> Tensor:
        names = parse_query_views(self.query_views)
        turned = [undo_view(each, name) for each, name in zip(maps, names, strict=True)]
        return torch.stack(turned).mean(0)

    def _compared(self, pixels: Tensor) -> Compared:
        names = parse_query_views(self.query_views)
        maps, distances, rows = [], [], []
        looks = [self._look(pixels, name) for name in names]
        for bank, name, (tokens, grid, _) in zip(self._patch_banks, names, looks, strict=True):
            bank.dim = bank.rows.shape[1]
            squared, row = bank.search(self._stored(tokens), self.neighbours, self._left_out)
            maps.append(self._to_distance(squared).reshape(grid))
            nearest = self._to_distance(squared[:, :1]).reshape(grid)
            distances.append(undo_view(nearest, name))
            rows.append(undo_view(row[:, 0].reshape(grid), name))
        tokens, grid, summary = looks[0]
        scores = self._mean_map(maps) * self._upright_mask(tokens, grid)
        if self.summary_weight:
            self.summaries.dim = self.summaries.rows.shape[1]
            squared, _ = self.summaries.search(F.normalize(summary, dim=-1), 1, self._left_out)
            scores = scores + self.summary_weight * (squared[0, 0] / 2)
        distance, bank_number = torch.stack(distances).min(0)
        row = torch.stack(rows).gather(0, bank_number[None])[0]
        return Compared(scores, distance, row, bank_number)

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        return torch.stack([self._compared(one).scores for one in pixels])

    def _look(self, pixels: Tensor, name: QueryView) -> tuple[Tensor, tuple[int, int], Tensor]:
        maps, summary = self.fused(query_view(pixels, name)[None])
        return maps[0].flatten(1).T.contiguous(), (maps.shape[2], maps.shape[3]), summary
