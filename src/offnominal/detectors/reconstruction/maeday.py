"""MAEDAY: a region is anomalous where a masked autoencoder fails to paint it in.

Schwartz, Arbelle, Karlinsky, Harary, Scheidegger, Doveh and Giryes, "MAEDAY: MAE for few- and
zero-shot AnomalY-Detection", 2022 (arXiv 2211.14307).
"""

import hashlib
import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.base import Backbone, Resize
from offnominal.backbones.mae import MaskedAutoencoder, draw_masks
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import FeatureDetector, ViewScores
from offnominal.errors import BackboneError, OptionError

__all__ = ["MAEDAY", "Errors", "ReconstructionError"]

Errors = Literal["hidden", "all"]

_AT_ONCE = 32  # masks that go through the network together


class ReconstructionError(Backbone):
    """A masked autoencoder as a backbone with one feature: the error of each pixel.

    The error is the squared difference between the image and what the decoder paints, in the
    normalised colours, summed over the three and averaged over masks.

    Parameters
    ----------
    network : MaskedAutoencoder
    masks : int
    mask_ratio : float
    errors : {"hidden", "all"}
        Whether a mask counts only for the patches that it hides.
    seed : int
    """

    kept: Tensor

    def __init__(
        self, network: MaskedAutoencoder, masks: int, mask_ratio: float, errors: Errors, seed: int
    ) -> None:
        super().__init__()
        self.network = network
        self.errors = errors
        self.name = network.name
        self.dim = self.stride = 1
        self.multiple = network.multiple
        self.mean, self.std = network.mean, network.std
        self.resolution, self.resize = network.resolution, network.resize
        self.untrained = network.untrained
        kept = draw_masks(network.side**2, masks, mask_ratio, seed)
        self.register_buffer("kept", kept, persistent=False)
        # What it gives depends on the masks as much as on the weights.
        known = f"{network.digest} {errors}".encode() + kept.numpy().tobytes()
        self.digest = hashlib.sha256(known).hexdigest()

    def forward(self, pixels: Tensor) -> Tensor:
        """Errors (B, 1, h, w), 0 where no mask hid the pixel; see :class:`Backbone`."""
        total = torch.zeros_like(pixels[:, 0])
        times = torch.zeros_like(total[:1])
        for kept in torch.split(self.kept, _AT_ONCE):
            painted = self.network.reconstruct(pixels, kept).float()
            error = (painted - pixels[:, None]).square().sum(2)
            counts = self._counts(kept, total.dtype)
            total += (error * counts).sum(1)
            times += counts.sum(0)
        return (total / times.clamp(min=1))[:, None]

    def _counts(self, kept: Tensor, dtype: torch.dtype) -> Tensor:
        """For each mask (M, K), where its errors count: (M, h, w) of 0 and 1."""
        side, patch = self.network.side, self.network.stride
        counts = torch.ones(len(kept), side * side, dtype=dtype, device=kept.device)
        if self.errors == "hidden":
            counts.scatter_(1, kept, 0)
        grid = counts.reshape(-1, side, side)
        return grid.repeat_interleave(patch, 1).repeat_interleave(patch, 2)


class MAEDAY(FeatureDetector):
    """Zero-shot detection by reconstruction: each image by itself, from random quarters of it.

    A masked autoencoder that was trained on photographs paints an image from a quarter of its
    patches, many times with other quarters. What follows from its surroundings is painted well; a
    defect is not. No good image is needed; good images give a threshold
    (:meth:`~offnominal.detectors.base.Detector.calibrate`).

    Parameters
    ----------
    masks : int
        32 in the paper. Time grows with it.
    mask_ratio : float
        Share of the patches that is hidden, on (0, 1); 0.75 in the paper.
    errors : {"hidden", "all"}
        Whether a mask counts only for the patches that it hides, which is what the network was
        trained to paint, or for the whole image.
    blur : float
        Standard deviation of a Gaussian on the errors, in pixels of what the network sees.
    seed : int
        Of the masks, which are the same for every image.
    aggregate : str
        ``max``: the largest blurred error. Other statistics of the errors do as well.
    backbone : str or None
        ``mae_vitb16`` (None), ``mae_vitl16`` or ``mae_vith14``.
    weights : str
        A file with encoder and decoder; see :class:`~offnominal.backbones.mae.MaskedAutoencoder`.
    resize : {"short", "crop", "square"} or None
        The network takes squares of 224 pixels; ``tile=224`` covers larger images with them.
    smoothing : float
        Of the anomaly map, beside ``blur``.
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`.

    Notes
    -----
    The authors published no code. Where the paper leaves things open, masks cover the image evenly
    (see :func:`~offnominal.backbones.mae.draw_masks`), and only hidden patches count. Its few-shot
    form, which trains the network on good images, is left out.
    """

    method: ClassVar[str] = "maeday"
    needs_references: ClassVar[bool] = False
    accepts_references: ClassVar[bool] = False
    default_backbone: ClassVar[str] = "mae_vitb16"
    backbone_family: ClassVar[str | None] = "mae_"

    def __init__(
        self,
        masks: int = 32,
        mask_ratio: float = 0.75,
        errors: Errors = "hidden",
        blur: float = 1.4,
        seed: int = 0,
        aggregate: str = "max",
        resize: Resize | None = "square",
        smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, resize=resize, smoothing=smoothing, **options)
        if masks < 2:
            raise OptionError(
                f"masks {masks}: give 2 or more; of a single one a part is never hidden"
            )
        check_range("mask_ratio", mask_ratio, above=0, below=1)
        check_choice("errors", errors, Errors)
        check_range("blur", blur, least=0)
        self.masks = masks
        self.mask_ratio = mask_ratio
        self.errors: Errors = errors
        self.blur = blur
        self.seed = seed

    def choose_levels(self, network: Backbone) -> Backbone:
        """The errors of a masked autoencoder's reconstructions."""
        if isinstance(network, MaskedAutoencoder):
            return ReconstructionError(network, self.masks, self.mask_ratio, self.errors, self.seed)
        if network.dim == 1 and network.stride == 1:  # has been chosen already
            return network
        raise BackboneError(
            f"--backbone {network.name}: {self.method} needs a network that paints images: "
            "mae_vitb16, mae_vitl16 or mae_vith14"
        )

    def exportable(self) -> str | None:
        """Why not; None: the masks are the same for every image."""
        return None

    def compare(self, features: Tensor, without: int | None = None) -> ViewScores:
        """The blurred error of each pixel."""
        return ViewScores(blurred(features[None], self.blur)[0, 0])


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Maps (B, 1, h, w) under a Gaussian that is cut off at twice its deviation.

    The border is mirrored, its own pixels not repeated.
    """
    if not sigma:
        return maps
    reach = math.ceil(2 * sigma)
    place = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    row = torch.exp(-place.square() / (2 * sigma**2))
    row = (row / row.sum()).reshape(1, 1, 1, -1)
    padded = F.pad(maps, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, row), row.transpose(2, 3))
