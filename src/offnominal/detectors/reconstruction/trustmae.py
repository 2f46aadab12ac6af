"""TrustMAE: an autoencoder that paints from a memory of prototypes which noise is kept out of.

Tan, Chen, Chen and Chen, "TrustMAE: A Noise-Resilient Defect Classification Framework using
Memory-Augmented Auto-Encoders with Trust Regions", WACV 2021 (arXiv 2012.14629).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.checks import check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.errors import OptionError
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch
from offnominal.training.losses import ssim

__all__ = ["Memory", "Recalled", "TrustMAE", "perceptual_map"]

_TEMPERATURE = 0.1  # of the similarities to prototypes


class Recalled(NamedTuple):
    """What a memory makes of something, and the loss of its trust regions."""

    values: Tensor
    trust: Tensor


class TrustMAE(TrainedFeatureDetector):
    """Memory-augmented autoencoder with trust regions, scored by a perceptual distance.

    Each position of the encoder's output is replaced by a sparse mixture of prototypes, and the
    decoder paints from those. Prototypes move towards what lies near, their trust region, and away
    from what lies somewhat further out: defects among the training images are rare and far, and so
    get no prototype. The map is the distance between a frozen network's features of the image and
    of what was painted.

    Parameters
    ----------
    prototypes : int
        In the memory.
    width : int
        Channels of the encoder's first layer.
    trust : float
        Share of a step's positions that lies within the trust regions, on (0, 1]. 1: all, and the
        memory learns from everything.
    reach : float
        Radius, in trust regions, up to which prototypes are pushed away, 1 or more.
    patch : int
        Side of the window over which the perceptual distance is averaged, in positions of its
        finest level, odd.
    backbone : str or None
        Of the perceptual distance; VGG-16 in the paper. Any network does.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`.

    Notes
    -----
    The authors published no code. The forms chosen here, where others would do: positions and
    prototypes are compared on the unit sphere; similarities are divided by 0.1 before the softmax,
    weights under one over their number are cut off (Gong et al., "Memorizing Normality to Detect
    Anomaly", ICCV 2019, equation 6); the trust region is a quantile of a step's distances, so that
    it needs no unit; what is painted beyond it does not move prototypes either. The loss is that of
    pixels, SSIM and features; the paper's adversarial part is left out.
    """

    method: ClassVar[str] = "trustmae"
    default_backbone: ClassVar[str] = "vgg16.tv_in1k"
    default_layers: ClassVar[tuple[int, ...] | None] = (-4, -3, -2)
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=150, paper_epochs=100)

    def __init__(
        self,
        prototypes: int = 200,
        width: int = 32,
        trust: float = 0.8,
        reach: float = 2.0,
        patch: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("prototypes", prototypes, least=2, most=2**16, whole=True)
        check_range("width", width, least=1, most=1024, whole=True)
        check_range("trust", trust, above=0, most=1)
        check_range("reach", reach, least=1)
        check_range("patch", patch, least=1, most=99, whole=True)
        self.prototypes, self.width, self.trust = prototypes, width, trust
        if patch % 2 == 0:
            raise OptionError(f"--patch {patch}: give an odd number, as {patch + 1}")
        self.reach, self.patch = reach, patch

    def build(self) -> None:
        """Encoder, memory and decoder."""
        channels = [self.width * n for n in (1, 2, 4, 4)]
        down = (_step(a, b, nn.Conv2d) for a, b in pairwise([3, *channels]))
        up = (_step(a, b, nn.ConvTranspose2d) for a, b in pairwise(channels[::-1]))
        self.encoder = nn.Sequential(*down)
        self.memory = Memory(self.prototypes, channels[-1])
        last = nn.ConvTranspose2d(channels[0], 3, 4, 2, 1)
        self.decoder = nn.Sequential(*up, last, nn.Sigmoid())

    def optimisers(self) -> list[Optimizer]:
        """Adam."""
        learned = [*self.encoder.parameters(), *self.memory.parameters()]
        return [Adam([*learned, *self.decoder.parameters()], lr=1e-3)]

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The backbone's levels (B, C, h, w), with vectors of length 1 over the channels."""
        return tuple(F.normalize(each, dim=1) for each in self.levels(pixels).maps)

    def recall(self, pixels: Tensor) -> Recalled:
        """Images, normalised, as the memory has them: values on [0, 1], and the memory's loss."""
        mixed, trust = self.memory(self.encoder(pixels), self.trust, self.reach)
        painted = self.decoder(mixed).float()
        # Sides that the backbone takes need not be multiples of the encoder's stride.
        return Recalled(F.interpolate(painted, pixels.shape[-2:], mode="bilinear"), trust)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Squared error, SSIM and perceptual distance of what is painted, and trust regions."""
        painted, trust = self.recall(batch.pixels)
        plain = batch.images.to(painted.device).float() / 255
        unlike = perceptual_map(self.frozen_of(batch), self.frozen(self._normalised(painted)))
        parts = {
            "l2": F.mse_loss(painted, plain),
            "ssim": 1 - ssim(plain, painted).mean(),
            "perceptual": unlike.mean(),
            "trust": trust,
        }
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def compare(self, pixels: Tensor) -> ViewScores:
        """The perceptual distance, averaged over patches, and its maximum as the image score."""
        again = self.frozen(self._normalised(self.recall(pixels).values))
        unlike = perceptual_map(self.frozen(pixels), again)
        around = self.patch // 2
        mean = F.avg_pool2d(unlike[:, None], self.patch, 1, around, count_include_pad=False)
        return ViewScores(mean[0, 0])

    def _normalised(self, values: Tensor) -> Tensor:
        mean, std = (values.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        return (values - mean) / std


class Memory(nn.Module):
    """Prototypes (N, D), which mix to what resembles a vector."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(count, dim))

    def forward(self, maps: Tensor, trust: float, reach: float) -> Recalled:
        """Maps (B, D, h, w) from prototypes alone, in unit vectors."""
        vectors = F.normalize(maps.movedim(1, -1).float(), dim=-1)
        prototypes = F.normalize(self.prototypes, dim=-1)
        cosines = vectors @ prototypes.T
        weights = (cosines / _TEMPERATURE).softmax(-1)
        weights = torch.where(weights > 1 / len(prototypes), weights, 0)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
        squared = 2 - 2 * cosines.amax(-1)  # distance to the nearest
        distance = squared.detach().clamp(min=0).sqrt()
        radius = torch.quantile(distance.flatten(), trust)
        near = distance <= radius
        push = ~near & (distance <= reach * radius)
        mixed = torch.where(
            near[..., None], weights @ prototypes, weights @ prototypes.detach()
        ).movedim(-1, 1)
        return Recalled(mixed, (squared * (near.float() - push.float())).mean())


def perceptual_map(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Squared distance (B, h, w) of two pyramids' vectors, mean over levels at the finest's grid.

    After Zhang, Isola, Efros, Shechtman and Wang, "The Unreasonable Effectiveness of Deep Features
    as a Perceptual Metric", CVPR 2018, equation 1, without learned weights.
    """
    squared = [(x - y).square().sum(1, keepdim=True) for x, y in zip(ones, others, strict=True)]
    size = squared[0].shape[-2:]
    return torch.stack([F.interpolate(one, size, mode="bilinear") for one in squared]).mean(0)[:, 0]


def _step(taken: int, given: int, kind: type[nn.Conv2d | nn.ConvTranspose2d]) -> nn.Sequential:
    """Half or twice the size."""
    return nn.Sequential(kind(taken, given, 4, 2, 1), nn.BatchNorm2d(given), nn.ReLU(inplace=True))
