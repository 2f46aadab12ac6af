"""A sampler that learns which patches to train on, from how far defects stand out a step later."""

import torch
from torch import Tensor, nn

__all__ = ["PatchSampler"]

# How fast it learns, how much it remembers of rewards, how much it wants anything at most.
_RATE, _MEMORY, _MOST = 0.5, 0.9, 2.0


class PatchSampler(nn.Module):
    """Draws patches by a weighted sum of what is known about each; learns weights by REINFORCE.

    Attributes
    ----------
    weights : Tensor of shape (3,)
        Of a patch's loss, of how far it has fallen, and of whether the patch is known to be good.
    """

    weights: Tensor
    beyond: Tensor
    usual: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(3))
        # By how much the last draw differs from what the weights ask for, and a mean reward.
        self.register_buffer("beyond", torch.zeros(3))
        self.register_buffer("usual", torch.zeros(()))

    @torch.no_grad()
    def learn(self, losses: Tensor, truth: Tensor) -> None:
        """Be paid for the last draw: by how far losses of defects lie above those of what is good.

        Parameters
        ----------
        losses : Tensor of shape (n,)
            Of the patches of a step.
        truth : Tensor of shape (n,)
            0 good, 1 defective; with none of one of them there is nothing to pay for.
        """
        good, bad = losses[truth == 0], losses[truth == 1]
        if len(good) and len(bad):
            reward = (bad.mean() - good.mean()) / losses.std().clamp(min=1e-6)
            self.weights += _RATE * (reward - self.usual) * self.beyond
            self.weights.clamp_(-_MOST, _MOST)
            self.usual.lerp_(reward, 1 - _MEMORY)

    @torch.no_grad()
    def draw(self, losses: Tensor, before: Tensor, truth: Tensor, count: int) -> Tensor:
        """Places of so many patches (count,), some of them more than once.

        ``before`` are the losses (n,) that the same patches had at an earlier moment.
        """
        known = (truth == 0).float()
        states = torch.stack([_scaled(each) for each in (losses, before - losses, known)], 1)
        chances = (states @ self.weights).softmax(0)
        chosen = chances.multinomial(count, replacement=True)
        # The slope of the draw's log-likelihood, scaled to about 1 for any count.
        self.beyond.copy_((states[chosen].mean(0) - chances @ states) * count**0.5)
        return chosen


def _scaled(values: Tensor) -> Tensor:
    """Values with a mean of 0 and a deviation of 1, or all 0."""
    return (values - values.mean()) / values.std().clamp(min=1e-6)
