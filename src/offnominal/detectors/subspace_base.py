"""What SubspaceAD's forms share: the subspace, its map, and how they become an image score.

Lendering, Akdag and Bondarev, "SubspaceAD", CVPR 2026 (arXiv 2602.23013).
"""

import re
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.base import Backbone, Resize
from offnominal.detectors.base import Size
from offnominal.detectors.common import CommonOptions
from offnominal.detectors.middle import Fusion, MiddleLayers
from offnominal.detectors.subspace import Moments, Subspace
from offnominal.errors import OptionError
from offnominal.scoring import check_aggregate

__all__ = ["SubspaceModel", "SubspaceOptions", "reference_map"]

_RESOLUTION = 672  # the paper's, for DINOv2
_BLUR_SIGMA = 4.0  # of a kernel that is cut to 3 x 3, so nearly a plain mean


class SubspaceOptions(CommonOptions, total=False):
    """Options that SubspaceAD's forms share, for those who pass them on."""

    variance: float
    fusion: Fusion | None
    aggregate: str


class SubspaceModel(MiddleLayers):
    """What the few-shot and the batched form share: the subspace, and how it scores.

    Parameters
    ----------
    variance : float
        Share of the variance that the subspace explains, on (0, 1).
    fusion : {"mean", "concat"} or None
        How the levels of the backbone become one feature; None: the mean, where they have one
        shape.
    aggregate : str
        ``map-top1``: mean of the 1 % largest pixels of the released code's map (bilinear to the
        size that the network saw, then a 3 x 3 blur); ``map-top5`` likewise. The statistics of the
        patch scores that other methods use do as well: ``top1``, ``max``, ``mean``, ``map-max``.
    backbone : str or None
        None: what the weights file says of itself, otherwise ``dinov2_vitl14_reg``.
    layers : sequence of int or None
        None: the blocks -18 to -12 of a transformer, counted from the end; where it has fewer than
        18, those from a quarter to a half of the way up, which is the same in a ViT-L.
    resolution : int or None
        None: 672 with DINOv2, as in the paper, otherwise the backbone's default.
    resize : {"short", "square"} or None
        The paper squashes images to a square.
    smoothing : float
        Of the anomaly map. 0.8 pixels is what the released 3 x 3 blur comes to.
    **options
        See :class:`~offnominal.detectors.base.Detector`.
    """

    default_backbone: ClassVar[str] = "dinov2_vitl14_reg"

    mean_: Tensor
    scatter_: Tensor
    basis_: Tensor
    eigenvalues_: Tensor

    def __init__(  # type: ignore[misc]  # resize and smoothing have other defaults here
        self,
        variance: float = 0.99,
        fusion: Fusion | None = None,
        aggregate: str = "map-top1",
        resize: Resize | None = "square",
        smoothing: float = 0.8,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(resize=resize, smoothing=smoothing, **options)
        if not 0 < variance < 1:
            raise OptionError(f"variance {variance}: give a share between 0 and 1, as 0.99")
        self.check_fusion(fusion)
        if _map_share(aggregate) is None:
            check_aggregate(aggregate)
        self.variance = variance
        self.fusion = fusion
        self.aggregate = aggregate
        self.count_ = 0
        self.kept_ = 0
        self.prepare_state()

    @staticmethod
    def default_blocks(count: int) -> tuple[int, ...]:
        """-18 to -12, or a quarter to a half of the way up."""
        if count >= 18:
            return tuple(range(count - 18, count - 11))
        return tuple(range(count // 4, count // 2 + 1))

    def prepare_state(self) -> None:
        """Empty sums; those of a file are adopted whatever their size."""
        nothing = torch.empty(0, dtype=torch.float64, device=self._device)
        for name in ("mean_", "scatter_", "eigenvalues_"):
            self.register_buffer(name, nothing)
        self.register_buffer("basis_", nothing.float())

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor."""
        return super().extra_state() | {"count_": self.count_, "kept_": self.kept_}

    def _default_resolution(self, net: Backbone) -> int:
        return _RESOLUTION if "dinov2" in net.name else net.resolution

    @property
    def moments(self) -> Moments:
        """Sums over all patches that were learned from."""
        return Moments(self.count_, self.mean_, self.scatter_)

    @property
    def subspace(self) -> Subspace:
        """The subspace that patches are scored by."""
        return Subspace(self.mean_.float(), self.basis_, self.eigenvalues_, self.kept_)

    def _learn(self, moments: Moments) -> None:
        found = Subspace.of(moments, self.variance)
        self.count_, self.mean_, self.scatter_ = moments.count, moments.mean, moments.scatter
        self.basis_, self.eigenvalues_, self.kept_ = found.basis, found.eigenvalues, found.kept

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Fused features (N, D) of one view (3, h, w), and their grid."""
        maps = self.features(pixels[None])[0]
        return maps.flatten(1).T.contiguous(), (maps.shape[1], maps.shape[2])

    def _image_score(
        self,
        patch_scores: Tensor,
        size: Size,
        cover: Size | None = None,
        image_term: float | None = None,
    ) -> Tensor:
        share = _map_share(self.aggregate)
        if share is None:
            return super()._image_score(patch_scores, size, cover)
        stride = self.load_network().stride
        rows, columns = patch_scores.shape
        pixels = reference_map(patch_scores, (rows * stride, columns * stride)).flatten()
        return pixels.topk(max(1, int(len(pixels) * share))).values.mean()


def reference_map(patch_scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The released code's map: OpenCV's bilinear resize, then its 3 x 3 Gaussian blur of sigma 4.

    Parameters
    ----------
    patch_scores : Tensor of shape (gh, gw), float32
    size : (H, W)

    Returns
    -------
    Tensor of shape (H, W), float32
    """
    large = F.interpolate(patch_scores[None, None], size=size, mode="bilinear", align_corners=False)
    place = torch.arange(-1.0, 2.0, device=patch_scores.device)
    row = torch.exp(-place.square() / (2 * _BLUR_SIGMA**2))
    row = (row / row.sum()).reshape(1, 1, 1, 3)
    padded = F.pad(large, (1, 1, 1, 1), mode="reflect")
    return F.conv2d(F.conv2d(padded, row), row.transpose(2, 3))[0, 0]


def _map_share(aggregate: str) -> float | None:
    """Share of the map's pixels that ``map-topP`` averages; None for other ways."""
    found = re.fullmatch(r"map-top(\d+(?:\.\d+)?)", aggregate)
    if found is None or not 0 < float(found[1]) <= 100:
        return None
    return float(found[1]) / 100
