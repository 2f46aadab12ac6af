"""Batch norms of a pretrained network, made ready for training on other images."""

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["adapt_norms", "after_ones"]

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def adapt_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give batch norms the statistics of some images, without changing what the network computes.

    Each norm's weight and bias are changed by as much as its statistics. A network whose norms were
    folded into its convolutions has none that mean anything, and would be another one from the
    first step of a training, in which norms take the statistics of the batch; so is, if less, one
    whose statistics are of other images.

    Parameters
    ----------
    network : nn.Module
        Is left in evaluation mode.
    batches : iterable of Tensor of shape (B, 3, h, w)
    """
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    counts = [0] * len(norms)
    sums: list[Tensor] = [torch.zeros(())] * len(norms)
    squares: list[Tensor] = [torch.zeros(())] * len(norms)
    places = {id(norm): place for place, norm in enumerate(norms)}

    def measure(norm: nn.Module, given: tuple[Any, ...]) -> None:
        [grid], place = given, places[id(norm)]
        values = grid.detach().double()
        counts[place] += values.numel() // values.shape[1]
        sums[place] = sums[place] + values.sum((0, 2, 3))
        squares[place] = squares[place] + values.square().sum((0, 2, 3))

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    network.eval()
    try:
        for pixels in batches:
            network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, count, total, square in zip(norms, counts, sums, squares, strict=True):
        if norm.running_mean is None or norm.running_var is None or not norm.affine:
            continue
        mean = total / count
        variance = (square / count - mean.square()).clamp(min=0)
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_((mean - norm.running_mean) * gain)
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


@torch.no_grad()
def after_ones(network: Network, side: int) -> Network:
    """A copy of a network whose batch norms have taken in one square image of ones.

    In several released codes such an image goes through the backbone, to count its channels, before
    it is put into evaluation mode: all running statistics go a tenth of the way to the image's.
    """
    other = copy.deepcopy(network)
    norms = [one for one in other.modules() if isinstance(one, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    other(torch.ones(1, 3, side, side, device=next(other.parameters()).device))
    for norm in norms:
        norm.eval()
    return other
