"""The step of a normalising flow over features: half of the channels moves by what the other says.

The block that FastFlow's and CFlow-AD's codes take from FrEIA (Ardizzone et al., 2018-2022), where
it is called AllInOneBlock: an affine coupling (Dinh et al., "Density Estimation using Real NVP",
2017), a learned scale and offset of every channel, and a fixed permutation.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.detectors.learned_state import must

__all__ = ["Clamping", "Coupling", "Flow", "Mixing", "check_flows"]

Clamping = Literal["plain", "scaled"]
Mixing = Literal["permutation", "rotation"]

_SHRUNK = 0.1  # what the subnet gives is multiplied by it, so that a flow begins near the identity


class Coupling(nn.Module):
    """One step, of maps (B, C, h, w) or of vectors (B, C).

    With x1 the first ``C - C // 2`` channels and x2 the others,

    ``s, t = 0.1 subnet(x1, condition)``, ``x2' = x2 exp(u(s)) + t``, ``y = R (g (x1, x2') + o)``

    and the logarithm of the Jacobian's determinant is the sum of u and of log g over all channels
    and positions; R adds nothing to it.

    Parameters
    ----------
    channels : int
        C, at least 2.
    subnet : nn.Module
        From x1, and the condition behind it, to ``2 * (C // 2)`` channels.
    clamp : float
        Bound of u.
    clamping : {"plain", "scaled"}
        ``plain``: ``u = clamp tanh(s)``, as FrEIA had it until August 2023 and with it the codes
        of FastFlow and CFlow-AD, so their figures. ``scaled``: ``u = clamp tanh(s / clamp)``, as it
        has been since; its slope at 0 is 1 instead of ``clamp``. What is trained with one means
        nothing to the other.
    mixing : {"permutation", "rotation"}
        R: the channels in another order, or turned by a random rotation. Drawn from torch's own
        generator, never trained, and kept with the rest.
    """

    def __init__(
        self, channels: int, subnet: nn.Module, clamp: float, clamping: Clamping, mixing: Mixing
    ) -> None:
        super().__init__()
        self.kept = channels - channels // 2
        self.subnet = subnet
        self.clamp = clamp
        self.inside = clamp if clamping == "scaled" else 1.0
        # A scale of exactly 1 by the formula in `forward`.
        self.global_scale = nn.Parameter(torch.full((channels,), 2 * math.log(math.exp(5) - 1)))
        self.global_offset = nn.Parameter(torch.zeros(channels))
        self.mixing = mixing
        how = torch.randperm(channels) if mixing == "permutation" else _rotation(channels)
        self.mix: Tensor
        self.register_buffer("mix", how)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What x becomes, of its shape, and the log-determinants (B,)."""
        still, moved = x.split((self.kept, x.shape[1] - self.kept), dim=1)
        known = still if condition is None else torch.cat([still, condition], dim=1)
        s, t = (_SHRUNK * self.subnet(known)).chunk(2, dim=1)
        u = self.clamp * torch.tanh(s / self.inside)
        y = torch.cat([still, moved * u.exp() + t], dim=1)
        each = (-1, *[1] * (x.ndim - 2))
        scale = 0.1 * F.softplus(self.global_scale, beta=0.5)
        y = y * scale.view(each) + self.global_offset.view(each)
        positions = x[0, 0].numel()
        return self._mixed(y), u.flatten(1).sum(1) + positions * scale.log().sum()

    def _mixed(self, y: Tensor) -> Tensor:
        if self.mixing == "permutation":
            return y.index_select(1, self.mix)
        return torch.einsum("oc,bc...->bo...", self.mix.to(y.dtype), y)


class Flow(nn.Module):
    """Steps one after another; all of them see the same condition."""

    def __init__(self, steps: Iterable[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents of the shape of x, and the log-determinants (B,)."""
        log_det = x.new_zeros(len(x))
        for step in self.steps:
            x, more = step(x) if condition is None else step(x, condition)
            log_det = log_det + more
        return x, log_det


def _rotation(size: int) -> Tensor:
    """A matrix of SO(n), evenly drawn: Q of a Gaussian one, its signs fixed by R's diagonal."""
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.slogdet(q).sign
    return q.float().contiguous()  # columns lie together in it, and sums would round otherwise


def check_flows(module: nn.Module) -> None:
    """Raise a ValueError unless what a file gave puts every channel somewhere."""
    for name, order in module.named_buffers():
        if order.dtype == torch.int64 and not name.startswith("network."):
            every = torch.arange(len(order), device=order.device)
            must(torch.equal(order.sort().values, every), f"{name} is no order of the channels")
