"""Latent outlier exposure: training infers which of what it learns from is defective.

Qiu, Li, Kloft, Rudolph and Mandt, "Latent Outlier Exposure for Anomaly Detection with Contaminated
Data", ICML 2022 (arXiv 2202.08088). What learns is neural transformation learning: Qiu, Pfrommer,
Kloft, Mandt and Rudolph, "Neural Transformation Learning for Deep Anomaly Detection Beyond Images",
ICML 2021 (arXiv 2103.16440).
"""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images

__all__ = ["LOE", "Labels", "Transformations", "contrastive_losses", "joint_loss"]

Labels = Literal["soft", "hard"]

_TEMPERATURE = 0.1
_LEAST = 1e-8  # variance of a channel
_WARM_UP = 2 / 30  # of the schedule, in which all are taken for good, as in the released code


class Transformations(nn.Module):
    """K learned transformations of vectors of a length, and an encoder of what they make of it."""

    def __init__(self, dim: int, count: int, hidden: int, encoded: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim, hidden, bias=False),
                nn.BatchNorm1d(hidden, affine=False),
                nn.ReLU(),
                nn.Linear(hidden, dim, bias=False),
            )
            for _ in range(count)
        )
        self.encoder = nn.Sequential(
            nn.Linear(dim, dim // 2, bias=False),
            nn.ReLU(),
            nn.Linear(dim // 2, encoded, bias=False),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Encoded (N, 1 + K, encoded) of vectors (N, dim): themselves, and each transformed."""
        every = torch.stack([vectors, *(one(vectors) for one in self.each)], dim=1)
        return torch.as_tensor(self.encoder(every))


def contrastive_losses(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a good sample and that of an anomalous one.

    With p the share that a transformed sample's likeness to the original has in its likeness to
    all others, they are the means over transformations of ``-log p`` and ``-log(1 - p)``, divided
    by ``log K`` as in the released code.

    Parameters
    ----------
    encoded : Tensor of shape (N, 1 + K, d)

    Returns
    -------
    normal, anomalous : Tensor of shape (N,)
    """
    with torch.autocast(encoded.device.type, enabled=False):
        unit = F.normalize(encoded.float(), dim=-1)
        alike = unit @ unit.mT / _TEMPERATURE
    alike = alike.masked_fill(torch.eye(alike.shape[-1], device=alike.device).bool(), -math.inf)
    rows = alike[:, 1:]
    whole, others = rows.logsumexp(-1), rows[..., 1:].logsumexp(-1)
    scale = 1 / math.log(rows.shape[1])
    return scale * (whole - rows[..., 0]).mean(1), scale * (whole - others).mean(1)


def joint_loss(normal: Tensor, anomalous: Tensor, share: float, labels: Labels) -> Tensor:
    """Loss of samples whose labels are those that make it smallest.

    The share of them whose ``L_n - L_a`` is largest is taken for anomalous. ``hard``: they count
    by L_a alone; ``soft``: by the mean of both.

    Parameters
    ----------
    normal, anomalous : Tensor of shape (N,)
    share : float
        Alpha, on [0, 1).
    """
    count = int(share * len(normal))
    worst = (normal - anomalous).detach().topk(count).indices
    label = torch.zeros_like(normal)
    label[worst] = 0.5 if labels == "soft" else 1.0
    return ((1 - label) * normal + label * anomalous).mean()


class LOE(TrainedFeatureDetector):
    """A learner of patch features that expects some of its training images to be defective.

    It tells a good patch from what learned transformations make of it. Those training patches that
    look worst, anew in each step, are learned with the opposite loss. A patch scores its loss as a
    good one: what share of new images is defective is not assumed.

    The paper infers a label for each image. A defect is a small part of one, so here patches are
    the samples, and the share that is suspected is ``contamination`` times ``extent``.

    Parameters
    ----------
    contamination : float
        Share of the training images that is defective, on [0, 1), which the paper takes as known.
    extent : float
        Share of a defective image's patches that its defect takes, on (0, 1].
    labels : {"soft", "hard"}
        Whether suspected patches count half as good, or not at all.
    transformations : int
        K; 15 in the released code.
    patches : int
        Drawn for a step.
    **options
        See :class:`~offnominal.detectors.trained_features.TrainedFeatureDetector`.
    """

    method: ClassVar[str] = "loe"
    default_backbone: ClassVar[str] = "wide_resnet50_2"
    schedule: ClassVar[Schedule] = Schedule(batch=16, steps=4000, paper_epochs=30)

    def __init__(
        self,
        contamination: float = 0.1,
        extent: float = 0.1,
        labels: Labels = "soft",
        transformations: int = 15,
        patches: int = 2048,
        aggregate: str = "top1",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        check_range("contamination", contamination, least=0, below=1)
        check_range("extent", extent, above=0, most=1)
        check_choice("labels", labels, Labels)
        check_range("transformations", transformations, least=2, most=256, whole=True)
        check_range("patches", patches, least=2, most=2**20, whole=True)
        self.contamination, self.extent = contamination, extent
        self.labels: Labels = labels
        self.transformations, self.patches = transformations, patches

    def build(self) -> None:
        """Transformations and encoder, of the width of the backbone's features."""
        dim = self.load_network().dim
        self.learner = Transformations(dim, self.transformations, min(2 * dim, 512), 64)
        self.shift_, self.scale_ = torch.zeros(dim), torch.ones(dim)
        self._done = 0.0

    def optimisers(self) -> list[Optimizer]:
        """Adam, as released."""
        return [Adam(self.learner.parameters(), lr=4e-4)]

    def rate(self, done: float) -> float:
        """Constant."""
        self._done = done  # share of the schedule
        return 1.0

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Patch features (B, D, gh, gw)."""
        return (self.features(pixels),)

    def prepare(self, images: Images) -> None:
        """Mean and deviation of each channel."""
        mean, variance = self.moments(images)
        self.shift_ = mean.float()
        self.scale_ = variance.clamp(min=_LEAST).sqrt().float()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of patches of all images of the batch, drawn at random."""
        [features] = self.frozen_of(batch)
        rows = features.movedim(1, -1).flatten(0, 2)
        rows = rows[torch.randperm(len(rows), device=rows.device)[: self.patches]]
        normal, anomalous = contrastive_losses(self.learner((rows - self.shift_) / self.scale_))
        share = self.contamination * self.extent if self._done >= _WARM_UP else 0.0
        total = joint_loss(normal, anomalous, share, self.labels)
        return {"total": total, "normal": normal.mean(), "anomalous": anomalous.mean()}

    def compare(self, pixels: Tensor) -> ViewScores:
        """Loss of each patch as a good one."""
        [features] = self.frozen(pixels)
        rows = (features[0].movedim(0, -1) - self.shift_) / self.scale_
        normal, _ = contrastive_losses(self.learner(rows.flatten(0, 1)))
        return ViewScores(normal.reshape(rows.shape[:2]))
