"""A Gaussian of global features at every level of a network, and the distance to it.

Rippel, Mertens and Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features
for Anomaly Detection", ICPR 2020 (arXiv 2005.14140).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from offnominal.backbones.base import Resize
from offnominal.detectors.features import FeatureDetector, ViewScores
from offnominal.detectors.joining import joined_levels
from offnominal.detectors.learned_state import must
from offnominal.detectors.options import LeaveOneOut, Progress
from offnominal.detectors.shrinkage import shrinkage
from offnominal.errors import OptionError

__all__ = ["GlobalGaussian", "ShrunkGaussian"]

_LEAST_IMAGES = 4  # of two, which one left out of three leaves, no r can be estimated
_LEAST = 1e-12  # of a variance: images that a network cannot tell apart have none at all


class ShrunkGaussian:
    """Mean and shrunk covariance of vectors, and the same without any one of them.

    With the covariance S = 1/N sum (x - mean)(x - mean)' and its mean variance m = tr S / D, what
    counts is ``(1 - r) S + r m I`` (:func:`~offnominal.detectors.shrinkage.shrinkage`).

    Parameters
    ----------
    vectors : Tensor of shape (N, D), float64
        N is 3 or more.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.mean = vectors.mean(0)
        self._own = vectors - self.mean
        self._count, self._dim = vectors.shape
        self._products = self._own @ self._own.T
        values, self._axes = torch.linalg.eigh(self._own.T @ self._own / self._count)
        self._variances = values.clamp(min=0)

    def whitening(self) -> Tensor:
        """W (D, D) such that ``|W (x - mean)|`` is the Mahalanobis distance of x."""
        norms = self._products.diagonal()
        scatter = self._products.square().sum() / self._count**2
        kept, added = shrinkage(self._count, self._dim, norms, norms.sum() / self._count, scatter)
        spread = (kept * self._variances + added).clamp(min=_LEAST)
        found: Tensor = (self._axes / spread.sqrt()).T
        return found

    def distance_left_out(self, x: Tensor, number: int) -> Tensor:
        """Mahalanobis distance of x (D,) to the Gaussian of all vectors but one; N is 4 or more.

        With the deviation e of the one left out, the others' mean is ``mean - e / (N - 1)`` and
        their covariance ``a S - b e e'``, ``a = N / (N - 1)``, ``b = a / (N - 1)``. Shrunk by their
        own r, that is a matrix with the axes of S less a multiple of e e', whose inverse is known
        (Sherman and Morrison); and r needs nothing but products of the deviations. So this is what
        learning from the others would give, but for rounding.
        """
        left = self._count - 1
        a = self._count / left
        b = a / left
        to_own, norms = self._products[number], self._products.diagonal()
        norm = norms[number]
        others = norms + 2 * to_own / left + norm / left**2
        others = torch.cat([others[:number], others[number + 1 :]])
        across = to_own.square().sum() / self._count  # e' S e
        scatter = self._products.square().sum() / self._count**2
        scatter = a**2 * scatter - 2 * a * b * across + b**2 * norm**2
        kept, added = shrinkage(left, self._dim, others, others.sum() / left, scatter)
        spread = (kept * a * self._variances + added).clamp(min=_LEAST)
        own = self._own[number]
        difference = (x - self.mean + own / left) @ self._axes / spread.sqrt()
        own = own @ self._axes / spread.sqrt()
        taken = kept * b
        rest = (1 - taken * own @ own).clamp(min=_LEAST)
        squared: Tensor = difference @ difference + taken * (own @ difference) ** 2 / rest
        return squared.sqrt()


class GlobalGaussian(FeatureDetector):
    """A multivariate Gaussian of spatially averaged features, one for each level of a network.

    The score is the sum over the levels of the Mahalanobis distance to the mean (section III-B);
    the covariances are shrunk, so that fewer images than dimensions are enough. Nothing is trained.

    Nothing is said of where a fault lies: the grid has one patch, the map is the score at every
    pixel, and a rejected image is one region. A small defect drowns in the means.

    To set the threshold each reference is scored without itself, exactly. Unlike the distance to a
    neighbour this may be less than from all of them, so it is called approximate. Memory: 4 D^2
    bytes for a level of D channels.

    Parameters
    ----------
    aggregate : str
        Makes no difference, since the map is constant.
    resize : {"short", "crop", "square"}
        ``square`` as in the paper.
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`. The paper's network is
        EfficientNet-B4 at 380 pixels, the default, with nine levels; timm gives five of them, at
        the ends of its strides, and all are used. Of a transformer: the last five blocks.

    Examples
    --------
    >>> detector = GlobalGaussian(backbone="resnet18").fit(["good/0.png", "good/1.png", ...])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "gaussian"
    looks: ClassVar[bool] = True
    takes_defects: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    default_backbone: ClassVar[str] = "tf_efficientnet_b4.aa_in1k"
    default_layers: ClassVar[tuple[int, ...] | None] = (-5, -4, -3, -2, -1)
    takes_tiles: ClassVar[bool] = False

    def __init__(
        self, aggregate: str = "max", resize: Resize | None = "square", **options: Any
    ) -> None:
        super().__init__(aggregate=aggregate, resize=resize, **options)
        self.begin()

    def begin(self) -> None:
        """No Gaussian yet."""
        super().begin()
        self.dims_: list[int] = []
        self.mean_ = torch.empty(0)
        self.whitening_ = torch.empty(0)
        self._learned: list[Sequence[Tensor]] = []
        self._gaussians: list[ShrunkGaussian] = []

    def release(self) -> None:
        """What leaves a reference out is needed no more."""
        self._gaussians = []

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """As for PaDiM: of one reference fewer a Gaussian may score higher or lower."""
        return "approximate"

    def embed(self, pixels: Tensor) -> list[Tensor]:
        """The mean over the positions of every level, (D,) each."""
        return [one[0].mean((1, 2)) for one in self.levels(pixels[None]).maps]

    def patches_of(self, features: Sequence[Tensor]) -> Tensor:
        """Vectors of all levels, of length 1 each, as the one patch that there is."""
        return joined_levels([one[None, :, None, None] for one in features], (1, 1))

    def learn_features(
        self, number: int, features: Sequence[Tensor], view: int, upright: bool
    ) -> None:
        """Keep the vectors."""
        self._learned.append(features)

    def finish(self, progress: Progress | None) -> None:
        """A Gaussian for every level."""
        if len(self._learned) < _LEAST_IMAGES:
            raise OptionError(
                f"{self.method} learns how good images vary, and {len(self._learned)} of them do "
                f"not say; give {_LEAST_IMAGES} or more, better dozens, or use --method dn2"
            )
        levels = [torch.stack(one).double() for one in zip(*self._learned, strict=True)]
        self._learned = []
        self._gaussians = [ShrunkGaussian(one) for one in levels]
        self.dims_ = [one.shape[1] for one in levels]
        self.mean_ = torch.cat([one.mean for one in self._gaussians]).float()
        whitening = [one.whitening().flatten() for one in self._gaussians]
        self.whitening_ = torch.cat(whitening).float()

    def check_learned(self) -> None:
        """A mean and a square matrix for every level."""
        super().check_learned()
        must(self.dims_ and self.mean_.shape == (sum(self.dims_),), "mean_ is not dims_ long")
        squares = sum(dim * dim for dim in self.dims_)
        must(self.whitening_.shape == (squares,), "whitening_ does not fit dims_")

    def exportable(self) -> str | None:
        """Why not; None: products with what was learned."""
        return None

    def compare(self, features: Sequence[Tensor], without: int | None = None) -> ViewScores:
        """The distance, summed over the levels, as a grid of one patch."""
        if without is not None:
            found = [
                one.distance_left_out(x.double(), without)
                for one, x in zip(self._gaussians, features, strict=True)
            ]
        else:
            means = torch.split(self.mean_, self.dims_)
            whitening = torch.split(self.whitening_, [dim * dim for dim in self.dims_])
            found = [
                torch.linalg.vector_norm(w.view(len(x), -1) @ (x - mean))
                for w, x, mean in zip(whitening, features, means, strict=True)
            ]
        return ViewScores(torch.stack(found).sum().float().view(1, 1))
