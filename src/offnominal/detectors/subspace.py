"""A subspace of patch features from sums that can be added to and taken from, and its detectors.

Lendering, Akdag and Bondarev, "SubspaceAD", CVPR 2026 (arXiv 2602.23013): features of good parts
lie near a linear subspace, and what lies outside of it is anomalous.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from offnominal.backbones.base import Backbone, Resize
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import FeatureDetector, ViewScores, tokens_of
from offnominal.detectors.fusion import Fusion, fuse_levels, is_plain_transformer
from offnominal.detectors.learned_state import must
from offnominal.detectors.options import LeaveOneOut

__all__ = ["Moments", "Subspace", "SubspaceModel"]


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of vectors, in float64.

    Attributes
    ----------
    count : int
        n.
    mean : Tensor of shape (D,), float64
    scatter : Tensor of shape (D, D), float64
        Sum of (x - mean)(x - mean)'; the covariance is this divided by n - 1.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dim: int, device: torch.device | None = None) -> Self:
        """Of no vector at all."""
        zeros = torch.zeros(dim, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros.new_zeros((dim, dim)))

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Of features (N, D)."""
        rows = features.double()
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def plus(self, other: Self) -> Self:
        """Of both sets together (Chan, Golub and LeVeque, 1979, eq. 2.1, for vectors)."""
        count = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        between = torch.outer(gap, gap) * (self.count * other.count / count)
        return type(self)(count, mean, self.scatter + other.scatter + between)

    def minus(self, other: Self) -> Self:
        """Of what is left when a part of the set is taken out."""
        count = self.count - other.count
        mean = self.mean + (self.mean - other.mean) * (other.count / count)
        gap = other.mean - mean
        between = torch.outer(gap, gap) * (count * other.count / self.count)
        return type(self)(count, mean, self.scatter - other.scatter - between)


@dataclass(frozen=True)
class Subspace:
    """The span of the leading principal components.

    Attributes
    ----------
    mean : Tensor of shape (D,), float32
    basis : Tensor of shape (D, D), float32
        All components as columns, by falling variance; their signs mean nothing.
    eigenvalues : Tensor of shape (D,), float64
        Variances along them.
    kept : int
        k: how many of them span the subspace.
    """

    mean: Tensor
    basis: Tensor
    eigenvalues: Tensor
    kept: int

    @classmethod
    def of(cls, moments: Moments, variance: float = 0.99) -> Self:
        """The smallest subspace that explains a share of the variance.

        Parameters
        ----------
        moments : Moments
        variance : float
            On (0, 1); the paper's is 0.99.
        """
        values, vectors = torch.linalg.eigh(moments.scatter / max(moments.count - 1, 1))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        share = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
        kept = int((share < variance).sum()) + 1
        # A direction must be left over, or every residual would be 0.
        kept = max(1, min(kept, len(values) - 1))
        basis = vectors.float().contiguous()
        return cls(moments.mean.float(), basis, values, kept)

    def residual(self, features: Tensor) -> Tensor:
        """Squared distance (N,) of features (N, D) from the subspace.

        The energy along the components that were left out is that of the residual,
        |x - mean - C C' (x - mean)|^2, without the difference of two large numbers.
        """
        outside = (features - self.mean) @ self.basis[:, self.kept :]
        return outside.square().sum(-1)

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features (N, D) projected onto the subspace."""
        components = self.basis[:, : self.kept]
        return self.mean + (features - self.mean) @ components @ components.T


class SubspaceModel(FeatureDetector):
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
    resize : {"short", "crop", "square"} or None
        The paper squashes images to a square.
    smoothing : float
        Of the anomaly map. 0.8 pixels is what the released 3 x 3 blur comes to.
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`.
    """

    default_backbone: ClassVar[str] = "dinov2_vitl14_reg"
    default_resolutions: ClassVar[Mapping[str, int]] = {"dinov2": 672}

    def __init__(
        self,
        variance: float = 0.99,
        fusion: Fusion | None = None,
        aggregate: str = "map-top1",
        resize: Resize | None = "square",
        smoothing: float = 0.8,
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, resize=resize, smoothing=smoothing, **options)
        check_range("variance", variance, above=0, below=1)
        if fusion is not None:
            check_choice("fusion", fusion, Fusion)
        self.variance = variance
        self.fusion = fusion
        self.begin()

    def begin(self) -> None:
        """Empty sums."""
        super().begin()
        self.count_, self.kept_ = 0, 0
        nothing = torch.empty(0, dtype=torch.float64, device=self._device)
        self.mean_ = self.scatter_ = self.eigenvalues_ = nothing
        self.basis_ = nothing.float()

    def check_learned(self) -> None:
        """A basis with as many directions as features have numbers."""
        super().check_learned()
        dim = len(self.mean_)
        sizes = self.scatter_.shape, self.basis_.shape, self.eigenvalues_.shape
        must(dim and sizes == ((dim, dim), (dim, dim), (dim,)), "the subspace is of several sizes")
        must(0 < self.kept_ <= dim and self.count_ > 0, "kept_ or count_ is out of range")

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Not strictly exact: a subspace of one reference fewer may score higher or lower."""
        return "approximate"

    def choose_levels(self, network: Backbone) -> Backbone:
        """Blocks -18 to -12, or a quarter to a half of the way up, unless it is no transformer."""
        if self.layers is not None or not is_plain_transformer(network):
            return network
        count = network.level_count
        first, last = (count - 18, count - 12) if count >= 18 else (count // 4, count // 2)
        return network.at_levels(range(first, last + 1))

    @property
    def moments(self) -> Moments:
        """Sums over all patches that were learned from."""
        return Moments(self.count_, self.mean_, self.scatter_)

    @property
    def subspace(self) -> Subspace:
        """The subspace that patches are scored by."""
        return Subspace(self.mean_.float(), self.basis_, self.eigenvalues_, self.kept_)

    def set_moments(self, moments: Moments) -> None:
        """Take over sums, and the subspace that they give."""
        found = Subspace.of(moments, self.variance)
        self.count_, self.mean_, self.scatter_ = moments.count, moments.mean, moments.scatter
        self.basis_, self.eigenvalues_, self.kept_ = found.basis, found.eigenvalues, found.kept

    def embed(self, pixels: Tensor) -> Tensor:
        """Fused features (D, gh, gw)."""
        with self._autocast():
            net = self.torch_network()
            features, _ = fuse_levels(net, pixels[None].to(self._device), self.fusion)
        return features[0].float()

    def exportable(self) -> str | None:
        """Why not; None: products with what was learned."""
        return None

    def compare(self, features: Tensor, without: int | None = None) -> ViewScores:
        """Squared distance of each patch from the subspace."""
        return self.outside(features, self.subspace)

    @staticmethod
    def outside(features: Tensor, subspace: Subspace) -> ViewScores:
        """The same of any subspace."""
        return ViewScores(subspace.residual(tokens_of(features)).reshape(features.shape[1:]))
