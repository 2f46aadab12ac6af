"""AdamW that shortens a step where the second moment lags behind the gradient.

Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi and Schmidt, "Stable and low-precision training for
large-scale vision-language models", NeurIPS 2023 (arXiv 2304.13013), section 3.5, algorithm 2.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from offnominal.errors import OptionError

__all__ = ["StableAdamW"]


class StableAdamW(Optimizer):
    """AdamW with update clipping, as Dinomaly's released code has it.

    Each tensor's step is divided by ``max(1, RMS(g / sqrt(v)) / threshold)``: 1 unless gradients g
    have grown faster than their second moment v. Here v is the largest that there has been
    (Reddi, Kale and Kumar, 2018).

    Parameters
    ----------
    parameters : iterable of nn.Parameter
    lr : float
        Learning rate; above 0.
    betas : (float, float)
        Of the means of gradients and of their squares, each on [0, 1).
    weight_decay : float
        Decoupled; a tensor shrinks by ``lr`` times this in a step.
    eps : float
        Added to the root of the second moment.
    threshold : float
        Of the update clipping.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        eps: float = 1e-10,
        threshold: float = 1.0,
    ) -> None:
        if not (lr > 0 and all(0 <= beta < 1 for beta in betas)):
            raise OptionError(f"lr {lr}, betas {betas}: give a rate above 0, and betas on [0, 1)")
        settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(parameters, settings | {"eps": eps, "threshold": threshold})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; what ``closure`` gives is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._update(tensor, tensor.grad, group)
        return loss

    def _update(self, tensor: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[tensor]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                state[name] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
        state["step"] += 1
        count, (first, second) = float(state["step"]), group["betas"]
        mean, square, largest = (
            state["exp_avg"],
            state["exp_avg_sq"],
            state["max_exp_avg_sq"],
        )
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        torch.maximum(largest, square, out=largest)
        root = largest.sqrt().div_(math.sqrt(1 - second**count)).add_(group["eps"])
        excess = (gradient / root).square_().mean().sqrt_() / group["threshold"]
        rate = group["lr"] / (1 - first**count) / excess.clamp_(min=1)
        tensor.mul_(1 - group["lr"] * group["weight_decay"])
        tensor.sub_(rate * mean / root)
