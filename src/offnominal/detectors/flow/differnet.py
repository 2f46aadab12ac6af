"""DifferNet: the likelihood of an image's features at three scales, turned in many ways.

Rudolph, Wandt and Rosenhahn, "Same Same But DifferNet: Semi-Supervised Defect Detection with
Normalizing Flows", WACV 2021 (arXiv 2008.12577).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchvision.transforms.v2.functional import rotate

from offnominal.checks import check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.flow.coupling import Flow, check_flows
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch

__all__ = ["DifferNet", "Step", "nll"]

_SCALES = 3
_HIDDEN = 2048
_COPIES = 4  # of an image in a step of the training
_CLAMP = 3.0
_SLOPE = 0.636  # nearly 2 / pi: the arcus tangens then runs from -1 to 1


class Step(nn.Module):
    """A permutation and a coupling of both halves (section 3.2), of vectors (B, C)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.order: Tensor
        self.register_buffer("order", torch.randperm(channels))
        self.halves = (channels // 2, channels - channels // 2)
        first, second = self.halves
        self.s1 = _subnet(first, hidden, 2 * second)
        self.s2 = _subnet(second, hidden, 2 * first)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What x becomes, and the log-determinants (B,)."""
        x1, x2 = torch.split(x.index_select(1, self.order), list(self.halves), dim=1)
        y1, first = _moved(x1, self.s2(x2))
        y2, second = _moved(x2, self.s1(y1))
        # Bounded as in the released code: what explodes must not end as not a number.
        return torch.cat([y1, y2], dim=1).clamp(-1e6, 1e6), first + second


def _moved(x: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    s, t = by.chunk(2, dim=1)
    u = _CLAMP * _SLOPE * torch.atan(s / _CLAMP)
    return u.exp() * x + t, u.sum(1)


def _subnet(seen: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(seen, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, out),
    )


def nll(latent: Tensor, log_det: Tensor) -> Tensor:
    """Negative log-likelihood of each vector (N,), per dimension, without its constant."""
    return (0.5 * latent.square().sum(1) - log_det) / latent.shape[1]


class DifferNet(TrainedFeatureDetector):
    """A normalising flow of one vector for each of many rotated copies of an image.

    A copy is described by the means of a frozen network's last level at three scales (section 3.1),
    and an image scores the mean squared length of its copies' latents (section 3.3).

    Nothing is said of where a fault lies: the grid has one patch, the map is the image score at
    every pixel, and a rejected image is one region. (The paper sends gradients back to the pixels.)

    Parameters
    ----------
    rotations : int
        Copies of an image, each rotated by an angle that is drawn once, from ``seed``: the same for
        every image, in the training and after it. The released code draws anew each time, four
        times an image in a step of the training and 64 times at a test, so its scores are random.
    couplings : int
        Steps of the flow, 8 in the paper.
    width : float
        Factor on the 2,048 units of the subnets' three hidden layers, with which the flow has 172
        million values for AlexNet's 768 features; 18 million with 0.25.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`. The paper's network is AlexNet,
        whose weights are on no hub: ``backbone="alexnet"`` with torchvision's file as ``weights``.
        Of any other the last level is used. The sides of the scales, 448, 224 and 112 pixels, are
        rounded to what the network takes.
    """

    method: ClassVar[str] = "differnet"
    default_backbone: ClassVar[str] = "resnet18"
    default_layers: ClassVar[tuple[int, ...] | None] = (-1,)
    default_side: ClassVar[int] = 448
    schedule: ClassVar[Schedule] = Schedule(batch=24, steps=400, paper_epochs=192)

    def __init__(
        self, rotations: int = 16, couplings: int = 8, width: float = 1.0, **options: Any
    ) -> None:
        super().__init__(**options)
        check_range("rotations", rotations, least=1, most=1024, whole=True)
        check_range("couplings", couplings, least=1, most=64, whole=True)
        check_range("width", width, above=0, most=16)
        self.rotations, self.couplings, self.width = rotations, couplings, width

    def build(self) -> None:
        """The flow."""
        channels = _SCALES * self.load_network().dim
        hidden = max(1, round(_HIDDEN * self.width))
        self.flow = Flow(Step(channels, hidden) for _ in range(self.couplings))

    def optimisers(self) -> list[Optimizer]:
        """Adam, as the released code has it."""
        weights = self.flow.parameters()
        return [Adam(weights, lr=2e-4, betas=(0.8, 0.8), eps=1e-4, weight_decay=1e-5)]

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Vectors of all copies of each image, (B, rotations, D)."""
        angles = np.random.default_rng(self.seed).uniform(-180, 180, self.rotations)
        # Corners that a rotation leaves open are black.
        black = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        copies = [rotate(pixels, float(angle), fill=black) for angle in angles]
        return (torch.stack([self.vectors(one) for one in copies], dim=1),)

    def known_by(self, pixels: Tensor) -> Sequence[Tensor]:
        """The vector of an image as it lies, as the one patch that there is."""
        return [self.vectors(pixels)[..., None, None]]

    def vectors(self, pixels: Tensor) -> Tensor:
        """Means of the last level at three scales, (B, D)."""
        step = self.load_network().multiple
        found = []
        for scale in range(_SCALES):
            side = max(1, round(self.side / 2**scale / step)) * step
            # Nearest, as released.
            small = pixels if side == pixels.shape[-1] else F.interpolate(pixels, size=(side, side))
            found.append(self.levels(small).maps[-1].mean((2, 3)))
        return torch.cat(found, dim=1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Negative log-likelihood per dimension, of some copies of each image (eq. 5)."""
        [vectors] = self.frozen_of(batch)
        count = min(_COPIES, self.rotations)
        drawn = [batch.rng.permutation(self.rotations)[:count] for _ in vectors]
        chosen = torch.from_numpy(np.stack(drawn)).to(vectors.device)
        some = vectors.gather(1, chosen[..., None].expand(-1, -1, vectors.shape[2]))
        return {"total": nll(*self.flow(some.flatten(0, 1))).mean()}

    def exportable(self) -> str | None:
        """Why not."""
        return (
            "it runs its network on many turned copies of each image at three scales, and each "
            "would be another network in the graph; use fastflow, or run it with Python"
        )

    def compare(self, pixels: Tensor) -> ViewScores:
        """The mean over copies and dimensions of the squared latents, as a grid of one patch."""
        [vectors] = self.frozen(pixels)
        z, _ = self.flow(vectors[0])
        return ViewScores(z.square().mean().view(1, 1))

    def check_learned(self) -> None:
        """Permutations that are some."""
        super().check_learned()
        check_flows(self)
