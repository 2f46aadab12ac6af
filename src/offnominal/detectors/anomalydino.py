"""AnomalyDINO: patch features of a few good images, nearest neighbours, mean of the top 1 %.

Damm, Laszkiewicz, Lederer and Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly
Detection with DINOv2", WACV 2025 (arXiv 2405.14529).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from offnominal.augment import parse_rotations, rotate_image
from offnominal.detectors.base import Progress
from offnominal.detectors.common import evenly
from offnominal.detectors.patches import PatchDetector, PatchOptions
from offnominal.detectors.views import Views
from offnominal.errors import OptionError

__all__ = ["AnomalyDINO"]


@dataclass
class _Seen:
    """Where one view of a reference lies in the bank; enough to score it again."""

    owner: int
    start: int
    mask: Tensor  # (gh, gw), bool: the patches that lie in the bank and that count


class AnomalyDINO(PatchDetector):
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
        angles = parse_rotations(self.rotations)
        references: list[tuple[Views, tuple[int, int], list[_Seen]]] = []
        rows, decided = 0, False
        for index, image in images:
            seen: list[_Seen] = []
            for angle in angles:
                views = self.views(rotate_image(image, angle))
                for pixels in views.pixels:
                    tokens, grid = self._tokens(pixels)
                    if not decided:
                        self._decide_mask(tokens, grid)
                        decided = True
                    mask = self.foreground(tokens, grid)
                    kept = tokens[mask.flatten()] if self.mask_references else tokens
                    raw = self.normalization != "l2"
                    self.bank.add(kept if raw else self._normalised(kept), index)
                    if angle == 0:
                        seen.append(_Seen(index, rows, mask))
                    rows += len(kept)
                if angle == 0:
                    size = (image.shape[0], image.shape[1])
                    references.append((views.layout(), size, seen))
            if progress:
                progress("features", index + 1)
        if not references:
            return
        if not rows:
            raise OptionError("--mask-references: the mask leaves nothing to learn; leave it out")
        if self.normalization == "standardize":
            self._standardize_bank()
        # A single reference has no others to be scored by.
        chosen = evenly(references, self.calibrate_on) if len(references) > 1 else []
        self._score_references(chosen, self._score_seen, progress)

    def _score_seen(self, view: _Seen) -> Tensor:
        grid = view.mask.shape
        stored = view.mask if self.mask_references else torch.ones_like(view.mask)
        queries = self.bank.rows[view.start : view.start + int(stored.sum())]
        squared, _ = self.bank.search(queries, self.neighbours, skip=view.owner)
        scores = torch.zeros(grid, device=queries.device)
        scores[stored] = self._to_distance(squared)
        return scores * view.mask

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        scores = []
        for one in pixels:
            tokens, grid = self._tokens(one)
            squared, _ = self.bank.search(self._normalised(tokens), self.neighbours)
            distance = self._to_distance(squared).reshape(grid)
            scores.append(distance * self.foreground(tokens, grid))
        return torch.stack(scores)
