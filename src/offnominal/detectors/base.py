"""What every detector shares: images in, calibration, predictions out."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import numpy as np
import torch
from torch import Tensor

from offnominal.backbones import DEFAULT, backbone_name, load_backbone
from offnominal.backbones.base import Backbone, Levels, Resize
from offnominal.calibration import Threshold, check_rate, p_value
from offnominal.detectors import thresholds
from offnominal.detectors.common import Precision, check_choice, choose_device
from offnominal.detectors.growing import Growing
from offnominal.detectors.prediction import Prediction
from offnominal.detectors.thresholds import Calibration, Scored, Size
from offnominal.detectors.views import Views, tiled_views, whole_view
from offnominal.errors import ImageError, NotFittedError, OptionError
from offnominal.images import (
    ImageSource,
    content_digest,
    describe,
    parse_sixteen_bit,
    read_image,
)
from offnominal.prefetch import prefetch
from offnominal.scoring import aggregate, anomaly_map

__all__ = ["Detector", "Numbered", "OnError", "Progress", "Scored", "Size"]

OnError = Callable[[ImageError], None]
Progress = Callable[[str, int], None]
Numbered = Iterator[tuple[int, np.ndarray]]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Detector(Growing, ABC):
    """Base of every method.

    Parameters
    ----------
    backbone : str or None
        Short name or timm name; None: what the weights file says of itself, otherwise the method's
        ``default_backbone``, which is DINOv2 S unless its page says otherwise.
    weights : str or None
        Local weights file; None: from the hub's cache, or fetched from the hub.
    layers : sequence of int or None
        Feature levels of the backbone; None: its default.
    resolution : int or None
        Length of the image's smaller side in pixels (of both with ``resize="square"``); None: the
        backbone's default, which is 448 for DINOv2.
    resize : {"short", "square"} or None
        ``short`` keeps the aspect ratio and crops at the right and the bottom to whole patches.
    tile : int or None
        Side of overlapping tiles at full resolution, in pixels, for very large images.
    sixteen_bit : str
        ``range`` or two percentiles such as ``0.5,99.5``; how 16-bit images become 8-bit ones.
    smoothing : float
        Standard deviation of the map's Gaussian, in pixels of the image.
    false_reject : float
        Rate of good parts that may be rejected, on (0, 1).
    precision : {"fp32", "bf16", "fp16"}
        Of the backbone.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``. It is not stored in the saved detector.
    """

    method: ClassVar[str]
    default_backbone: ClassVar[str] = DEFAULT
    # How the names of the backbones that it can use begin; None: it has no network.
    backbone_family: ClassVar[str | None] = ""
    # Whether `fit` must be given images; zero-shot methods are ready after a fit without any.
    needs_references: ClassVar[bool] = True
    # Options beside the weights that name a file which `fit` reads.
    file_options: ClassVar[tuple[str, ...]] = ()
    aggregate: str = "top1"

    good_scores_: Tensor
    good_peaks_: Tensor
    good_patches_: Tensor

    def __init__(
        self,
        backbone: str | None = None,
        weights: str | None = None,
        layers: Sequence[int] | None = None,
        resolution: int | None = None,
        resize: Resize | None = None,
        tile: int | None = None,
        sixteen_bit: str = "range",
        smoothing: float = 4.0,
        false_reject: float = 0.01,
        precision: Precision = "fp32",
        device: str = "auto",
    ) -> None:
        super().__init__()
        check_rate(false_reject)
        parse_sixteen_bit(sixteen_bit)
        check_choice("precision", precision, get_args(Precision))
        if resize is not None:
            check_choice("resize", resize, get_args(Resize))
        if smoothing < 0:
            raise OptionError(f"smoothing {smoothing}: give a standard deviation of 0 or more")
        self.backbone = backbone
        self.weights = str(weights) if weights is not None else None
        self.layers = tuple(layers) if layers is not None else None
        self.resolution = resolution
        self.resize = resize
        self.tile = tile
        self.sixteen_bit = sixteen_bit
        self.smoothing = smoothing
        self.false_reject = false_reject
        self.precision = precision
        self.device = device
        self.network: Backbone | None = None
        self._device = torch.device("cpu")
        self.references_: list[dict[str, Any]] = []
        self.fitted_ = False
        self.copies_ = 0
        self.calibration_: Calibration = "none"
        # What the thresholds were set from: scores, peaks of the maps, and the patch scores that
        # both were made of, with what belongs to them in `good_`.
        self.good_: list[dict[str, Any]] = []
        self.register_buffer("good_scores_", torch.empty(0, dtype=torch.float64))
        self.register_buffer("good_peaks_", torch.empty(0, dtype=torch.float64))
        self.register_buffer("good_patches_", torch.empty(0))

    # -- what a method fills in ---------------------------------------------------------------

    @abstractmethod
    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        """Learn from numbered uint8 images."""

    @abstractmethod
    def _patch_scores(self, pixels: Tensor) -> Tensor:
        """Patch scores (B, gh, gw) of a batch (B, 3, h, w)."""

    def _passing(self, images: Numbered) -> Numbered:
        """The numbered images of a fit on their way, for those who want to keep some of them."""
        return images

    # -- the estimator's contract -------------------------------------------------------------

    @classmethod
    def option_defaults(cls) -> dict[str, Any]:
        """The constructor's arguments, all of them plain values, and their defaults."""
        # A subclass names its own arguments and passes the rest on to its base.
        bases = [base for base in cls.__mro__ if issubclass(base, Detector)]
        named = [p for base in bases for p in inspect.signature(base.__init__).parameters.values()]
        own = [p for p in named if p.name != "self" and p.kind is not p.VAR_KEYWORD]
        return {p.name: p.default for p in reversed(own)}

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Names of the constructor's arguments."""
        return tuple(reversed(cls.option_defaults()))

    def options(self) -> dict[str, Any]:
        """The constructor's arguments and their values; the device is left out."""
        return {name: getattr(self, name) for name in self.option_names() if name != "device"}

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor, as plain values for the saved file."""
        names = ("references_", "calibration_", "good_")
        return {name: getattr(self, name) for name in names}

    def prepare_state(self) -> None:
        """Make room for learned state before it is loaded; the network is there already."""

    @property
    def is_fitted(self) -> bool:
        """Whether :meth:`fit` has run or a fitted detector was loaded."""
        return self.fitted_

    def fit(
        self,
        images: Iterable[ImageSource] = (),
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from images of good parts.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
            None at all for zero-shot methods. Exact copies of an image count once (``copies_`` says
            how many were left out): a copy among the references would score nothing against its
            twin and spoil the threshold.
        on_error : callable or None
            Called with each :class:`ImageError`, and the image is left out; None: it is raised.
        progress : callable or None
            Called with the stage and the number of images that it has done.

        Raises
        ------
        OptionError
            If there is no image to learn from, and the method needs some.
        """
        self.references_ = []
        self.fitted_ = False
        self.copies_ = 0
        self._set_good([], "none")

        references: dict[str, dict[str, Any]] = {}

        def good() -> Iterator[tuple[int, np.ndarray]]:
            for source, image in self._read(images, on_error):
                digest = content_digest(image)
                if digest in references:
                    self.copies_ += 1
                    continue
                number = len(references)
                references[digest] = {
                    "file": describe(source),
                    "digest": digest,
                    "owner": number,
                    "size": list(image.shape[:2]),
                }
                yield number, image

        with torch.inference_mode():
            self._fit(self._passing(good()), progress)
        if not references and self.needs_references:
            raise OptionError("no image to learn from: give at least one image of a good part")
        # Only now: a fit that was broken off must not pass for a whole one.
        self.references_ = list(references.values())
        self.fitted_ = True
        return self

    def predict(self, images: Iterable[ImageSource] | ImageSource) -> list[Prediction]:
        """Predictions for some images, in their order; the first bad image raises.

        Parameters
        ----------
        images : one image, or an iterable of paths, uint8 or uint16 arrays, or PIL images

        Raises
        ------
        ImageError
            Naming the image; :meth:`stream` can go on instead.
        """
        if isinstance(images, str | Path | np.ndarray) or hasattr(images, "getexif"):
            images = [images]  # type: ignore[list-item]  # one image stands for a list of one
        return list(self.stream(images))  # type: ignore[arg-type]  # narrowed just above

    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Predictions as they come, in order and in constant memory, reading ahead.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
        on_error : callable or None
            Called with each :class:`ImageError`, and the image is left out; None: it is raised.
        progress : callable or None
            Called with the stage and the number of images that it has done.
        """
        self._check_fitted()
        self.load_network()
        for done, (source, image) in enumerate(self._read(images, on_error), start=1):
            prediction = self._predict_image(describe(source), image)
            if progress:
                progress("predict", done)
            yield prediction

    def forward(self, pixels: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Image scores and patch scores of a batch of prepared pixels.

        Parameters
        ----------
        pixels : Tensor of shape (B, 3, h, w), float32
        size : (H, W) or None
            The images' own size, which ``aggregate="map-max"`` depends on; None: (h, w).

        Returns
        -------
        scores : Tensor of shape (B,)
        patch_scores : Tensor of shape (B, gh, gw)
        """
        patch_scores = self._patch_scores(pixels)
        height, width = pixels.shape[-2:]
        scores = [self._image_score(p, size or (height, width)) for p in patch_scores]
        return torch.stack(scores), patch_scores

    def calibrate(
        self,
        images: Iterable[ImageSource],
        false_reject: float | None = None,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Set the thresholds from good images that the detector has not learned from.

        They replace the scores of the references, which are a little too high: each reference was
        scored against a bank without itself. Images that are references are left out, since they
        would score next to nothing, and so are copies of images given before.

        Returns
        -------
        int
            How many images were left out because the detector knows them already.
        """
        return thresholds.calibrate(self, images, false_reject, on_error, progress)

    def rescored(self, **changes: Any) -> Self:
        """A detector that has learned the same and scores it another way, sharing its bank.

        Parameters
        ----------
        **changes
            ``aggregate``, ``smoothing`` or ``false_reject``; thresholds are set anew.

        Raises
        ------
        OptionError
            If another option is named, or the detector was loaded from a file of an earlier
            version, which kept no patch scores.
        """
        return thresholds.rescored(self, changes)

    def rescore(self, prediction: Prediction) -> Prediction:
        """A prediction of the same fit, with this detector's scoring and thresholds."""
        return self._prediction(prediction.source, prediction.image, self._scored(prediction))

    def _scored(self, prediction: Prediction) -> Scored:
        return thresholds.scored_again(self, prediction)

    @property
    def threshold(self) -> Threshold | None:
        """Threshold of the image score; None where too few good images are known."""
        return self._choose_threshold(self.good_scores_)

    @property
    def pixel_threshold(self) -> Threshold | None:
        """Threshold of the map: that many good images have no pixel above it."""
        return self._choose_threshold(self.good_peaks_)

    @property
    def promises(self) -> bool:
        """Whether references are scored just as if the detector had been fitted without them."""
        return True

    def _choose_threshold(self, scores: Tensor) -> Threshold | None:
        return thresholds.choose(self, scores)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically; see :mod:`offnominal.detectors.saving`."""
        from offnominal.detectors.saving import save

        self._check_fitted()
        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, weights: str | None = None, device: str = "auto") -> "Detector":
        """Open a saved detector; see :func:`offnominal.detectors.saving.load`."""
        from offnominal.detectors.saving import load

        return load(Path(path), weights, device)

    # -- the path that an image takes ---------------------------------------------------------

    def load_network(self) -> Backbone:
        """Build the backbone on first use and move everything to the device."""
        if self.network is None:
            self.use_network(self.build_network(), shared=False)
        assert self.network is not None
        return self.network

    def build_network(self) -> Backbone:
        """The backbone that the options name; a method without one gives a stand-in."""
        name = backbone_name(self.backbone, self.weights, self.default_backbone)
        return load_backbone(name, self.weights, self.layers)

    def choose_levels(self, network: Backbone) -> Backbone:
        """The network at the levels that this method uses where ``layers`` names none."""
        return network

    def use_network(self, network: Backbone, shared: bool = True) -> None:
        """Adopt a backbone; of one that nobody else uses, only the levels that are needed."""
        self._device = choose_device(self.device)
        self.network = self.choose_levels(network)
        if not shared:
            self.network.trim()
        self.to(self._device)

    def views(self, image: np.ndarray) -> Views:
        """Size an image, uint8 (H, W, 3), for the backbone, or cut it into tiles."""
        net = self.load_network()
        if self.tile:
            return tiled_views(image, net, self.tile)
        resolution = self.resolution or self._default_resolution(net)
        return whole_view(image, net, resolution, self.resize or net.resize)

    def _default_resolution(self, net: Backbone) -> int:
        return net.resolution

    def features(self, pixels: Tensor) -> Tensor:
        """Patch features (B, D, gh, gw) in float32 of pixels (B, 3, h, w) on any device."""
        with self._autocast():
            maps: Tensor = self.load_network()(pixels.to(self._device))
        return maps.float()

    def levels(self, pixels: Tensor, norm: bool = True) -> Levels:
        """Feature levels and a vector for each image in float32, of pixels on any device."""
        with self._autocast():
            maps, summary = self.load_network().levels(pixels.to(self._device), norm)
        return Levels([each.float() for each in maps], summary.float())

    def _autocast(self) -> torch.autocast:
        self.load_network()
        dtype = _DTYPES.get(self.precision)
        return torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None)

    # -- from patch scores to a prediction ----------------------------------------------------

    def _score_view(self, pixels: Tensor) -> tuple[Tensor, float | None]:
        """Patch scores (gh, gw) of one view (3, h, w), and what its image score takes beside."""
        return self._patch_scores(pixels[None])[0], None

    def _image_score(
        self,
        patch_scores: Tensor,
        size: Size,
        cover: Size | None = None,
        image_term: float | None = None,
    ) -> Tensor:
        if self.aggregate == "map-max":
            return self._map(patch_scores, size, cover).max()
        return aggregate(patch_scores, self.aggregate)

    def _map(self, patch_scores: Tensor, size: Size, cover: Size | None) -> Tensor:
        return anomaly_map(patch_scores, size, self.smoothing, cover)

    @torch.inference_mode()
    def _predict_image(self, source: str, image: np.ndarray) -> Prediction:
        views = self.views(image)
        found = [self._score_view(pixels) for pixels in views.pixels]
        merged = views.merge([patch_scores for patch_scores, _ in found])
        # Of several views the most anomalous one speaks for the image.
        term = found[0][1]
        if term is not None and len(found) > 1:
            term = max(found, key=lambda view: float(view[0].max()))[1]
        size = (image.shape[0], image.shape[1])
        return self._prediction(source, image, Scored(merged, size, views.cover, term))

    def _prediction(self, source: str, image: np.ndarray, scored: Scored) -> Prediction:
        score = float(self._image_score(*scored))
        heat = self._map(scored.patch_scores, scored.size, scored.cover)
        threshold, pixel_threshold = self.threshold, self.pixel_threshold
        return Prediction(
            source=source,
            score=score,
            anomaly_map=heat.cpu().numpy(),
            patch_scores=scored.patch_scores.cpu().numpy(),
            image=image,
            threshold=threshold.value if threshold else None,
            pixel_threshold=pixel_threshold.value if pixel_threshold else None,
            p_value=p_value(score, self.good_scores_.cpu().numpy()),
            image_term=scored.image_term,
        )

    def _read(
        self, images: Iterable[ImageSource], on_error: OnError | None
    ) -> Iterator[tuple[ImageSource, np.ndarray]]:
        def read(source: ImageSource) -> np.ndarray:
            return read_image(source, self.sixteen_bit)

        for source, image, error in prefetch(images, read):
            if error is None and image is not None:
                yield source, image
            elif error is not None:
                if on_error is None:
                    raise error
                on_error(error)

    def _set_good(self, scored: list[Scored], calibration: Calibration) -> None:
        """Set the thresholds from the patch scores of good images."""
        thresholds.set_good(self, scored, calibration)

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise NotFittedError(f"this {type(self).__name__} has learned nothing yet: call fit")
