"""AnomalyDINO: patch features of a few good images, nearest neighbours, mean of the top 1 %.

Damm, Laszkiewicz, Lederer and Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly
Detection with DINOv2", WACV 2025 (arXiv 2405.14529).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Unpack, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.augment import parse_rotations, rotate_image
from offnominal.backbones.base import Normalize
from offnominal.detectors.base import CommonOptions, Detector, Progress, Views, check_choice
from offnominal.errors import OptionError
from offnominal.foreground import Morphology, first_component, foreground_mask, masking_test
from offnominal.memory import MemoryBank
from offnominal.pictures import beside, colour_map, outline
from offnominal.scoring import anomaly_map, check_aggregate

__all__ = ["AnomalyDINO", "MaskMode", "PatchDetector"]

MaskMode = Literal["auto", "on", "off"]


class PatchDetector(Detector):
    """What the few-shot and the batched form share: normalised features in a bank, and the mask.

    Parameters
    ----------
    mask : {"auto", "on", "off"}
        Whether background patches score 0. ``auto``: the masking test decides once.
    mask_threshold : float or None
        Where the first principal component separates object and background; None: the backbone's
        own (10 for DINOv2), or Otsu's.
    morphology : {"2d", "reference"}
        Dilation and closing of the mask in two dimensions, or as the released code runs them.
    aggregate : str
        ``top1`` (mean of the top 1 %), ``max``, ``map-max``, ``mean``, ``quantile99``.
    normalize : {"l2", "standardize", "none"} or None
        ``l2``: cosine distance. ``standardize``: each channel by its mean and deviation over the
        good images, then Euclidean distance. None: the backbone's own choice.
    search_memory : int
        Bound on the search's working memory, in MiB.
    """

    centre_: Tensor
    scale_: Tensor

    def __init__(
        self,
        mask: MaskMode = "auto",
        mask_threshold: float | None = None,
        morphology: Morphology = "2d",
        aggregate: str = "top1",
        normalize: Normalize | None = None,
        search_memory: int = 512,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        check_choice("mask", mask, get_args(MaskMode))
        check_choice("morphology", morphology, get_args(Morphology))
        if normalize is not None:
            check_choice("normalize", normalize, get_args(Normalize))
        check_aggregate(aggregate)
        if search_memory < 1:
            raise OptionError(f"search_memory {search_memory}: give at least 1 MiB")
        if mask == "on" and self.tile:
            raise OptionError("--mask on does not go with --tile: a tile rarely shows an object")
        self.mask = mask
        self.mask_threshold = mask_threshold
        self.morphology: Morphology = morphology
        self.aggregate = aggregate
        self.normalize = normalize
        self.search_memory = search_memory
        self.masks_ = False
        self.masking_test_: dict[str, Any] | None = None
        self.bank = MemoryBank(1)
        self.register_buffer("centre_", torch.zeros(1))
        self.register_buffer("scale_", torch.ones(1))

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor."""
        own = {"masks_": self.masks_, "masking_test_": self.masking_test_}
        return super().extra_state() | own

    @property
    def normalization(self) -> Normalize:
        """What is done to the features before distances are measured."""
        return self.normalize or self.load_network().normalize

    def prepare_state(self) -> None:
        """An empty bank for the backbone's features."""
        net = self.load_network()
        self.bank = MemoryBank(net.dim, memory=self.search_memory * 2**20).to(self._device)
        self.centre_ = torch.zeros(1, device=self._device)
        self.scale_ = torch.ones(1, device=self._device)

    def _standardize_bank(self) -> None:
        """Shift and scale the bank in place by its own channels' mean and deviation."""
        rows = self.bank.rows
        self.centre_ = rows.mean(0)
        deviation = rows.std(0, correction=0)
        # A channel that never varies carries nothing; dividing by it would only blow up noise.
        self.scale_ = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
        rows.sub_(self.centre_).div_(self.scale_)

    def _normalised(self, tokens: Tensor) -> Tensor:
        """Tokens (N, D) as the bank holds them."""
        if self.normalization == "l2":
            return F.normalize(tokens, dim=-1)
        return (tokens - self.centre_) / self.scale_

    def _to_distance(self, squared: Tensor) -> Tensor:
        """Cosine distance of unit vectors, or Euclidean distance, from the squared one (..., k)."""
        if self.normalization == "l2":
            return squared.mean(-1) / 2
        return squared.mean(-1).sqrt()

    def _decide_mask(self, tokens: Tensor, grid: tuple[int, int]) -> None:
        """Choose once, on the first image, whether background patches are masked."""
        self.masks_ = self.mask == "on"
        self.masking_test_ = None
        if self.mask == "auto" and not self.tile:
            found = masking_test(tokens, grid, self._mask_threshold)
            self.masks_ = found.passed
            self.masking_test_ = asdict(found)

    @property
    def _mask_threshold(self) -> float | None:
        if self.mask_threshold is not None:
            return self.mask_threshold
        return self.load_network().mask_threshold

    def foreground(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mask (gh, gw) of the patches that count: all of them when the mask is off."""
        if not self.masks_:
            return torch.ones(grid, dtype=torch.bool, device=tokens.device)
        return foreground_mask(tokens, grid, self._mask_threshold, self.morphology)

    @torch.inference_mode()
    def foreground_picture(self, image: np.ndarray) -> np.ndarray:
        """Image, first principal component, and the mask's outline, side by side.

        Parameters
        ----------
        image : uint8 array of shape (H, W, 3)

        Returns
        -------
        uint8 array of shape (H, 3 W + gaps, 3)
            The outline is what the mask would be, whether or not it is used.
        """
        tokens, grid = self._tokens(self.views(image).pixels[0])
        size = (image.shape[1], image.shape[0])
        component = first_component(tokens).reshape(grid).cpu().numpy()
        mask = foreground_mask(tokens, grid, self._mask_threshold, self.morphology)
        large = cv2.resize(mask.cpu().numpy().astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        heat = cv2.resize(component, size, interpolation=cv2.INTER_NEAREST)
        shaded = np.where(large[..., None] > 0, image, image // 3)
        return beside(
            image,
            colour_map(heat, float(heat.min()), float(heat.max())),
            outline(shaded, large > 0),
        )

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Raw patch features (N, D) of one view (3, h, w), and their grid."""
        maps = self.features(pixels[None])[0]
        return maps.flatten(1).T.contiguous(), (maps.shape[1], maps.shape[2])


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
        At most this many references, evenly spread, are scored to set the threshold; 0: all.
    **options
        See :class:`PatchDetector` and :class:`~offnominal.detectors.base.Detector`.

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
        mask: MaskMode = "auto",
        mask_references: bool = False,
        mask_threshold: float | None = None,
        morphology: Morphology = "2d",
        rotations: str | Sequence[float] = "agnostic",
        neighbours: int = 1,
        aggregate: str = "top1",
        normalize: Normalize | None = None,
        calibrate_on: int = 128,
        search_memory: int = 512,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            mask, mask_threshold, morphology, aggregate, normalize, search_memory, **common
        )
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
        rows = 0
        for index, image in images:
            seen: list[_Seen] = []
            for angle in angles:
                views = self.views(rotate_image(image, angle))
                for pixels in views.pixels:
                    tokens, grid = self._tokens(pixels)
                    if not rows:
                        self._decide_mask(tokens, grid)
                    mask = self.foreground(tokens, grid)
                    kept = tokens[mask.flatten()] if self.mask_references else tokens
                    raw = self.normalization != "l2"
                    self.bank.add(kept if raw else self._normalised(kept), index)
                    if angle == 0:
                        seen.append(_Seen(index, rows, mask))
                    rows += len(kept)
                if angle == 0:
                    layout = Views([], views.tiles, views.cover)
                    references.append((layout, (image.shape[0], image.shape[1]), seen))
            if progress:
                progress("features", index + 1)
        if not rows:
            return
        if self.normalization == "standardize":
            self._standardize_bank()
        self._score_references(references, progress)

    def _score_references(
        self,
        references: list[tuple[Views, tuple[int, int], list[_Seen]]],
        progress: Progress | None,
    ) -> None:
        """Score references against the bank without their own patches and rotations.

        Nearest-neighbour distances only shrink as a bank grows, so these scores are at or above
        those against the whole bank, and the conformal promise holds.
        """
        if len(references) < 2:
            return
        step = max(1, len(references) / self.calibrate_on) if self.calibrate_on else 1
        scores, peaks = [], []
        for turn in range(int(len(references) / step)):
            layout, size, seen = references[int(turn * step)]
            merged = self.merge([self._score_seen(view) for view in seen], layout)
            scores.append(float(self._image_score(merged, size, layout.cover)))
            peaks.append(float(anomaly_map(merged, size, self.smoothing, layout.cover).max()))
            if progress:
                progress("threshold", turn + 1)
        self._set_good(scores, peaks, "leave-one-out")

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
