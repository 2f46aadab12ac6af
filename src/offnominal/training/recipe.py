"""Settings of a training, and the optimisers that they name: so many epochs, or so many steps."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from offnominal.errors import OptionError

__all__ = ["Course", "Plan", "Recipe"]

_WARM_UP = 1e-5  # CoOp's rate in its first epoch


class _Learns(Protocol):
    """What an optimiser is for."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Plan(Protocol):
    """What the loop asks of the settings of a training."""

    @property
    def batch(self) -> int:
        """Images a step."""

    @property
    def seed(self) -> int:
        """Of all that is drawn."""

    @property
    def clip(self) -> float | None:
        """The norm that the gradient of all parameters is cut down to; None: it is left."""

    def make_optimisers(self, learner: _Learns) -> list[Optimizer]:
        """The optimisers, before their first step."""

    def total(self, per_epoch: int) -> int:
        """How many steps there are, with so many an epoch."""

    def set_rates(self, optimisers: Sequence[Optimizer], step: int, per_epoch: int) -> None:
        """Set the learning rates for a step, counted from 0."""

    def place(self, epoch: int, step: int, per_epoch: int) -> str:
        """What has been done, in words."""

    def advice(self, epoch: int, step: int, per_epoch: int) -> str:
        """What to do about a loss that is not finite in a step, both counted from 0."""

    def too_far(self, epoch: int, step: int, per_epoch: int) -> str | None:
        """Why a training that has come so far cannot go on with these settings; None: it can."""

    def progress(self, epoch: int, step: int, per_epoch: int, images: int) -> tuple[str, int]:
        """Name of the stage, and how far it has come after a step, counted from 1."""


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

    @property
    def clip(self) -> None:
        """Gradients are left as they are."""
        return None

    def make_optimisers(self, learner: _Learns) -> list[Optimizer]:
        """The optimiser, before its first step."""
        parameters = [each for each in learner.parameters() if each.requires_grad]
        if self.optimiser == "adam":
            return [Adam(parameters, lr=self.lr, betas=(0.5, 0.999))]
        return [SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=5e-4)]

    def total(self, per_epoch: int) -> int:
        """How many steps there are."""
        return self.epochs * per_epoch

    def set_rates(self, optimisers: Sequence[Optimizer], step: int, per_epoch: int) -> None:
        """Set the rate, which changes with the epoch only."""
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate(step // per_epoch)

    def place(self, epoch: int, step: int, per_epoch: int) -> str:
        """What has been done, in words."""
        return f"epoch {epoch}, step {step}"

    def advice(self, epoch: int, step: int, per_epoch: int) -> str:
        """What to do about a loss that is not finite in a step, both counted from 0."""
        return (
            f"--lr {self.lr:g}: the loss is no longer finite in epoch {epoch + 1}, step "
            f"{step + 1}; give a smaller one, and --overwrite"
        )

    def too_far(self, epoch: int, step: int, per_epoch: int) -> str | None:
        """Why a training that has come so far cannot go on; None: it can."""
        if epoch + (step > 0) <= self.epochs:
            return None
        return f"--epochs {self.epochs}: it has been trained for {epoch} already"

    def progress(self, epoch: int, step: int, per_epoch: int, images: int) -> tuple[str, int]:
        """Images that have been used in all epochs."""
        return "train", epoch * images + min(step * self.batch, images)

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


@dataclass(frozen=True)
class Course:
    """A training of so many steps, whose optimisers and rates a method gives.

    Attributes
    ----------
    batch, steps, seed : int
    optimisers : callable
        Makes the optimisers.
    rate : callable
        Factor on their learning rates at a share of the course, on [0, 1).
    clip : float or None
        The norm that the gradient of all parameters is cut down to.
    lr_scale : float
        Another factor on the rates.
    remedy : str or None
        What to give where the loss is not finite; None: a smaller `lr_scale`.
    """

    batch: int
    steps: int
    seed: int
    optimisers: Callable[[], list[Optimizer]]
    rate: Callable[[float], float]
    clip: float | None = None
    lr_scale: float = 1.0
    remedy: str | None = None

    def make_optimisers(self, learner: _Learns) -> list[Optimizer]:
        """The optimisers, before their first step."""
        made = self.optimisers()
        for optimiser in made:
            for group in optimiser.param_groups:
                group["initial_lr"] = group["lr"] * self.lr_scale
        return made

    def total(self, per_epoch: int) -> int:
        """How many steps there are."""
        return self.steps

    def set_rates(self, optimisers: Sequence[Optimizer], step: int, per_epoch: int) -> None:
        """Set the rates, which change with every step."""
        factor = self.rate(step / self.steps)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def place(self, epoch: int, step: int, per_epoch: int) -> str:
        """What has been done, in words."""
        return f"step {epoch * per_epoch + step:,}"

    def advice(self, epoch: int, step: int, per_epoch: int) -> str:
        """What to do about a loss that is not finite."""
        where = self.place(epoch, step + 1, per_epoch)
        smaller = f"give a smaller --lr-scale, such as {self.lr_scale / 3:.2g}, or --precision fp32"
        return f"the loss is no longer finite in {where}: {self.remedy or smaller}"

    def too_far(self, epoch: int, step: int, per_epoch: int) -> str | None:
        """Why a training that has come so far cannot go on; None: it can."""
        done = epoch * per_epoch + step
        return None if done <= self.steps else f"--steps {self.steps}: {done} are done already"

    def progress(self, epoch: int, step: int, per_epoch: int, images: int) -> tuple[str, int]:
        """Steps that are done."""
        return "training", epoch * per_epoch + step
