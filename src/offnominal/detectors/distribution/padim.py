"""PaDiM: a Gaussian of the features at each position, and the Mahalanobis distance to it.

Defard, Setkov, Loesch and Audigier, "PaDiM: a Patch Distribution Modeling Framework for Anomaly
Detection and Localization", ICPR workshops 2021 (arXiv 2011.08785).
"""

import random
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.base import Resize
from offnominal.checks import check_choice, check_range
from offnominal.detectors.distribution.gaussians import PENDING, RunningGaussians
from offnominal.detectors.features import FeatureDetector, ViewScores
from offnominal.detectors.learned_state import must
from offnominal.detectors.options import LeaveOneOut, Progress
from offnominal.errors import ModelFileError, OptionError
from offnominal.scoring import Scores

__all__ = ["PaDiM", "Reduction"]

Reduction = Literal["random", "pca"]

_PAPERS_DIMENSIONS = {"wide_resnet": 550}  # of other families 100


class PaDiM(FeatureDetector):
    """A multivariate Gaussian at each position of the image.

    The levels are joined at the finest one's grid, each coarser vector repeated (section III-A),
    and reduced to d dimensions (III-B). With N references, each position has the mean and

    ``covariance = 1/(N - 1) sum (x - mean)(x - mean)' + ridge I``    (equation 1)

    and a patch scores ``sqrt((x - mean)' covariance^-1 (x - mean))`` (equation 2). The image score
    is the maximum of the smoothed map (III-C).

    Parts must lie in the same place in every image, and every image is brought to one grid.

    Parameters
    ----------
    dimensions : int or None
        d. None: the paper's, 550 for WideResNet-50-2 and 100 for others; all, where there are no
        more.
    reduction : {"random", "pca"}
        ``random``: d of the joined channels are drawn, the paper's choice. ``pca``: the d first
        principal components of all patches of the references.
    ridge : float
        Added to every variance, 0.01 in the paper; above 0. It keeps the covariance invertible
        where there are no more references than dimensions. Directions in which the references do
        not vary then count with a deviation of ``sqrt(ridge)``; one reference gives Euclidean
        distances over it.
    seed : int
        Of the random draw. 1024, the default, draws the channels that xiahaifeng1995's code does.
    calibrate_on : int
        0: every reference is scored to set the threshold. A number: at most so many, drawn at
        random.
    aggregate : str
        ``map-max`` as in the paper, or as for every method.
    resize : {"short", "crop", "square"}
        ``square``, so that all images have one grid; the others need images of one shape.
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`. The paper's networks are
        ResNet-18, the default, and WideResNet-50-2.

    Notes
    -----
    Memory, with P positions: 4 P d^2 bytes when fitted and on disk. During :meth:`fit` 12 P d^2
    bytes, however many the references are, about 400 P d bytes for images on their way, and 4 P d
    bytes for each reference that is to be scored (with ``pca`` its pixels). ResNet-18 at 224
    pixels: P = 3,136 and d = 100, so 125 MB, and 500 MB to fit. WideResNet-50-2: d = 550, so
    3.8 GB, and 12 GB to fit.

    To set the threshold each reference is scored against the Gaussians of the others, exactly (see
    :func:`left_out`); with ``pca`` the components are those of all references. Unlike a distance to
    the nearest neighbour a Mahalanobis distance is not bound to fall as references are added. It
    does so on average, so the threshold errs to the safe side, most of all where N is below d; for
    the promise itself use :meth:`calibrate`. Folds of several references (Vovk, 2015) would err
    more: their Gaussians are thinner, and the more so the fewer references there are.

    Examples
    --------
    >>> from offnominal import PaDiM
    >>> detector = PaDiM(backbone="resnet18").fit(["good/0.png", "good/1.png", "good/2.png"])
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.score, prediction.is_anomalous, prediction.regions()
    """

    method: ClassVar[str] = "padim"
    looks: ClassVar[bool] = True
    takes_defects: ClassVar[bool] = True
    default_backbone: ClassVar[str] = "resnet18"
    # The second to the fourth of a residual network's five levels, of strides 4, 8 and 16.
    default_layers: ClassVar[tuple[int, ...] | None] = (-4, -3, -2)
    # The paper scales to 256 and looks at the middle 224 pixels. A fault may lie at the rim, so the
    # whole image is scaled to 224, which gives grids of the same size.
    default_resolutions: ClassVar[Mapping[str, int]] = {"resnet": 224, "wide_resnet": 224}
    takes_tiles: ClassVar[bool] = False

    def __init__(
        self,
        dimensions: int | None = None,
        reduction: Reduction = "random",
        ridge: float = 0.01,
        seed: int = 1024,
        calibrate_on: int = 0,
        aggregate: str = "map-max",
        resize: Resize | None = "square",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, resize=resize, **options)
        check_choice("reduction", reduction, Reduction)
        if dimensions is not None:
            check_range("dimensions", dimensions, whole=True, least=1)
        check_range("ridge", ridge, above=0)
        check_range("calibrate_on", calibrate_on, whole=True, least=0)
        self.dimensions = dimensions
        self.reduction: Reduction = reduction
        self.ridge = ridge
        self.seed = seed
        self.calibrate_on = calibrate_on
        self.begin()

    def begin(self) -> None:
        """No distribution yet."""
        super().begin()
        self.grid_: list[int] = []
        self.mean_ = torch.empty(0, 0)
        self.whitening_ = torch.empty(0, 0, 0)
        self.channels_ = torch.empty(0, dtype=torch.int64)
        self.components_ = torch.empty(0, 0)
        self.release()

    def release(self) -> None:
        """The sums take twice the room of what is kept."""
        self._gaussians = RunningGaussians()
        self._patches = RunningGaussians()  # of all positions together, for ``pca``
        self._pixels: list[Tensor] = []
        self._own: tuple[int, Tensor] | None = None  # the reference scored last, its features

    def check_learned(self) -> None:
        """A Gaussian for every position, over the channels that are kept."""
        super().check_learned()
        must(len(self.grid_) == 2 and min(self.grid_) > 0, "grid_ is none")
        kept = self.components_.shape[1] if self.components_.numel() else len(self.channels_)
        shape = (self.grid_[0] * self.grid_[1], kept)
        must(kept and self.mean_.shape == shape, "mean_ is not one for each position")
        must(self.whitening_.shape == (*shape, kept), "whitening_ is not one for each position")
        must((self.channels_ >= 0).all(), "channels_ are below 0")

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Not strictly exact: a Gaussian of one reference fewer may score higher or lower."""
        return "approximate"

    def learn(self, number: int, image: np.ndarray) -> Tensor:
        """Add a reference to the sums; its features are kept, or with ``pca`` its pixels."""
        pixels = torch.from_numpy(self.views(image)[0].pixels)
        if self.looked_at is None:
            every = self._joined(pixels)
        else:
            every, grid = self.looked_at(number)
            self._check_grid(grid.tolist())
        if number == 0:
            self._choose_channels(every.shape[1])
        if self.reduction == "pca":
            for patch in torch.split(every, PENDING):
                self._patches.add(patch[:, None])
            self._pixels.append(pixels)
            return pixels
        features = self._reduced(every)
        self._gaussians.add(features[None])
        return features

    def look(self, number: int, image: np.ndarray) -> list[Tensor]:
        """All levels at the finest one's positions, (P, D), and the grid of these."""
        every = self._joined(torch.from_numpy(self.views(image)[0].pixels))
        return [every, torch.tensor(self.grid_)]

    def finish(self, progress: Progress | None) -> None:
        """Factorise the covariances."""
        if self.reduction == "pca":
            self._choose_components()
            for done, pixels in enumerate(self._pixels, start=1):
                self._gaussians.add(self.embed(pixels)[None])
                if progress:
                    progress("distributions", done)
        self.whitening_ = self._gaussians.factorise(self.ridge)
        self.mean_ = self._gaussians.mean.float()
        if len(self.references) > 1:
            self._gaussians.prepare_left_out(self.ridge)

    def score_reference(self, number: int, kept: Tensor) -> Scores:
        """Score a reference by the Gaussians of the others.

        Its features stay for :meth:`compare` until the next one is scored.
        """
        features = self.embed(kept) if self.reduction == "pca" else kept
        self._own = number, features
        return super().score_reference(number, [features])

    def embed(self, pixels: Tensor) -> Tensor:
        """Reduced features of every position, (P, d)."""
        return self._reduced(self._joined(pixels))

    def patches_of(self, features: Tensor) -> Tensor:
        """The same as (d, gh, gw)."""
        return features.T.reshape(-1, *self.grid_)

    def exportable(self) -> str | None:
        """Why not; None: products with what was learned."""
        return None

    def compare(self, features: Tensor, without: int | None = None) -> ViewScores:
        """Mahalanobis distance at every position (equation 2).

        ``without`` is the reference that was scored last.
        """
        if without is not None:
            assert self._own is not None
            number, own = self._own
            assert number == without, "another reference was scored last"
            distance = self._gaussians.distance_left_out(features, own).float()
        else:
            difference = (features - self.mean_)[..., None]
            distance = torch.linalg.vector_norm(torch.bmm(self.whitening_, difference), dim=(1, 2))
        return ViewScores(distance.reshape(self.grid_))

    def _choose_channels(self, count: int) -> None:
        net = self.load_network()
        wanted = self.dimensions
        if wanted is None:
            wanted = min(_PAPERS_DIMENSIONS.get(net.family, 100), count)
        if wanted > count:
            raise OptionError(
                f"dimensions {wanted}: the levels of {net.name} have {count} together; give at "
                "most that many, or more --layers"
            )
        drawn = sorted(random.Random(self.seed).sample(range(count), wanted))
        self.channels_ = torch.tensor(drawn, device=self._device)
        self.components_ = torch.empty(0, 0, device=self._device)

    def _choose_components(self) -> None:
        _, vectors = torch.linalg.eigh(self._patches.scatter()[0])
        leading = vectors.flip(1)[:, : len(self.channels_)]
        # The sign is free; fixing it makes the saved file the same on every machine.
        strongest = leading.gather(0, leading.abs().argmax(0, keepdim=True))
        self.components_ = (leading * strongest.sign()).float().contiguous()

    def _joined(self, pixels: Tensor) -> Tensor:
        """All levels at the finest one's positions, (P, D)."""
        if pixels.shape[1] == 1:
            raise OptionError(
                f"{self.method} compares position by position, and clouds without a grid have none "
                "in common: choose a method with a memory bank, as patchcore"
            )
        maps = self.levels(pixels[None]).maps
        grid = list(maps[0].shape[-2:])
        self._check_grid(grid)
        # Each vector of a coarser level belongs to all positions below it, as in the paper's
        # figure 2; where the strides divide, this is what xiahaifeng1995's code does.
        fine = [m if list(m.shape[-2:]) == grid else F.interpolate(m, size=grid) for m in maps]
        return torch.cat(fine, dim=1)[0].flatten(1).T

    def _check_grid(self, grid: list[int]) -> None:
        if not self.grid_:
            self.grid_ = grid
        if grid != self.grid_:
            raise OptionError(
                f"--resize {self.resize}: an image has a grid of {grid[0]} x {grid[1]} positions, "
                f"the first reference one of {self.grid_[0]} x {self.grid_[1]}; padim compares "
                "position by position: use --resize square, or images of one shape"
            )

    def _reduced(self, every: Tensor) -> Tensor:
        if self.components_.numel():
            return every @ self.components_
        try:
            return every[:, self.channels_]
        except IndexError as error:
            told = "the model keeps channels that its network does not have; fit it anew"
            raise ModelFileError(f"channels_: {told}") from error
