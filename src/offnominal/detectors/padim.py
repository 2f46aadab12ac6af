"""PaDiM: a Gaussian of the features at each position, and the Mahalanobis distance to it.

Defard, Setkov, Loesch and Audigier, "PaDiM: a Patch Distribution Modeling Framework for Anomaly
Detection and Localization", ICPR workshops 2021 (arXiv 2011.08785).
"""

import random
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Unpack, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.detectors.base import Progress, Scored
from offnominal.detectors.common import CommonOptions, check_choice, evenly
from offnominal.detectors.gaussians import PENDING, RunningGaussians
from offnominal.detectors.views import Views, whole_view
from offnominal.detectors.whole import LevelsDetector
from offnominal.errors import OptionError
from offnominal.scoring import check_aggregate
from offnominal.sizing import resize_image, to_pixels

__all__ = ["PaDiM", "Reduction"]

Reduction = Literal["random", "pca"]


class PaDiM(LevelsDetector):
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
        0: every reference is scored to set the threshold. A number: at most so many, evenly spread.
    aggregate : str
        ``map-max`` as in the paper, or as for every method.
    **common
        See :class:`~offnominal.detectors.whole.LevelsDetector`. The paper's networks are ResNet-18,
        the default, and WideResNet-50-2. ``resize`` None: ``square``, so that all images have one
        grid; ``short`` needs images of one shape.

    Notes
    -----
    Memory, with P positions: 4 P d^2 bytes when fitted and on disk. During :meth:`fit` 12 P d^2
    bytes, however many the references are, about 400 P d bytes for images on their way, and the
    references' pixels in 8 bits, 150 kB each at 224 pixels. ResNet-18 at 224 pixels: P = 3,136 and
    d = 100, so 125 MB, and 500 MB to fit. WideResNet-50-2: d = 550, so 3.8 GB, and 12 GB to fit.

    To set the threshold each reference is scored against the Gaussians of the others, exactly (see
    :func:`left_out`); with ``pca`` the components are those of all references. Unlike a distance to
    the nearest neighbour a Mahalanobis distance is not bound to fall as references are added. It
    does so on average, so the threshold errs to the safe side, most of all where N is below d; for
    the promise itself use :meth:`calibrate`.

    Examples
    --------
    >>> from offnominal.detectors.padim import PaDiM
    >>> detector = PaDiM(backbone="resnet18").fit(["good/0.png", "good/1.png", "good/2.png"])
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.score, prediction.is_anomalous, prediction.regions()
    """

    method: ClassVar[str] = "padim"
    default_backbone: ClassVar[str] = "resnet18"
    # The second to the fourth of a residual network's five levels, of strides 4, 8 and 16.
    default_layers: ClassVar[tuple[int, ...]] = (-4, -3, -2)

    mean_: Tensor
    whitening_: Tensor
    channels_: Tensor
    components_: Tensor

    def __init__(
        self,
        dimensions: int | None = None,
        reduction: Reduction = "random",
        ridge: float = 0.01,
        seed: int = 1024,
        calibrate_on: int = 0,
        aggregate: str = "map-max",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        check_choice("reduction", reduction, get_args(Reduction))
        check_aggregate(aggregate)
        if dimensions is not None and dimensions < 1:
            raise OptionError(f"dimensions {dimensions}: give 1 or more")
        if not ridge > 0:
            raise OptionError(f"ridge {ridge}: give more than 0, as 0.01")
        if calibrate_on < 0:
            raise OptionError(f"calibrate_on {calibrate_on}: give 0 (all) or more")
        self.dimensions = dimensions
        self.reduction = reduction
        self.ridge = ridge
        self.seed = seed
        self.calibrate_on = calibrate_on
        self.aggregate = aggregate
        self.grid_: list[int] = []
        self.register_buffer("mean_", torch.empty(0, 0))
        self.register_buffer("whitening_", torch.empty(0, 0, 0))
        self.register_buffer("channels_", torch.empty(0, dtype=torch.int64))
        self.register_buffer("components_", torch.empty(0, 0))

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor."""
        return super().extra_state() | {"grid_": self.grid_}

    def views(self, image: np.ndarray) -> Views:
        """Size an image, uint8 (H, W, 3), for the backbone."""
        net = self.load_network()
        side = self.resolution or self._default_resolution(net)
        return whole_view(image, net, side, self.resize or "square")

    @property
    def promises(self) -> bool:
        """Not strictly: a Gaussian of one reference fewer may score a part higher or lower."""
        return False

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        net = self.load_network()
        self.grid_ = []
        side = self.resolution or self._default_resolution(net)
        resize = self.resize or "square"
        gaussians, patches = RunningGaussians(), RunningGaussians()
        # The network's own pixels are kept, a tenth of the features, to go over them once more.
        kept: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        for index, image in images:
            kept.append(resize_image(image, side, net.multiple, resize))
            sizes.append((image.shape[0], image.shape[1]))
            joined = self._joined(to_pixels(kept[-1], net.mean, net.std)[None])[0]
            if index == 0:
                self._choose_channels(joined.shape[1])
            if self.reduction == "pca":
                for patch in torch.split(joined, PENDING):
                    patches.add(patch[:, None])
            else:
                gaussians.add(self._reduced(joined)[None])
            if progress:
                progress("features", index + 1)
        if not kept:
            return
        if self.reduction == "pca":
            self._choose_components(patches)
            for done, pixels in enumerate(kept, start=1):
                gaussians.add(self._embed(to_pixels(pixels, net.mean, net.std)[None]))
                if progress:
                    progress("distributions", done)
        self.whitening_ = gaussians.factorise(self.ridge)
        self.mean_ = gaussians.mean.float()
        if len(kept) < 2:
            return
        gaussians.prepare_left_out(self.ridge)
        scored: list[Scored] = []
        for chosen in evenly(range(len(kept)), self.calibrate_on):
            x = self._embed(to_pixels(kept[chosen], net.mean, net.std)[None])
            scores = gaussians.distance_left_out(x[0]).float().reshape(self.grid_)
            scored.append(Scored(scores, sizes[chosen], None))
            if progress:
                progress("threshold", len(scored))
        self._set_good(scored, "leave-one-out")

    def _choose_channels(self, count: int) -> None:
        wanted = self.dimensions
        if wanted is None:
            wanted = min(550 if "wide_resnet" in self.load_network().name else 100, count)
        if wanted > count:
            raise OptionError(
                f"dimensions {wanted}: the levels of {self.load_network().name} have {count} "
                "together; give at most that many, or more --layers"
            )
        drawn = sorted(random.Random(self.seed).sample(range(count), wanted))
        self.channels_ = torch.tensor(drawn, device=self._device)
        self.components_ = torch.empty(0, 0, device=self._device)

    def _choose_components(self, patches: "RunningGaussians") -> None:
        _, vectors = torch.linalg.eigh(patches.scatter()[0])
        leading = vectors.flip(1)[:, : len(self.channels_)]
        # The sign is free; fixing it makes the saved file the same on every machine.
        strongest = leading.gather(0, leading.abs().argmax(0, keepdim=True))
        self.components_ = (leading * strongest.sign()).float().contiguous()

    def _joined(self, pixels: Tensor) -> Tensor:
        """All levels at the finest one's positions, (B, P, D)."""
        maps = self.levels(pixels).maps
        grid = list(maps[0].shape[-2:])
        if not self.grid_:
            self.grid_ = grid
        if grid != self.grid_:
            raise OptionError(
                f"--resize {self.resize}: an image has a grid of {grid[0]} x {grid[1]} positions, "
                f"the first reference one of {self.grid_[0]} x {self.grid_[1]}; padim compares "
                "position by position: use --resize square, or images of one shape"
            )
        # Each vector of a coarser level belongs to all positions below it, as in the paper's
        # figure 2; where the strides divide, this is what xiahaifeng1995's code does.
        fine = [m if list(m.shape[-2:]) == grid else F.interpolate(m, size=grid) for m in maps]
        return torch.cat(fine, dim=1).flatten(2).mT

    def _reduced(self, joined: Tensor) -> Tensor:
        if self.components_.numel():
            return joined @ self.components_
        return joined[..., self.channels_]

    def _embed(self, pixels: Tensor) -> Tensor:
        return self._reduced(self._joined(pixels))

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        difference = (self._embed(pixels) - self.mean_).permute(1, 2, 0)
        distance = torch.linalg.vector_norm(torch.bmm(self.whitening_, difference), dim=1)
        scores: Tensor = distance.T.reshape(-1, *self.grid_)
        return scores
