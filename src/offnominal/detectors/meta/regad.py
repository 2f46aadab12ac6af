"""RegAD: features that were taught on other categories to lie alike, and a Gaussian at each place.

Huang, Guan, Jiang, Zhang, Spratling and Wang, "Registration based Few-Shot Anomaly Detection",
ECCV 2022 (arXiv 2207.07361).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offnominal.checks import check_range
from offnominal.detectors.features import ViewScores, one_view
from offnominal.detectors.knowing import KnowingDetector
from offnominal.detectors.learned_state import must, must_fit
from offnominal.detectors.meta.gaussians import distances, gaussians
from offnominal.detectors.meta.learnedfile import built, read_registered
from offnominal.detectors.meta.networks import Registered, copies
from offnominal.detectors.on_device import OnDevice
from offnominal.detectors.options import LeaveOneOut, Progress
from offnominal.errors import OptionError
from offnominal.scoring import Scores, Size
from offnominal.sizing import squared, to_pixels

__all__ = ["RegAD"]

_MOST = 32  # references: the room and the time that they take grow with their number


class RegAD(KnowingDetector, OnDevice):
    """A Gaussian at each position of features that need no training for this part.

    Stages of a network with a spatial transformer behind each were trained on other categories so
    that two images of one category have like features in like places (section 3.2). Of a new
    category a few images are enough: each, and 21 changed copies of it, go through the stages; what
    the transformers moved is moved back; and the features of all copies give each position a mean
    and a covariance, plus ``ridge`` on the diagonal (section 3.3). A patch scores its Mahalanobis
    distance, the image the maximum of the smoothed map.

    Parameters
    ----------
    learned : path or None
        File of ``offnominal train regad``; ``fit`` reads it. A saved detector holds what is in it.
    ridge : float
        Added to every variance, 0.01 in the paper; above 0.
    dimensions : int or None
        So many of the channels are drawn at random, as PaDiM does. None: all, as in the released
        code: 240 MB of a model file for two images with ResNet-18 at 224 pixels.
    seed : int
        Of that draw.
    aggregate : str
        ``map-max`` as in the paper, or as for every method.
    **options
        See :class:`~offnominal.detectors.on_device.OnDevice`. Network and side of the images are
        those that the file was trained with.

    Examples
    --------
    >>> from offnominal import RegAD
    >>> detector = RegAD(learned="regad.safetensors").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "regad"
    takes_defects: ClassVar[bool] = True
    file_options: ClassVar[tuple[str, ...]] = ("learned",)

    def __init__(
        self,
        learned: str | Path | None = None,
        ridge: float = 0.01,
        dimensions: int | None = None,
        seed: int = 0,
        aggregate: str = "map-max",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        check_range("ridge", ridge, above=0)
        if dimensions is not None:
            check_range("dimensions", dimensions, whole=True, least=1)
        check_range("seed", seed, least=0, below=2**32, whole=True)
        self.learned = str(learned) if learned is not None else None
        self.ridge, self.dimensions, self.seed = ridge, dimensions, seed
        self.registered: Registered | None = None
        self.plan_: dict[str, Any] = {}  # how the stages are built
        self.begin()

    def begin(self) -> None:
        """No distribution yet; at a fit the file is read."""
        super().begin()
        self.grid_: list[int] = []
        self.channels_ = torch.empty(0, dtype=torch.int64)
        self.mean_ = torch.empty(0, 0)
        self.rows_ = torch.empty(0, 0, 0)
        self.release()

    def release(self) -> None:
        """The features of the references take as much room as what is kept."""
        self._seen: list[Tensor] = []
        self._left_out: tuple[int, Tensor, Tensor] | None = None

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Not strictly exact: a Gaussian of one reference fewer may score higher or lower."""
        return "approximate"

    def exportable(self) -> str:
        """Why not."""
        return "what its transformers moved is moved back by inverse matrices, which ONNX lacks"

    def learn(self, number: int, image: np.ndarray) -> Tensor:
        """Take in the features of an image and of its copies; its own (P, D) are given back."""
        if max(number + 1, self.expected or 0) > _MOST:
            raise OptionError(
                f"regad learns from at most {_MOST} images: give fewer (--shots 8), or take "
                "--method padim or patchcore, which are made for more"
            )
        if number == 0:
            self._read()
        found = self._features(copies(self._pixels(image)))
        self._seen.append(found)
        return found[0]

    def finish(self, progress: Progress | None) -> None:
        """The Gaussians of all of them."""
        self.mean_, self.rows_ = gaussians(torch.cat(self._seen), self.ridge)

    def score_reference(self, number: int, kept: Tensor) -> Scores:
        """Score a reference by the Gaussians of the others and their copies."""
        return self._scored(self._compared(kept, number))

    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """What the score and the map of an image are made of."""
        found = self._features(self._pixels(image)[None])[0]
        scores = self._scored(self._compared(found, without))
        return self.as_known(scores, found.T.reshape(-1, *self.grid_))

    def patch_features(self, image: np.ndarray, grid: Size) -> Tensor:
        """Registered features (D, *grid)."""
        return self._features(self._pixels(image)[None])[0].T.reshape(-1, *grid)

    def _compared(self, features: Tensor, without: int | None) -> Tensor:
        """Mahalanobis distance at every position, (P,)."""
        mean, rows = self.mean_, self.rows_
        if without is not None and len(self._seen) > 1:
            if self._left_out is None or self._left_out[0] != without:
                others = [one for n, one in enumerate(self._seen) if n != without]
                self._left_out = without, *gaussians(torch.cat(others), self.ridge)
            _, mean, rows = self._left_out
        return distances(features, mean, rows, self.ridge)

    def _scored(self, patches: Tensor) -> Scores:
        side = self._stages().plan.side
        return one_view(ViewScores(patches.reshape(self.grid_)), (side, side))

    def _pixels(self, image: np.ndarray) -> Tensor:
        """An image, uint8 (H, W, 3), squeezed into a square, (3, side, side) on [0, 1]."""
        side = self._stages().plan.side
        plain = to_pixels(squared(image, side, side, "lanczos"), (0.0,) * 3, (1.0,) * 3)
        return torch.from_numpy(plain).to(self._device)

    def _features(self, pixels: Tensor) -> Tensor:
        """Features of every position of images (B, 3, side, side): (B, P, D)."""
        with torch.no_grad(), self._autocast():
            found = self._stages().upright(pixels)
        if not self.grid_:
            self.grid_, count = list(found.shape[-2:]), found.shape[1]
            wanted = self.dimensions or count
            if wanted > count:
                raise OptionError(f"--dimensions {wanted}: the network has {count}; give fewer")
            drawn = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
            self.channels_ = drawn[:wanted].sort().values.to(found.device)
        return found.flatten(2).mT[..., self.channels_].contiguous()

    def _stages(self) -> Registered:
        assert self.registered is not None, "no image was learned from"
        return self.registered

    def _read(self) -> None:
        """Read the file that the option names."""
        self.registered, _ = read_registered(self.learned)
        self.plan_ = self.registered.plan.plain()
        self.use_device()

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Build the stages as the file says, and take over what was learned."""
        with must_fit():
            self.registered = built(header["learned"]["plan_"]).eval().requires_grad_(False)
        self.use_device()
        super().restore(header, arrays)
        self.registered.eval().requires_grad_(False)

    def check_learned(self) -> None:
        """A Gaussian for every position, over the channels that are kept."""
        super().check_learned()
        must(len(self.grid_) == 2 and min(self.grid_) > 0, "grid_ is none")
        shape, rows = (self.grid_[0] * self.grid_[1], len(self.channels_)), self.rows_.shape
        must(self.mean_.shape == shape, "mean_ is not one for each position")
        must(len(rows) == 3 and (rows[0], rows[2]) == shape, "rows_ are not those of a position")
        must(self.registered and self.registered.plan.plain() == self.plan_, "plan_ is another's")
