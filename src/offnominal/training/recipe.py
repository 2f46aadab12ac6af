"""Settings of a training, and the optimiser that they name."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from offnominal.errors import OptionError

__all__ = ["Recipe"]

_WARM_UP = 1e-5  # CoOp's rate in its first epoch


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; a method with more of them adds fields of its own.

    Attributes
    ----------
    epochs : int
        Rounds through all images; 0 writes what is learned as it was drawn.
    batch : int
        Images a step; the last one of an epoch takes what is left.
    lr : float
        Learning rate.
    seed : int
        Of the first values and of the order of images.
    optimiser : {"adam", "sgd"}
        ``adam``: betas 0.5 and 0.999, constant rate (AnomalyCLIP's and APRIL-GAN's released codes).
        ``sgd``: momentum 0.9, weight decay 5e-4, one epoch at 1e-5 and then a cosine from ``lr``
        towards 0 (CoOp's).
    """

    epochs: int = 15
    batch: int = 8
    lr: float = 1e-3
    seed: int = 111
    optimiser: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise OptionError(f"--epochs {self.epochs}: give 0 or more")
        if self.batch < 1:
            raise OptionError(f"--batch {self.batch}: give 1 or more")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise OptionError(f"--lr {self.lr}: give a rate above 0, as 0.001")

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

    def identity(self) -> dict[str, Any]:
        """What two parts of one training must have in common.

        At a constant rate the number of epochs is not among it: a finished training can go on.
        """
        constant = self.optimiser == "adam"
        return {k: v for k, v in asdict(self).items() if not (constant and k == "epochs")}
