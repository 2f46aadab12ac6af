"""Mixed supervision: few masks, many labels; segmentation first, then a decision about the image.

Božič, Tabernik and Skočaj, "Mixed supervision for surface-defect detection: From weakly to fully
supervised learning", Computers in Industry 129, 2021 (arXiv 2104.06064).
"""

from itertools import pairwise
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.supervised.base import Supervised
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images, Triple
from offnominal.training.imbalance import Imbalance, bce, imbalance_loss

__all__ = ["MixedSupervision", "distance_weights"]

_STRIDE = 8
_SEEN = 2 * _STRIDE + 1  # pixels a side that a position of the map stands for
_HALF_KNOWN = 0.5


class MixedSupervision(Supervised):
    """SegDec-Net: a network that marks defects, and one on top that decides about the image.

    Images with a mask, and good ones, teach both; images that are only labelled as defective teach
    the decision. While the training goes on, the weight moves from the marks to the decision, and
    no gradient of the decision reaches the marks, so that few masks are not drowned by many labels.
    Where no image at all has a mask, the decision teaches all of it, from the first step.

    Parameters
    ----------
    decision : float
        Weight of the decision's loss (delta); 1 in most runs of the paper, down to 0.01.
    distance : float
        Weight of a pixel in the middle of a defect, beside 1 of good ones; 3 in the paper's runs on
        KolektorSDD2. It falls towards the border, which is the least certain. 1: all count alike.
    width : int
        Channels of the last layer before the marks. The paper's 1024 take a second and a half for
        each image and step on one core.
    criterion : {"bce", "focal", "deviation", "dice", "auc-margin"}
        Loss of the marks; cross-entropy in the paper. See :mod:`offnominal.training.imbalance`.
    **options
        See :class:`~offnominal.detectors.supervised.base.Supervised`.

    Notes
    -----
    As the released code has it, one layer of the paper's first block is missing, and features are
    divided by the root of their deviation. The learning rate, which the paper has from 0.01 to 1 by
    data set, is 0.1 here; ``lr_scale`` changes it. The paper's good images come by how rarely they
    were used; here in rounds. The map is the sigmoid of the marks.
    """

    method: ClassVar[str] = "mixed-supervision"
    schedule: ClassVar[Schedule] = Schedule(batch=4, steps=300, paper_epochs=50)
    side_multiple: ClassVar[int] = 32
    mean: ClassVar[Triple] = (0.0, 0.0, 0.0)
    std: ClassVar[Triple] = (1.0, 1.0, 1.0)

    def __init__(
        self,
        decision: float = 1.0,
        distance: float = 3.0,
        width: int = 128,
        criterion: Imbalance = "bce",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("decision", decision, above=0)
        check_range("distance", distance, least=1)
        check_range("width", width, least=1, most=4096, whole=True)
        check_choice("criterion", criterion, Imbalance)
        self.decision, self.distance, self.width = decision, distance, width
        self.criterion: Imbalance = criterion

    def build(self) -> None:
        """Features of stride 8, what marks, and what decides."""
        layers: list[nn.Module] = []
        for block in ([3, 32], [32, 64, 64, 64], [64] * 5):
            for given, made in pairwise(block):
                layers += _block(given, made)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, *_block(64, self.width, 15))
        self.marks = nn.Sequential(nn.Conv2d(self.width, 1, 1, bias=False), FeatureNorm(1))
        deeper: list[nn.Module] = []
        for given, made in pairwise([self.width + 1, 8, 16, 32]):
            deeper += [nn.MaxPool2d(2), *_block(given, made)]
        self.deeper = nn.Sequential(*deeper)
        self.decide = nn.Linear(2 * 32 + 2, 1)
        for one in self.modules():
            if isinstance(one, nn.Conv2d):
                nn.init.xavier_normal_(one.weight)
        self._done, self._some_marked = 0.0, True

    def prepare(self, images: Images) -> None:
        """Whether there is any mask."""
        self._some_marked = any(one["marked"] for one in self.defects_)

    def optimisers(self) -> list[Optimizer]:
        """Plain gradient descent."""
        return [SGD(self.parameters(), lr=0.1)]

    def rate(self, done: float) -> float:
        """Constant; what moves is the weight of the losses."""
        self._done = done
        return 1.0

    def forward(self, pixels: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
        """Logits of the marks (B, h / 8, w / 8) and of the images (B,).

        ``apart``: no gradient of the second goes into the first.
        """
        features = self.features(pixels)
        marks = self.marks(features)
        both = torch.cat([features, marks], 1)
        seen = both.detach() if apart else both
        found = [self.deeper(seen), seen[:, -1:]]
        summary = [each.amax((2, 3)) for each in found] + [each.mean((2, 3)) for each in found]
        return marks[:, 0], self.decide(torch.cat(summary, 1))[:, 0]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of the marks where they are known, and of the decisions."""
        assert batch.labels is not None
        assert batch.targets is not None
        marks, images = self.forward(batch.pixels, self._some_marked)
        known = (batch.targets <= 1).float()
        weights = torch.from_numpy(
            np.stack([distance_weights(one, self.distance) for one in batch.targets.cpu().numpy()])
        ).to(marks.device)
        truth, known, weights = (
            _pooled(each) for each in ((batch.targets == 1).float(), known, weights)
        )
        truth = truth.masked_fill(known < _HALF_KNOWN, 255)
        marked = imbalance_loss(self.criterion)(marks, truth, weights)
        decided = bce(images, batch.labels, None)
        still = 1 - self._done if self._some_marked else 0.0
        total = still * marked + self.decision * (1 - still) * decided
        return {"total": total, "marks": marked, "decisions": decided}

    def compare(self, pixels: Tensor) -> ViewScores:
        """The decision, and the marks."""
        marks, images = self.forward(pixels)
        return ViewScores(torch.sigmoid(marks[0]), torch.sigmoid(images[0]))


class FeatureNorm(nn.Module):
    """Each channel of an image less its mean, by the root of its deviation; scaled and shifted."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, grid: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        middle = grid.mean((2, 3), keepdim=True)
        # The root of 0 has no slope.
        deviation = ((grid - middle).square().mean((2, 3), keepdim=True) + 1e-8).sqrt()
        scaled: Tensor = self.scale * (grid - middle) / (deviation + 1e-3).sqrt() + self.shift
        return scaled


def _block(given: int, made: int, kernel: int = 5) -> list[nn.Module]:
    conv = nn.Conv2d(given, made, kernel, padding=kernel // 2, bias=False)
    return [conv, FeatureNorm(made), nn.ReLU()]


def distance_weights(target: np.ndarray, most: float) -> np.ndarray:
    """How much each pixel of a target (h, w) counts, float32: more inside of a defect.

    The squared distance from what is good, by the largest one in the image, times ``most``, and 1
    outside of defects.
    """
    defect = (target == 1).astype(np.uint8)
    if most == 1 or not defect.any():
        return np.ones(target.shape, np.float32)
    distance = cv2.distanceTransform(defect, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    weights = most * (distance / distance.max()) ** 2
    return np.where(defect > 0, weights, 1).astype(np.float32)


def _pooled(values: Tensor) -> Tensor:
    """Means (B, h / 8, w / 8) of what each position sees of (B, h, w)."""
    padded = F.pad(values[:, None], (_STRIDE,) * 4, mode="reflect")
    return F.avg_pool2d(padded, _SEEN, _STRIDE)[:, 0]
