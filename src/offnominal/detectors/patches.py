"""Detectors that keep normalised patch features in a bank, and may mask the background."""

from dataclasses import asdict
from typing import Any, Literal, Unpack, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.base import Normalize
from offnominal.detectors.banked import Banked
from offnominal.detectors.base import Detector
from offnominal.detectors.common import CommonOptions, Storage, check_bank, check_choice
from offnominal.detectors.reach import as_stored
from offnominal.errors import OptionError
from offnominal.foreground import Morphology, first_component, foreground_mask, masking_test
from offnominal.memory import MemoryBank
from offnominal.pictures import beside, colour_map, outline
from offnominal.scoring import check_aggregate

__all__ = ["MaskMode", "PatchDetector", "PatchOptions"]

MaskMode = Literal["auto", "on", "off"]


class PatchOptions(CommonOptions, total=False):
    """Options that :class:`PatchDetector` adds, for those who pass them on."""

    mask: MaskMode
    mask_threshold: float | None
    morphology: Morphology
    aggregate: str
    normalize: Normalize | None
    search_memory: int
    storage: Storage
    search: str


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
    storage : {"fp32", "fp16", "int8"}
        How the bank keeps its patches: in full, a half or a quarter of the size. Patches that are
        looked up are rounded in the same way, so that thresholds hold. Standardised features take
        ``fp32``.
    search : str
        ``exact``; or an approximate index with a target for its recall, for very large banks:
        ``recall=0.99``, or a kind and ``recall=0.99`` with a comma between (see
        :func:`~offnominal.memory.index_choice.parse_search`).
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
        storage: Storage = "fp32",
        search: str = "exact",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        check_bank(storage, search)
        if search != "exact" and not issubclass(type(self), Banked):
            raise OptionError(
                f"--search {search}: {self.method} compares every patch with very many others of "
                "its batch, which no index finds; leave it out"
            )
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
        self.storage: Storage = storage
        self.search = search
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
        if self.normalization == "standardize" and self.storage != "fp32":
            raise OptionError(
                f"--storage {self.storage}: the features of {self.load_network().name} are "
                "standardised once all are there, which takes --storage fp32, or --set normalize=l2"
            )
        self.bank = self._new_bank(self.load_network().dim)
        self.centre_ = torch.zeros(1, device=self._device)
        self.scale_ = torch.ones(1, device=self._device)
        super().prepare_state()

    def _new_bank(self, dim: int) -> MemoryBank:
        memory = self.search_memory * 2**20
        return MemoryBank(dim, memory=memory, storage=self.storage).to(self._device)

    def _standardize_bank(self) -> None:
        """Shift and scale the bank in place by its own channels' mean and deviation."""
        rows = self.bank.take(slice(None))
        self.centre_ = rows.mean(0)
        deviation = rows.std(0, correction=0)
        # A channel that never varies carries nothing; dividing by it would only blow up noise.
        self.scale_ = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
        self.bank.standardize_(self.centre_, self.scale_)

    def _normalised(self, tokens: Tensor) -> Tensor:
        """Tokens (N, D) as the bank holds them."""
        if self.normalization == "l2":
            return F.normalize(tokens, dim=-1)
        return (tokens - self.centre_) / self.scale_

    def _stored(self, tokens: Tensor) -> Tensor:
        """Normalised tokens as the bank would give them back."""
        return as_stored(self._normalised(tokens), self.storage)

    def _restate(self, bank: int, part: MemoryBank, other: Detector) -> None:
        """Bring rows of another detector's bank to the scale of this one's."""
        assert isinstance(other, PatchDetector)
        if self.normalization == "standardize":
            shift = (self.centre_ - other.centre_.to(self.centre_)) / other.scale_.to(self.scale_)
            part.standardize_(shift, self.scale_ / other.scale_.to(self.scale_))

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
        component = first_component(tokens).reshape(grid).cpu().numpy().astype(np.float32)
        mask = foreground_mask(tokens, grid, self._mask_threshold, self.morphology)
        large = cv2.resize(
            mask.cpu().numpy().astype(np.uint8), size, interpolation=cv2.INTER_NEAREST
        )
        heat = cv2.resize(component, size, interpolation=cv2.INTER_NEAREST).astype(np.float32)
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
