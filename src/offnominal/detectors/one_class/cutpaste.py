"""CutPaste: a network learns to tell good images from pasted ones; a Gaussian of what it sees.

Li, Sohn, Yoon and Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and
Localization", CVPR 2021 (arXiv 2104.04015).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Optimizer

from offnominal.backbones import CATALOGUE, backbone_name
from offnominal.backbones.timm import TimmBackbone
from offnominal.backbones.weights import read_metadata
from offnominal.checks import check_choice
from offnominal.detectors.features import ViewScores
from offnominal.detectors.one_class.density import kernel_density, mahalanobis, shrunk_gaussian
from offnominal.detectors.one_class.pasting import TwoWay, pasted, projection_head
from offnominal.detectors.trained import TrainedDetector
from offnominal.errors import OptionError
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images
from offnominal.training.norms import adapt_norms

__all__ = ["CutPaste"]

Task = Literal["patch", "scar", "union", "3way"]
Start = Literal["scratch", "pretrained"]
DensityKind = Literal["gaussian", "kde"]
Padding = Literal["symmetric", "same"]

_STRIDE = 16  # of the map
_ROWS = 200_000  # of positions are enough for a Gaussian
_REST = 0.1  # share of the schedule in which a pretrained network waits for its new head


class CutPaste(TrainedDetector):
    """How far an image's embedding is from those of good images, in a network that knows pastes.

    A classifier is trained to tell good images from those with a piece of themselves pasted
    elsewhere. Its embeddings of the good images, scaled to length 1, then get a Gaussian with a
    shrunk covariance (Ledoit and Wolf), and the Mahalanobis distance is the image score.

    The released code has no map. The paper trains a second network on windows, or shows where
    gradients go. Here the map is the same density one level before: features at each position of
    stride 16, scaled to length 1, have a Gaussian of their own, the same at all positions.

    Parameters
    ----------
    task : {"3way", "patch", "scar", "union"}
        What is pasted: rectangles, strips, one of the two by chance, or both as two classes.
    density : {"gaussian", "kde"}
        Of the image's embedding; ``kde``: a Gaussian kernel of variance 1 on each good image.
    backbone : str
        A convolutional network of timm's; ResNet-18.
    weights : path or None
        Local weights to start from.
    start : {"scratch", "pretrained"} or None
        ``scratch``: as the paper's main results. ``pretrained``: from ``weights``, or from those
        that come with a package or the hub. None: ``pretrained`` if ``weights`` are given. Either
        way the network is trained, and saved with the model. A pretrained one rests for the first
        tenth of the steps, and its batch norms start from the statistics of the good images.
    padding : {"symmetric", "same"} or None
        ``same``: as TensorFlow pads. None: as the weights file says, otherwise as timm builds it.
    **options
        See :class:`~offnominal.detectors.trained.TrainedDetector`.
    """

    method: ClassVar[str] = "cutpaste"
    default_backbone: ClassVar[str] = "resnet18"
    backbone_family: ClassVar[str | None] = None
    schedule: ClassVar[Schedule] = Schedule(batch=16, steps=240, paper_steps=10_000)
    side_multiple: ClassVar[int] = 32
    learns_from: ClassVar[tuple[str, ...]] = ("weights",)
    default_augment: ClassVar[str] = "colour"

    def __init__(
        self,
        task: Task = "3way",
        density: DensityKind = "gaussian",
        backbone: str | None = None,
        weights: str | None = None,
        start: Start | None = None,
        padding: Padding | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_choice("task", task, Task)
        check_choice("density", density, DensityKind)
        if start is not None:
            check_choice("start", start, Start)
        if start == "scratch" and weights is not None:
            raise OptionError(f"--start scratch --weights {weights}: give one of the two")
        self.task, self.density = task, density
        self.weights = str(weights) if weights is not None else None
        self.backbone = backbone_name(backbone, weights, self.default_backbone)
        if padding is not None:
            check_choice("padding", padding, Padding)
        said = read_metadata(Path(weights)).get("pad_type") if weights else None
        self.padding: Padding = padding or ("same" if said == "same" else "symmetric")
        self.start: Start = start or ("pretrained" if weights is not None else "scratch")

    def build(self) -> None:
        """The network, and a head that is not saved, as its name begins with _."""
        name = CATALOGUE[self.backbone].timm if self.backbone in CATALOGUE else self.backbone
        try:
            # Residual blocks that begin as the identity, timm's way, are not the paper's.
            plain = timm.models.is_model_in_modules(name.split(".")[0], ["resnet"])
            options: dict[str, Any] = {"zero_init_last": False} if plain else {}
            options |= {"pad_type": "same"} if self.padding == "same" else {}
            encoder: Any = timm.create_model(name, num_classes=0, **options)
            strides = [int(level["reduction"]) for level in encoder.feature_info]
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise OptionError(f"--backbone {self.backbone}: timm has no such ({error})") from error
        if len(set(strides)) == 1:
            raise OptionError(
                f"--backbone {self.backbone}: cutpaste takes a convolutional network, as resnet18"
            )
        self._level = max(place for place, stride in enumerate(strides) if stride <= _STRIDE)
        self.encoder = encoder
        self._head = projection_head(encoder.num_features, 3 if self.task == "3way" else 2)
        self._resting = False
        self._normalised: Callable[[Tensor], Tensor] | None = None
        # From ImageNet's normalisation to that of the weights.
        self.factor_, self.shift_ = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
        self.mean_, self.whitening_ = torch.empty(0), torch.empty(0, 0)
        self.patch_mean_, self.patch_whitening_ = torch.empty(0), torch.empty(0, 0)
        self.embeddings_ = torch.empty(0, 0)

    def optimisers(self) -> list[Optimizer]:
        """SGD with momentum."""
        return [SGD(self.parameters(), lr=0.03, momentum=0.9, weight_decay=3e-5)]

    def rate(self, done: float) -> float:
        """A cosine, down to 0."""
        self._resting = self.start == "pretrained" and done < _REST
        return 0.5 * (1 + math.cos(math.pi * done))

    def prepare(self, images: Images) -> None:
        """Take over pretrained weights, where those are asked for."""
        self._normalised = images.normalised
        if self.start == "pretrained":
            given = TimmBackbone(self.backbone, self.weights)
            self.encoder.load_state_dict(given.model.state_dict())
            mean, std, own_mean, own_std = (
                torch.tensor(three, device=images.device)[:, None, None]
                for three in (images.mean, images.std, given.mean, given.std)
            )
            self.factor_, self.shift_ = std / own_std, (mean - own_mean) / own_std
            seen = (pixels * self.factor_ + self.shift_ for pixels in images.batches())
            adapt_norms(self.encoder, seen)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of good images and pasted ones, as many of each kind."""
        tasks: tuple[TwoWay, ...] = ("patch", "scar") if self.task == "3way" else (self.task,)
        assert self._normalised is not None
        made = [self._normalised(pasted(batch.images, task, batch.rng)) for task in tasks]
        with torch.set_grad_enabled(not self._resting):
            vectors = self.encoder(torch.cat([batch.pixels, *made]) * self.factor_ + self.shift_)
        logits = self._head(vectors)
        classes = torch.arange(1 + len(tasks), device=logits.device)
        total = F.cross_entropy(logits, classes.repeat_interleave(len(batch.pixels)))
        return {"total": total}

    def release(self) -> None:
        """The images are not needed any more."""
        super().release()
        self._normalised = None

    def embed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of images (B, D) and of their positions (B, gh, gw, C), all of length 1."""
        encoder: Any = self.encoder
        seen = pixels * self.factor_ + self.shift_
        final, [grid] = encoder.forward_intermediates(seen, indices=[self._level])
        vectors = encoder.forward_head(final)
        return F.normalize(vectors.float()), F.normalize(grid.float()).movedim(1, -1)

    def settle(self, images: Images) -> None:
        """Densities of the embeddings of all images, not augmented."""
        found = [self.embed(pixels) for pixels in images.batches()]
        vectors = torch.cat([each for each, _ in found])
        rows = torch.cat([grid.flatten(0, 2) for _, grid in found])
        rows = rows[:: 1 + len(rows) // _ROWS]
        self.patch_mean_, self.patch_whitening_ = shrunk_gaussian(rows)
        if self.density == "kde":
            self.embeddings_ = vectors
        else:
            self.mean_, self.whitening_ = shrunk_gaussian(vectors)

    def compare(self, pixels: Tensor) -> ViewScores:
        """The image's distance, and that of each position."""
        vectors, grid = self.embed(pixels)
        patches = mahalanobis(grid[0], self.patch_mean_, self.patch_whitening_)
        if self.density == "kde":
            return ViewScores(patches, kernel_density(vectors, self.embeddings_)[0])
        return ViewScores(patches, mahalanobis(vectors, self.mean_, self.whitening_)[0])
