"""FastFlow: the likelihood of a frozen network's feature maps, by flows that keep their shape.

Yu, Zheng, Wang, Li, Wu, Zhao and Wu, "FastFlow: Unsupervised Anomaly Detection and Localization via
2D Normalizing Flows", 2021 (arXiv 2111.07677). The authors released no code; where the paper is
silent, gathierry's reproduction is followed.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.backbones.base import Backbone
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.flow.coupling import Clamping, Coupling, Flow, check_flows
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch

__all__ = ["FastFlow", "Kernels", "LevelFlow", "anomaly_map", "nll"]

Kernels = Literal["3", "3-1"]

_CLAMP = 2.0
_LARGE = 256  # channels of the largest level of ResNet-18


class LevelFlow(nn.Module):
    """The flow of one level's features (B, C, h, w).

    Parameters
    ----------
    shape : (C, h, w)
    steps : int
        Coupling steps.
    hidden : float
        Channels inside a subnet, as a share of those that it sees.
    kernels : {"3", "3-1"}
        Sides of the subnets' convolutions, step after step.
    clamping : {"plain", "scaled"}
    norm : bool
        Whether a layer norm with learned weights comes first.
    """

    def __init__(
        self,
        shape: Sequence[int],
        steps: int,
        hidden: float,
        kernels: Kernels,
        clamping: Clamping,
        norm: bool,
    ) -> None:
        super().__init__()
        channels = shape[0]
        sides = [3 if kernels == "3" else 3 - 2 * (step % 2) for step in range(steps)]
        self.norm = nn.LayerNorm(list(shape)) if norm else nn.Identity()
        self.flow = Flow(
            Coupling(channels, _subnet(channels, hidden, side), _CLAMP, clamping, "permutation")
            for side in sides
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of the features' shape, and log-determinants (B,)."""
        found: tuple[Tensor, Tensor] = self.flow(self.norm(features))
        return found


def _subnet(channels: int, hidden: float, side: int) -> nn.Module:
    seen, moved = channels - channels // 2, channels // 2
    inside = max(1, int(seen * hidden))
    return nn.Sequential(
        nn.Conv2d(seen, inside, side, padding=side // 2),
        nn.ReLU(),
        nn.Conv2d(inside, 2 * moved, side, padding=side // 2),
    )


def nll(latent: Tensor, log_det: Tensor) -> Tensor:
    """Negative log-likelihood of each image (B,), without its constant (section 3.2)."""
    return 0.5 * latent.square().flatten(1).sum(1) - log_det


def anomaly_map(latents: Sequence[Tensor], side: Sequence[int]) -> Tensor:
    """Mean over the levels of ``1 - exp(-1/2 mean over channels of z^2)``, (B, *side), on [0, 1].

    The reproduction's map, which is this one less 1: so 0 is what is most usual.
    """
    levels = [1 - torch.exp(-0.5 * z.square().mean(1, keepdim=True)) for z in latents]
    large = [F.interpolate(one, size=tuple(side), mode="bilinear") for one in levels]
    return torch.stack(large).mean(0)[:, 0]


class FastFlow(TrainedFeatureDetector):
    """Normalising flows over the feature maps of a frozen network.

    At each level steps of couplings, whose subnets are convolutions, turn the features into what is
    normally distributed where they are those of good parts (section 3.2); every position keeps its
    place, so the map needs no more than the latents' lengths.

    Parameters
    ----------
    couplings : int or None
        Steps of a flow. None: the paper's, 8 for convolutional networks and 20 for transformers.
    width : float
        Factor on the channels inside the subnets: those of the paper are as many as a subnet sees,
        and 0.16 of them for transformers. Below 1 it trains faster and learns less.
    kernels : {"3", "3-1"} or None
        Sides of the subnets' convolutions: all 3, or 3 and 1 in turn. None: the paper's, all 3 for
        ResNet-18 and in turn for others; here the former for a pyramid of 256 channels at most.
    clamping : {"plain", "scaled"}
        Of the couplings; see :class:`~offnominal.detectors.flow.coupling.Coupling`. ``plain`` is
        that of the figures, and of the learning rate that goes with it.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`. Levels are those of strides 4, 8 and
        16; of a transformer the block two thirds through, as the paper's 8th of DeiT's 12. The
        paper's networks are ResNet-18, the default, and WideResNet-50-2 at 256 pixels, DeiT-B at
        384 and CaiT-M48 at 448.

    Notes
    -----
    The layer norm over all channels and positions, with a weight and an offset for each value, is
    the reproduction's: the paper does not mention it and nothing works without it. It binds a model
    to one size of images, which is why they are squares here; transformers have a norm of their
    own. The map is of the reproduction too, and its maximum is the image score, of which neither
    says anything; it is taken from 1, so that 0 is most usual.
    """

    method: ClassVar[str] = "fastflow"
    default_backbone: ClassVar[str] = "resnet18"
    default_layers: ClassVar[tuple[int, ...] | None] = (-4, -3, -2)
    schedule: ClassVar[Schedule] = Schedule(batch=32, steps=300, paper_epochs=500)

    def __init__(
        self,
        couplings: int | None = None,
        width: float = 1.0,
        kernels: Kernels | None = None,
        clamping: Clamping = "plain",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if couplings is not None:
            check_range("couplings", couplings, least=1, most=64, whole=True)
        check_range("width", width, above=0, most=16)
        if kernels is not None:
            check_choice("kernels", kernels, Kernels)
        check_choice("clamping", clamping, Clamping)
        self.couplings, self.width = couplings, width
        self.kernels: Kernels | None = kernels
        self.clamping: Clamping = clamping

    def choose_levels(self, network: Backbone) -> Backbone:
        """A pyramid's three middle levels, or a transformer's block two thirds through."""
        if self.layers is None and network.is_transformer:
            return network.at_levels([round(network.level_count * 2 / 3) - 1])
        return super().choose_levels(network)

    def build(self) -> None:
        """A flow for each level."""
        network = self.load_network()
        blank = torch.zeros(1, 3, self.side, self.side)
        shapes = [one.shape[1:] for one in self.frozen(blank)]
        large = network.is_transformer or max(shape[0] for shape in shapes) > _LARGE
        couplings, share = (20, 0.16) if network.is_transformer else (8, 1.0)
        kernels = self.kernels or ("3-1" if large else "3")
        told = (self.couplings or couplings, share * self.width, kernels, self.clamping)
        self.flows = nn.ModuleList(
            LevelFlow(shape, *told, norm=not network.is_transformer) for shape in shapes
        )

    def optimisers(self) -> list[Optimizer]:
        """Adam, with a little weight decay (section 4.2)."""
        return [Adam(self.flows.parameters(), lr=1e-3, weight_decay=1e-5)]

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The levels (B, C, h, w), laid out as the couplings are fastest."""
        return tuple(one.contiguous() for one in self.levels(pixels).maps)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Negative log-likelihood of an image, summed over the levels."""
        found = [flow(x) for flow, x in zip(self.flows, self.frozen_of(batch), strict=True)]
        each = {f"level {n}": nll(*one).mean() for n, one in enumerate(found, start=1)}
        return {"total": torch.stack(list(each.values())).sum(), **each}

    def compare(self, pixels: Tensor) -> ViewScores:
        """The map; its maximum is the image score."""
        found = [flow(x)[0] for flow, x in zip(self.flows, self.frozen(pixels), strict=True)]
        return ViewScores(anomaly_map(found, (self.side, self.side))[0])

    def check_learned(self) -> None:
        """Permutations that are some."""
        super().check_learned()
        check_flows(self)
