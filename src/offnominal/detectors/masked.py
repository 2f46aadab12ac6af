"""Patch features brought to one scale, and a mask of those that belong to the part."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from offnominal.backbones.catalogue import Normalize
from offnominal.captions import titled
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import FeatureDetector, tokens_of
from offnominal.detectors.learned_state import must
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
from offnominal.memory.search.cutting import batches
from offnominal.pictures import outline
from offnominal.scans.draw import shown_with
from offnominal.scans.scan import Scan, is_scan
from offnominal.scoring import Size

__all__ = ["MaskedFeatures", "channel_scale", "unit_rows"]

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_TOGETHER = 2**12  # rows that are summed up at once


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

    speaks_arrays = True

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
        self.centre_, self.scale_ = np.zeros(1, np.float32), np.ones(1, np.float32)

    def check_learned(self) -> None:
        """The shift has a value for each channel, and the test of the mask is one."""
        super().check_learned()
        must(self.centre_.shape == self.scale_.shape, "centre_ and scale_ are of two lengths")
        must(self.centre_.ndim == 1 and self.centre_.size, "centre_ is no vector")
        must((self.scale_ > 0).all(), "scale_ is not above 0")
        if self.masking_test_ is not None:
            told = TypeAdapter(MaskingTest).validate_python(self.masking_test_)
            must(asdict(told) == self.masking_test_, "masking_test_ says more than it can")

    # -- one scale ----------------------------------------------------------------------------

    @property
    def normalization(self) -> Normalize:
        """What is done to the features before distances are measured."""
        return self.normalize or self.load_network().normalize

    def normalised(self, tokens: Floats) -> Floats:
        """Tokens (n, D) as distances are measured between them."""
        if self.normalization == "l2":
            return unit_rows(tokens)
        shifted: Floats = (tokens - self.centre_) / self.scale_
        return shifted

    def standardize(self, bank: MemoryBank) -> None:
        """Shift and scale a bank in place by its own channels' mean and deviation, if wished."""
        if self.normalization != "standardize":
            return
        rows = bank.take(slice(None))
        self.centre_ = rows.mean(0, dtype=np.float64).astype(np.float32)
        self.scale_ = channel_scale(rows)
        bank.standardize_(self.centre_, self.scale_)

    def patch_distance(self, squared: Floats) -> Floats:
        """Cosine distance of unit vectors, or Euclidean distance, from the squared one (n, k)."""
        mean: Floats = squared.mean(-1)
        return mean * np.float32(0.5) if self.normalization == "l2" else np.sqrt(mean)

    # -- the mask -----------------------------------------------------------------------------

    def decide_mask(self, features: Floats) -> None:
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

    def foreground(self, features: Floats) -> Mask:
        """Mask (gh, gw) of the patches that count: all of them when the mask is off.

        They all count, too, where it would leave none: an image in which no object is found, as a
        black one, is not good for having nothing to look at.
        """
        mask = self.object_mask(features)
        return mask if mask.any() else np.ones_like(mask)

    def object_mask(self, features: Floats) -> Mask:
        """The mask as it comes out, which may leave no patch at all."""
        grid = _grid(features)
        if not self.masks_:
            return np.ones(grid, np.bool_)
        tokens = tokens_of(features)
        return foreground_mask(tokens, grid, self.component_threshold, self.morphology)

    def foreground_picture(self, image: np.ndarray) -> np.ndarray:
        """What the mask is, and whether it is used: uint8 (height, width, 3), with words.

        A good image, how the first principal component of its features tells object from
        background, and what of the image is looked at: all of it where no mask is used.

        Parameters
        ----------
        image : uint8 array of shape (H, W, 3), or float32 (H, W, 6) of a scan
        """
        [view, *_] = self.views(image)
        features = self.patches_of(self.embedded(view.pixels))
        tokens, grid = tokens_of(features), _grid(features)
        component = first_component(tokens).reshape(grid)
        span = max(float(np.ptp(component)), 1e-12)
        grey = (255 * (component - component.min()) / span).astype(np.uint8)
        size = (image.shape[0], image.shape[1])
        large, tells = _enlarged(self.foreground(features), size), _enlarged(grey, size)
        if is_scan(image):
            scan = Scan.of(image)
            _, tells = shown_with(scan, tells.astype(np.float32))
            image, large = shown_with(scan, large.astype(np.float32))
            tells, large = tells.astype(np.uint8), large > 0
        seen = outline(np.where(large[..., None], image, image // 3), large)
        reason = f": {self.masking_test_['reason']}" if self.masking_test_ else ""
        used = "Foreground mask: used" if self.masks_ else "No foreground mask"
        words = "what is dark at the right counts for nothing" if self.masks_ else (
            "the whole picture is looked at"
        )  # fmt: skip
        return titled(
            used + reason,
            words,
            [
                ("a good picture", image),
                (
                    "object from background" if self.masks_ else "what a mask would go by",
                    np.repeat(tells[..., None], 3, axis=2),
                ),
                ("what is looked at", seen if self.masks_ else image),
            ],
        )


def unit_rows(rows: Floats) -> Floats:
    """Rows (n, D) brought to length 1; those of no length stay as they are."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    unit: Floats = rows / np.maximum(norms, np.float32(1e-12))[:, None]
    return unit


def channel_scale(rows: Floats) -> Floats:
    """Deviation (D,) of each channel of rows (n, D), to divide by."""
    centre = rows.mean(0, dtype=np.float64)
    total = np.zeros_like(centre)
    for some in batches(len(rows), _TOGETHER):
        total += np.square(rows[some] - centre).sum(0)
    deviation = np.sqrt(total / len(rows))
    # A channel that never varies carries nothing; dividing by it would only blow up noise.
    return np.where(deviation > 1e-6, deviation, 1).astype(np.float32)


def _enlarged(grid: NDArray[Any], size: Size) -> NDArray[Any]:
    """Values (gh, gw) at the pixels of an image, each that of its patch."""
    (rows, columns), (height, width) = grid.shape, size
    y, x = np.arange(height) * rows // height, np.arange(width) * columns // width
    large: NDArray[Any] = grid[y[:, None], x]
    return large


def _grid(features: Floats) -> tuple[int, int]:
    return features.shape[1], features.shape[2]
