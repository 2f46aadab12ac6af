"""Nearest neighbours of features from several blocks, references and queries both augmented.

In the spirit of VisionAD: Wang et al., "Search is All You Need for Few-shot Anomaly Detection",
2025 (arXiv 2504.11895). Every piece is an option, so that each can be left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.augment import parse_rotations, rotate_image
from offnominal.backbones.base import Resize
from offnominal.detectors.base import Progress
from offnominal.detectors.common import evenly
from offnominal.detectors.middle import Fusion, MiddleLayers
from offnominal.detectors.patches import MaskMode, PatchDetector, PatchOptions
from offnominal.detectors.query_views import QueryView, parse_query_views, query_view, undo_view
from offnominal.detectors.views import Views
from offnominal.errors import OptionError
from offnominal.memory import MemoryBank

__all__ = ["MultiLayerNN"]


@dataclass
class _Seen:
    """Where one upright view of a reference lies in each bank."""

    owner: int
    starts: list[int]  # its first row in the bank of each query view
    summary: int  # its first row in the bank of summaries
    mask: Tensor  # (gh, gw), bool


class MultiLayerNN(PatchDetector, MiddleLayers):
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
        self._make_banks(1, 1)

    @staticmethod
    def default_blocks(count: int) -> tuple[int, ...]:
        """From a sixth to three quarters of the way up."""
        return tuple(range(count // 6, 3 * count // 4 + 1))

    @property
    def _mask_threshold(self) -> float | None:
        return self.mask_threshold  # a backbone's own holds for its last block's tokens only

    def prepare_state(self) -> None:
        """Empty banks; those of a file are adopted whatever their size."""
        self.load_network()
        self._make_banks(1, 1)
        self.centre_ = torch.zeros(1, device=self._device)
        self.scale_ = torch.ones(1, device=self._device)

    def _make_banks(self, dim: int, summary_dim: int) -> None:
        memory = self.search_memory * 2**20
        views = parse_query_views(self.query_views)
        self.bank = MemoryBank(dim, memory=memory).to(self._device)
        self.more_banks = nn.ModuleList(
            MemoryBank(dim, memory=memory).to(self._device) for _ in views[1:]
        )
        self.summaries = MemoryBank(summary_dim, memory=memory).to(self._device)

    @property
    def _banks(self) -> list[MemoryBank]:
        """The bank of each query view."""
        banks = [self.bank, *self.more_banks]
        for bank in banks:
            bank.dim = bank.rows.shape[1]  # a loaded bank's width is that of its rows
        return banks

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.prepare_state()
        references: list[tuple[Views, tuple[int, int], list[_Seen]]] = []
        for index, image in images:
            layout, seen = self._learn(index, image)
            references.append((layout, (image.shape[0], image.shape[1]), seen))
            if progress:
                progress("features", index + 1)
        if not references:
            return
        if self.normalization == "standardize":
            self._standardize_bank()
            for bank in self._banks[1:]:
                bank.rows.sub_(self.centre_).div_(self.scale_)
        # A single reference has no others to be scored by.
        chosen = evenly(references, self.calibrate_on) if len(references) > 1 else []
        self._score_references(chosen, self._score_seen, progress)

    def _learn(self, index: int, image: np.ndarray) -> tuple[Views, list[_Seen]]:
        """Put a reference into every bank, in every rotation and flip; the upright one first."""
        views = parse_query_views(self.query_views)
        upright = self.views(image)
        seen = []
        for pixels, is_upright in self._augmented(image, upright):
            looks = [self._look(pixels, name) for name in views]
            tokens, grid, summary = looks[0]
            if not len(self.bank):
                self._make_banks(tokens.shape[1], summary.shape[1])
                self._decide_mask(tokens, grid)
            if is_upright:
                starts = [len(bank) for bank in self._banks]
                mask = self.foreground(tokens, grid)
                seen.append(_Seen(index, starts, len(self.summaries), mask))
            for bank, (found, _, _) in zip(self._banks, looks, strict=True):
                raw = self.normalization != "l2"
                bank.add(found if raw else self._normalised(found), index)
            self.summaries.add(F.normalize(summary, dim=-1), index)
        return upright.layout(), seen

    def _augmented(self, image: np.ndarray, upright: Views) -> Iterator[tuple[Tensor, bool]]:
        """Prepared pixels (3, h, w) of a reference, and whether they are of the upright one."""
        for angle in parse_rotations(self.rotations):
            quarters, rest = divmod(angle, 90)
            turned = upright if not rest else self.views(rotate_image(image, angle))
            for pixels in turned.pixels:
                # Quarter turns of the prepared pixels lose nothing, as a warp would.
                exact = torch.rot90(pixels, int(quarters), (1, 2)) if not rest else pixels
                yield exact.contiguous(), angle == 0
        if self.reference_flips:
            for pixels in upright.pixels:
                yield pixels.flip(1), False
                yield pixels.flip(2), False

    def _score_seen(self, view: _Seen) -> Tensor:
        grid = (view.mask.shape[0], view.mask.shape[1])
        queries = [
            bank.rows[start : start + view.mask.numel()]
            for bank, start in zip(self._banks, view.starts, strict=True)
        ]
        summary = self.summaries.rows[view.summary : view.summary + 1]
        return self._score(queries, summary, grid, view.mask, skip=view.owner)

    def _score(
        self,
        queries: list[Tensor],
        summary: Tensor,
        grid: tuple[int, int],
        mask: Tensor,
        skip: int | None = None,
    ) -> Tensor:
        """Patch scores (gh, gw) from normalised features (N, D) of every query view."""
        names = parse_query_views(self.query_views)
        maps = []
        for bank, tokens, name in zip(self._banks, queries, names, strict=True):
            squared, _ = bank.search(tokens, self.neighbours, skip=skip)
            maps.append(undo_view(self._to_distance(squared).reshape(grid), name))
        scores = torch.stack(maps).mean(0) * mask
        if self.summary_weight:
            self.summaries.dim = self.summaries.rows.shape[1]
            squared, _ = self.summaries.search(summary, 1, skip=skip)
            scores = scores + self.summary_weight * squared[0, 0] / 2
        return scores

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        scores = []
        for one in pixels:
            found = [self._look(one, name) for name in parse_query_views(self.query_views)]
            tokens, grid, summary = found[0]
            queries = [self._normalised(each) for each, _, _ in found]
            mask = self.foreground(tokens, grid)
            scores.append(self._score(queries, F.normalize(summary, dim=-1), grid, mask))
        return torch.stack(scores)

    def _look(self, pixels: Tensor, name: QueryView) -> tuple[Tensor, tuple[int, int], Tensor]:
        maps, summary = self.fused(query_view(pixels, name)[None])
        return maps[0].flatten(1).T.contiguous(), (maps.shape[2], maps.shape[3]), summary
