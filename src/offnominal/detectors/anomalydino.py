"""AnomalyDINO: patch features of a few good images, nearest neighbours, mean of the top 1 %.

Damm, Laszkiewicz, Lederer and Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly
Detection with DINOv2", WACV 2025 (arXiv 2405.14529).
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from offnominal.augment import parse_rotations, rotate_image
from offnominal.detectors.banked import Banked
from offnominal.detectors.base import Progress
from offnominal.detectors.patches import PatchDetector, PatchOptions
from offnominal.detectors.places import Layout, Look
from offnominal.detectors.reach import Compared, Learned
from offnominal.errors import OptionError

__all__ = ["AnomalyDINO"]


class AnomalyDINO(PatchDetector, Banked):
    """Few-shot, training-free detection with a memory bank of patch features.

    Parameters
    ----------
    mask_references : bool
        Whether background patches of the references are left out of the bank as well.
    rotations : str
        Angles of the references in degrees: ``agnostic`` (0, 45, ..., 315), ``none``, or a list
        such as ``0,90,180,270``.
    neighbours : int
        The distance of a patch is the mean over this many nearest neighbours.
    calibrate_on : int
        0: every reference is scored to set the threshold. A number: at most so many, evenly spread,
        to save time with very many.
    **options
        See :class:`~offnominal.detectors.patches.PatchDetector` and
        :class:`~offnominal.detectors.base.Detector`.

    Examples
    --------
    >>> from offnominal import AnomalyDINO
    >>> detector = AnomalyDINO(backbone="builtin").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.score, prediction.is_anomalous, prediction.regions()
    """

    method: ClassVar[str] = "anomalydino"

    def __init__(
        self,
        mask_references: bool = False,
        rotations: str | Sequence[float] = "agnostic",
        neighbours: int = 1,
        calibrate_on: int = 0,
        **options: Unpack[PatchOptions],
    ) -> None:
        super().__init__(**options)
        parse_rotations(rotations)
        if neighbours < 1:
            raise OptionError(f"--neighbours {neighbours}: give 1 or more")
        if calibrate_on < 0:
            raise OptionError(f"calibrate_on {calibrate_on}: give 0 (all) or more")
        self.mask_references = mask_references
        self.rotations = rotations if isinstance(rotations, str) else tuple(rotations)
        self.neighbours = neighbours
        self.calibrate_on = calibrate_on

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.prepare_state()
        learned: dict[int, Learned] = {}
        for index, image in images:
            learned[index] = self._learn(index, image)
            if progress:
                progress("features", index + 1)
        if not learned:
            return
        if not len(self.bank):
            raise OptionError("--mask-references: the mask leaves nothing to learn; leave it out")
        if self.normalization == "standardize":
            self._standardize_bank()
        self._fitted(learned, progress)

    def _learn(self, owner: int, image: np.ndarray) -> Learned:
        """Put an image into the bank in every rotation; the mask is decided on the first."""
        counted: list[Tensor] = []
        first = not len(self.bank) and owner == 0
        for turn, angle in enumerate(parse_rotations(self.rotations)):
            views = self.views(rotate_image(image, angle)).pixels
            for tile, pixels in enumerate(views):
                tokens, grid = self._tokens(pixels)
                if first:
                    self._decide_mask(tokens, grid)
                    first = False
                mask = self.foreground(tokens, grid).flatten()
                patch = mask.nonzero()[:, 0] if self.mask_references else None
                kept = tokens if patch is None else tokens[patch]
                # A fit standardises all rows at the end; later ones take what it found.
                raw = self.normalization != "l2" and not self.is_fitted
                rows = kept if raw else self._normalised(kept)
                self.bank.add(rows, owner, turn * len(views) + tile, patch)
                if angle == 0:
                    counted.append(mask)
        return Learned((image.shape[0], image.shape[1]), torch.cat(counted))

    def _distance(self, bank: int, squared: Tensor) -> Tensor:
        return self._to_distance(squared)

    def _joined(self, layout: Layout, distance: Tensor) -> Tensor:
        tiles = torch.split(distance, layout.patches)
        return layout.views.merge([tile.reshape(layout.grid) for tile in tiles])

    def _looks(self, bank: int) -> list[Look]:
        return [Look(angle) for angle in parse_rotations(self.rotations)]

    def _compared(self, pixels: Tensor) -> Compared:
        tokens, grid = self._tokens(pixels)
        squared, rows = self.bank.search(self._stored(tokens), self.neighbours, self._left_out)
        scores = self._to_distance(squared).reshape(grid) * self.foreground(tokens, grid)
        nearest = self._to_distance(squared[:, :1]).reshape(grid)
        row = rows[:, 0].reshape(grid)
        return Compared(scores, nearest, row, torch.zeros_like(row))

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        return torch.stack([self._compared(one).scores for one in pixels])
