"""FastFlow: the likelihood of a frozen network's feature maps, by flows that keep their shape.

Yu, Zheng, Wang, Li, Wu, Zhao and Wu, "FastFlow: Unsupervised Anomaly Detection and Localization via
2D Normalizing Flows", 2021 (arXiv 2111.07677). The authors released no code; where the paper is
silent, gathierry's reproduction is followed.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.detectors.flow.coupling import Clamping, Coupling, Flow

__all__ = ["FastFlow", "Kernels", "LevelFlow", "anomaly_map", "nll"]

Kernels = Literal["3", "3-1"]

_CLAMP = 2.0
_CNN = {"steps": 8, "ratio": 1.0}
_TRANSFORMER = {"steps": 20, "ratio": 0.16}


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
