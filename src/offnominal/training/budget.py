"""How long a training is: the method's own schedule, the paper's, or what a time allows."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from offnominal.errors import OptionError
from offnominal.training.checkpoint import Learner
from offnominal.training.loop import descend, duration, seeded
from offnominal.training.recipe import Plan

__all__ = ["Schedule", "Steps", "steps_within"]

Steps = int | Literal["paper"]

_TRIALS = 5
_TRIAL_SHARE = 0.1  # of the time that is spent on trying how long a step takes
_RESERVE = 0.1  # for what follows the last step: densities, thresholds


@dataclass(frozen=True)
class Schedule:
    """How long a method is trained.

    Attributes
    ----------
    batch : int
        Images a step.
    steps : int
        Where nobody says: what two cores do in about 20 minutes at the default resolution.
    paper_epochs, paper_steps : int or None
        The paper's length, in rounds through the images that are trained on, or in steps.
    clip : float or None
        The norm that the gradient is cut down to.
    """

    batch: int
    steps: int
    paper_epochs: int | None = None
    paper_steps: int | None = None
    clip: float | None = None

    def paper(self, images: int, batch: int) -> int:
        """The paper's steps for so many images in batches of so many."""
        if self.paper_steps is not None:
            return self.paper_steps
        return (self.paper_epochs or 1) * max(1, images // min(batch, images))


def steps_within(
    seconds: float,
    budget: str,
    learner: Learner,
    batches: Callable[[], Iterator[Any]],
    plan: Plan,
    say: Callable[[str], None],
) -> int:
    """How many steps fit into a time, a tenth of which is left for what follows the last one.

    Some steps are tried, and what they learned is undone.

    Parameters
    ----------
    seconds : float
        What is left of the budget.
    budget : str
        As it was given.
    learner : Learner
    batches : callable
        Gives batches to try, without end.
    plan : Plan
        Makes optimisers for the trials.
    say : callable

    Raises
    ------
    OptionError
        If not even one fits.
    """
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    optimisers = plan.make_optimisers(learner)
    source, took = batches(), list[float]()
    began = time.monotonic()
    for trial in range(_TRIALS):
        start = time.monotonic()
        with seeded(plan.seed, trial):
            descend(learner, optimisers, next(source), plan.clip)
        if next(learner.parameters()).is_cuda:
            torch.cuda.synchronize()
        took.append(time.monotonic() - start)
        if time.monotonic() - began > _TRIAL_SHARE * seconds:
            break
    learner.load_state_dict(before, strict=False)
    left = seconds * (1 - _RESERVE) - (time.monotonic() - began)
    step = statistics.median(took[1:] or took)  # the first one takes longer than those to come
    if left < step:
        raise OptionError(
            f"--budget {budget}: too short, for one step takes {step:.2g} s here, after what comes "
            "before it; give more time, a smaller --batch or --resolution"
        )
    steps = int(left / step)
    say(f"a step takes {step:.2g} s here: {steps:,} of them in the {duration(left)} that are left")
    return steps
