"""Patch features brought to one scale, and a mask of those that belong to the part."""

from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from offnominal.backbones.base import Normalize
from offnominal.detectors.features import FeatureDetector, tokens_of
from offnominal.detectors.learned_state import must
from offnominal.detectors.options import check_choice, check_range
from offnominal.errors import OptionError
from offnominal.foreground import (
    MaskingTest,
    MaskMode,
    Morphology,
    first_component,
    foreground_mask,
    masking_test,
)
from offnominal.memory import MemoryBank
from offnominal.pictures import beside, colour_map, outline

__all__ = ["MaskedFeatures", "channel_scale"]


class MaskedFeatures(FeatureDetector):
    """What AnomalyDINO's forms share: normalised features, and a mask of the background.

    Parameters
    ----------
    mask : {"auto", "on", "off"}
        Whether background patches score 0. ``auto``: the masking test decides once.
    mask_threshold : float or None
        Where the first principal component separates object and background; None: the backbone's
        own (10 for DINOv2), or Otsu's.
    morphology : {"2d", "reference"}
        Dilation and closing of the mask in two dimensions, or as the released code runs them.
    normalize : {"l2", "standardize", "none"} or None
        ``l2``: cosine distance. ``standardize``: each channel by its mean and deviation over the
        good images, then Euclidean distance. None: the backbone's own choice.
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`.
    """

    def __init__(
        self,
        mask: MaskMode = "auto",
        mask_threshold: float | None = None,
        morphology: Morphology = "2d",
        normalize: Normalize | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_choice("mask", mask, MaskMode)
        check_choice("morphology", morphology, Morphology)
        if normalize is not None:
            check_choice("normalize", normalize, Normalize)
        if mask_threshold is not None:
            check_range("mask_threshold", mask_threshold, least=0, most=1e15)
        if mask == "on" and self.tile:
            raise OptionError("--mask on does not go with --tile: a tile rarely shows an object")
        self.mask: MaskMode = mask
        self.mask_threshold = mask_threshold
        self.morphology: Morphology = morphology
        self.normalize = normalize

    def begin(self) -> None:
        """No mask is decided on, and features are as they are."""
        super().begin()
        self.masks_ = False
        self.masking_test_: dict[str, Any] | None = None
        self.centre_, self.scale_ = torch.zeros(1), torch.ones(1)

    def check_learned(self) -> None:
        """The shift has a value for each channel, and the test of the mask is one."""
        super().check_learned()
        must(self.centre_.shape == self.scale_.shape, "centre_ and scale_ are of two lengths")
        must(self.centre_.ndim == 1 and self.centre_.numel(), "centre_ is no vector")
        must((self.scale_ > 0).all(), "scale_ is not above 0")
        if self.masking_test_ is not None:
            told = TypeAdapter(MaskingTest).validate_python(self.masking_test_)
            must(asdict(told) == self.masking_test_, "masking_test_ says more than it can")

    # -- one scale ----------------------------------------------------------------------------

    @property
    def normalization(self) -> Normalize:
        """What is done to the features before distances are measured."""
        return self.normalize or self.load_network().normalize

    def normalised(self, tokens: Tensor) -> Tensor:
        """Tokens (n, D) as distances are measured between them."""
        if self.normalization == "l2":
            return F.normalize(tokens, dim=-1)
        return (tokens - self.centre_.to(tokens)) / self.scale_.to(tokens)

    def standardize(self, bank: MemoryBank) -> None:
        """Shift and scale a bank in place by its own channels' mean and deviation, if wished."""
        if self.normalization != "standardize":
            return
        rows = bank.take(slice(None))
        self.centre_, self.scale_ = rows.mean(0), channel_scale(rows)
        bank.standardize_(self.centre_, self.scale_)

    def patch_distance(self, squared: Tensor) -> Tensor:
        """Cosine distance of unit vectors, or Euclidean distance, from the squared one (n, k)."""
        if self.normalization == "l2":
            return squared.mean(-1) / 2
        return squared.mean(-1).sqrt()

    # -- the mask -----------------------------------------------------------------------------

    def decide_mask(self, features: Tensor) -> None:
        """Choose once, on the first image's features (D, gh, gw), whether there is a mask."""
        self.masks_ = self.mask == "on"
        self.masking_test_ = None
        if self.mask == "auto" and not self.tile:
            found = masking_test(tokens_of(features), _grid(features), self.component_threshold)
            self.masks_ = found.passed
            self.masking_test_ = asdict(found)

    @property
    def component_threshold(self) -> float | None:
        """Where the first principal component parts object and background; None: Otsu's."""
        if self.mask_threshold is not None:
            return self.mask_threshold
        return self.load_network().mask_threshold

    def foreground(self, features: Tensor) -> Tensor:
        """Mask (gh, gw) of the patches that count: all of them when the mask is off.

        They all count, too, where it would leave none: an image in which no object is found, as a
        black one, is not good for having nothing to look at.
        """
        mask = self.object_mask(features)
        return mask if mask.any() else torch.ones_like(mask)

    def object_mask(self, features: Tensor) -> Tensor:
        """The mask as it comes out, which may leave no patch at all."""
        grid = _grid(features)
        if not self.masks_:
            return torch.ones(grid, dtype=torch.bool, device=features.device)
        tokens = tokens_of(features)
        return foreground_mask(tokens, grid, self.component_threshold, self.morphology)

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
        [view, *_] = self.views(image)
        features = self.features(torch.from_numpy(view.pixels)[None])[0]
        tokens, grid = tokens_of(features), _grid(features)
        component = first_component(tokens).reshape(grid).cpu().numpy().astype(np.float32)
        mask = foreground_mask(tokens, grid, self.component_threshold, self.morphology)
        size, nearest = (image.shape[1], image.shape[0]), cv2.INTER_NEAREST
        large = cv2.resize(mask.cpu().numpy().astype(np.uint8), size, interpolation=nearest)
        heat = cv2.resize(component, size, interpolation=nearest).astype(np.float32)
        shaded = np.where(large[..., None] > 0, image, image // 3)
        return beside(
            image,
            colour_map(heat, float(heat.min()), float(heat.max())),
            outline(shaded, large > 0),
        )


def channel_scale(rows: Tensor) -> Tensor:
    """Deviation (D,) of each channel of rows (n, D), to divide by."""
    deviation = rows.std(0, correction=0)
    # A channel that never varies carries nothing; dividing by it would only blow up noise.
    return torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))


def _grid(features: Tensor) -> tuple[int, int]:
    return features.shape[1], features.shape[2]
