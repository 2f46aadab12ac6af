"""SuperSimpleNet: noisy features, and labelled defects where there are some, told from good ones.

Rolih, Fucka and Skocaj, "SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Fast and
Reliable Surface Defect Detection", ICPR 2024 (arXiv 2408.03143).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.supervised.base import Supervised
from offnominal.detectors.supervised.grids import finer
from offnominal.detectors.supervised.separation import Criterion, Truth, blotch, separation, twice
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images

__all__ = ["SuperSimpleNet"]

_PAPERS_NOISE = 0.015  # with residual networks
_SHARE = 0.3  # of the deviation of other networks' features
_SPARSE, _DENSE = 0.6, 0.2  # Perlin noise above it is a defect: with labelled ones, without
_WIDTH, _CHANNELS = 1024, 128  # of the two heads


class SuperSimpleNet(Supervised, TrainedFeatureDetector):
    """A map and a score from two heads on adapted features, learned with noise and with defects.

    As SimpleNet, it tells features of good patches from the same with Gaussian noise, here in
    blotches, which are synthetic defects with a shape. A second head scores the image by all of the
    map and the features. Labelled defects are learned in the same way: the map where their pixels
    are known, the score in any case. Without any it learns from good images alone.

    Parameters
    ----------
    noise : float or None
        Standard deviation of the noise. None: the paper's 0.015 with residual networks, whose
        features it was chosen for; with others 0.3 of the deviation of their features.
    blotches : float or None
        Where Perlin noise, about on [-1, 1], is above it there is a synthetic defect. None: 0.2,
        or 0.6 where there are labelled ones.
    criterion : {"paper", "focal", "bce", "deviation", "dice", "auc-margin"}
        Loss of map and score, beside the map's truncated L1 loss. ``paper``: a focal loss, with a
        power of 4; others as in :mod:`offnominal.training.imbalance`.
    smoothing : float
        Standard deviation of the map's Gaussian, in pixels of the image; 4, as in the paper.
    aggregate : str
        ``paper``: the second head's probability. ``max``: the largest value of the map.
    **options
        See :class:`~offnominal.detectors.supervised.base.Supervised` and
        :class:`~offnominal.detectors.trained_features.TrainedFeatureDetector`. The backbone is
        WideResNet-50-2, ``layers`` those of stride 8 and 16.

    Examples
    --------
    >>> from offnominal import SuperSimpleNet
    >>> detector = SuperSimpleNet(budget="20m").fit("good/", defects="bad/")
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "supersimplenet"
    default_backbone: ClassVar[str] = "wide_resnet50_2"
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=100, paper_epochs=300)
    defects_needed: ClassVar[bool] = False

    def __init__(
        self,
        noise: float | None = None,
        blotches: float | None = None,
        criterion: Criterion = "paper",
        smoothing: float = 4.0,
        aggregate: str = "paper",
        **options: Any,
    ) -> None:
        super().__init__(smoothing=smoothing, aggregate=aggregate, **options)
        if noise is not None:
            check_range("noise", noise, above=0)
        if blotches is not None:
            check_range("blotches", blotches, least=0, below=1)
        check_choice("criterion", criterion, Criterion)
        self.noise, self.blotches = noise, blotches
        self.criterion: Criterion = criterion

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The backbone's levels, (B, C, h, w) each."""
        return tuple(self.levels(pixels).maps)

    def build(self) -> None:
        """Adaptor, the head of the map and that of the score."""
        # With labelled defects only, as in the released code.
        clip = 1.0 if self.labels_ else None
        self.schedule = replace(self.schedule, clip=clip)  # type: ignore[misc]  # this one's own
        side = self.load_network().multiple * 2
        dim = sum(each.shape[1] for each in self.frozen(torch.zeros(1, 3, side, side)))
        self.adaptor = nn.Conv2d(dim, dim, 1)
        self.mapper = nn.Sequential(
            nn.Conv2d(dim, _WIDTH, 1),
            nn.BatchNorm2d(_WIDTH),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, 1, 1, bias=False),
        )
        self.summary = nn.Sequential(
            nn.Conv2d(dim + 1, _CHANNELS, 5, padding=2), nn.BatchNorm2d(_CHANNELS), nn.ReLU()
        )
        self.scorer = nn.Linear(2 * _CHANNELS + 2, 1)
        self.noise_ = self.noise or _PAPERS_NOISE
        for layer in (self.adaptor, *self.mapper, *self.summary, self.scorer):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(layer.weight)

    def prepare(self, images: Images) -> None:
        """How strong the noise is, where neither the paper nor the user says."""
        if self.noise is None and "resnet" not in self.load_network().family:
            spread = [
                F.avg_pool2d(each, 3, 1, 1, count_include_pad=False).std((0, 2, 3))
                for maps in self.frozen_of_all(images)
                for each in maps
            ]
            self.noise_ = _SHARE * float(torch.cat(spread).mean())

    def paper_steps(self, good: int, defects: int, batch: int) -> int:
        """300 rounds: through the good images, or four flips of each defect and as many good."""
        return self.schedule.paper(8 * defects or good, batch)

    def optimisers(self) -> list[Optimizer]:
        """AdamW, with rates and weight decays of their own for adaptor and heads."""
        heads = nn.ModuleList([self.mapper, self.summary, self.scorer])
        groups = [
            {"params": list(self.adaptor.parameters()), "lr": 1e-4, "weight_decay": 0.01},
            {"params": list(heads.parameters()), "lr": 2e-4, "weight_decay": 1e-5},
        ]
        return [AdamW(groups)]

    def rate(self, done: float) -> float:
        """0.4 of it after four fifths of the schedule, and again after nine tenths."""
        return float(0.4 ** ((done >= 0.8) + (done >= 0.9)))

    def adapted(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (B, C, gh, gw) from levels, on a grid twice as fine as the finest of them."""
        # Resizing is linear as well: the adaptor costs less before it than after it.
        size = [2 * int(side) for side in maps[0].shape[-2:]]
        parts = torch.split(self.adaptor.weight, [int(each.shape[1]) for each in maps], 1)
        pairs = zip(maps, parts, strict=True)
        found = sum(finer(F.conv2d(each, part), size) for each, part in pairs)
        assert isinstance(found, Tensor)
        assert self.adaptor.bias is not None
        return found + self.adaptor.bias[:, None, None]

    def judge(self, features: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
        """Map (B, gh, gw) and logits (B,) of adapted features.

        ``apart``: what the score learns does not reach the map.
        """
        found = self.mapper(features)
        seen = found.detach() if apart else found
        channels = self.summary(torch.cat([features, seen], dim=1))
        pooled = [
            part for each in (channels, seen) for part in (each.amax((2, 3)), each.mean((2, 3)))
        ]
        return found[:, 0].float(), self.scorer(torch.cat(pooled, dim=1))[:, 0].float()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of each image twice, with noise in blotches or without."""
        good = self.adapted(self.frozen_of(batch))
        size = (int(good.shape[2]), int(good.shape[3]))
        truth = twice(batch, size, good.device)
        usual = _SPARSE if self.labels_ else _DENSE
        above = usual if self.blotches is None else self.blotches
        drawn = [blotch(size, above, batch.rng) for _ in truth.labels]
        noisy = torch.from_numpy(np.stack(drawn)).to(good.device) & ~truth.defective
        noise = self.noise_ * torch.randn(int(noisy.sum()), good.shape[1], device=good.device)
        return self.loss_with(good, truth, noisy, noise)

    def loss_with(
        self, good: Tensor, truth: Truth, noisy: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """The loss of features (B, C, gh, gw) twice, with noise (n, C) where it is ``noisy``."""
        features = torch.cat([good, good]).permute(0, 2, 3, 1)
        features[noisy] += noise.to(features.dtype)
        labels = torch.maximum(truth.labels, noisy.flatten(1).any(1).float())
        truth = Truth(truth.defective | noisy, truth.known | noisy, labels)
        # Without labelled defects the score would spoil the map, as the paper found.
        found, logits = self.judge(features.permute(0, 3, 1, 2), apart=not self.labels_)
        return separation(found, logits, truth, self.criterion)

    def compare(self, pixels: Tensor) -> ViewScores:
        """The map, and the probability of a defect."""
        found, logits = self.judge(self.adapted(self.frozen(pixels)))
        return ViewScores(found[0], logits[0].sigmoid())
