"""DifferNet: the likelihood of an image's features at three scales, turned in many ways.

Rudolph, Wandt and Rosenhahn, "Same Same But DifferNet: Semi-Supervised Defect Detection with
Normalizing Flows", WACV 2021 (arXiv 2008.12577).
"""


import torch
from torch import Tensor, nn

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
        x1, x2 = x.index_select(1, self.order).split(self.halves, dim=1)
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
