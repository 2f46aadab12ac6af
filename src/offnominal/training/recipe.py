"""How prompts are trained: the papers' settings, and what may be changed of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from offnominal.errors import OptionError

__all__ = ["RECIPES", "Recipe"]

_WARM_UP = 1e-5  # CoOp's rate in its first epoch


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes
    ----------
    epochs : int
        Rounds through all images; 0 writes the prompts as they were drawn.
    batch : int
        Images a step; the last one of an epoch takes what is left.
    lr : float
        Learning rate.
    seed : int
        Of the first values and of the order of images.
    local_weight : float
        Weight of the maps' loss beside the images'; 0 leaves masks out.
    optimiser : {"adam", "sgd"}
        ``adam``: betas 0.5 and 0.999, constant rate (AnomalyCLIP's released code). ``sgd``:
        momentum 0.9, weight decay 5e-4, one epoch at 1e-5 and then a cosine from ``lr`` towards 0
        (CoOp's).
    """

    epochs: int = 15
    batch: int = 8
    lr: float = 1e-3
    seed: int = 111
    local_weight: float = 4.0
    optimiser: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise OptionError(f"--epochs {self.epochs}: give 0 or more")
        if self.batch < 1:
            raise OptionError(f"--batch {self.batch}: give 1 or more")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise OptionError(f"--lr {self.lr}: give a rate above 0, as 0.001")
        if not self.local_weight >= 0 or not math.isfinite(self.local_weight):
            raise OptionError(f"--local-weight {self.local_weight}: give 0 or more")

    def make_optimiser(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimiser, before its first step."""
        if self.optimiser == "adam":
            return Adam(parameters, lr=self.lr, betas=(0.5, 0.999))
        return SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=5e-4)

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        if self.optimiser == "adam":
            return self.lr
        if epoch == 0 and self.epochs > 1:
            return _WARM_UP
        return 0.5 * self.lr * (1 + math.cos(math.pi * epoch / self.epochs))

    def identity(self) -> dict[str, object]:
        """What two parts of one training must have in common.

        At a constant rate the number of epochs is not among it: a finished training can go on.
        """
        common: dict[str, object] = {
            "batch": self.batch,
            "lr": self.lr,
            "seed": self.seed,
            "local_weight": self.local_weight,
            "optimiser": self.optimiser,
        }
        return common if self.optimiser == "adam" else common | {"epochs": self.epochs}


RECIPES = {
    # Zhou et al., 2024, section 4.1, and the released code's script.
    "anomalyclip": Recipe(),
    # Zhou et al., 2022, section 4.1; the whole image's loss alone, as there.
    "coop": Recipe(epochs=50, batch=32, lr=2e-3, seed=1, local_weight=0.0, optimiser="sgd"),
}
