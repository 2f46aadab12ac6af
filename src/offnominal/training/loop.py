"""The loop of every training: a module with a loss, batches, a recipe, and a place to keep it all.

It knows no detector. A training that is broken off, by Ctrl-C, a signal, an error or a power cut,
goes on after the last step that was kept, and on the CPU ends with the same bytes as if nothing had
happened.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from offnominal.errors import OptionError
from offnominal.sealed import Damaged
from offnominal.training.checkpoint import (
    Checkpoint,
    History,
    Learner,
    State,
    mean_losses,
    unusable,
)
from offnominal.training.recipe import Recipe

__all__ = ["Batches", "Progress", "Run", "run"]

Progress = Callable[[str, int], None]

_SAVE_EVERY = 60.0  # seconds, so that a power cut costs no more


class Batches(Protocol):
    """The images of a training."""

    def __len__(self) -> int:
        """How many images there are."""

    def plan(self, size: int, generator: torch.Generator) -> Sequence[Any]:
        """What each step of an epoch takes, `size` images each, drawn from the generator alone."""

    def load(self, planned: Any) -> Any | None:
        """The batch of a step; None if nothing of it can be read."""


class Run(NamedTuple):
    """What a run came to.

    Attributes
    ----------
    history : list of dict
        One row a step: ``epoch`` and ``step``, both from 1, and the parts of the loss.
    began_at : (epoch, step)
        Where this run took over, counted from 0; (0, 0) for a new one.
    """

    history: History
    began_at: tuple[int, int]


def run(
    learner: Learner,
    batches: Batches,
    recipe: Recipe,
    checkpoint: Checkpoint,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
    generator: torch.Generator | None = None,
) -> Run:
    """Train, and write what is learned after every epoch.

    Parameters
    ----------
    learner : Learner
    batches : Batches
    recipe : Recipe
    checkpoint : Checkpoint
    progress : callable or None
        Called with the stage and how many images have been used in all epochs.
    tell : callable or None
        Called with lines for a person.
    generator : torch.Generator or None
        Draws the plan of each epoch, and its state is kept with the rest; None: a new one, from the
        recipe's seed.

    Raises
    ------
    OptionError
        If the files of another training are in the way, or the loss is not finite.
    """
    say = tell or (lambda line: None)
    generator = generator or torch.Generator().manual_seed(recipe.seed)
    optimiser = recipe.make_optimiser(p for p in learner.parameters() if p.requires_grad)
    kept = State.of(0, 0, learner, optimiser, generator.get_state(), [])
    before = checkpoint.find()
    if before is not None:
        _check_epochs(recipe, before, checkpoint)
        try:
            before.restore(learner, optimiser)
        except Damaged as error:
            raise unusable(checkpoint.files.state, error) from error
        kept = before
        say(f"{checkpoint.files.learned}: goes on after epoch {kept.epoch}, step {kept.step}")
    began_at = kept.epoch, kept.step
    history, saved = list(kept.history), time.monotonic()
    try:
        while kept.epoch < recipe.epochs:
            epoch, random = kept.epoch, kept.random
            generator.set_state(random)
            plan = batches.plan(recipe.batch, generator)
            if kept.step >= len(plan):
                raise unusable(checkpoint.files.state, f"step {kept.step} of {len(plan)}")
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(epoch)
            for step in range(kept.step, len(plan)):
                batch = batches.load(plan[step])
                if batch is not None:
                    parts = _descend(learner, optimiser, batch, recipe, epoch, step)
                    history.append({"epoch": epoch + 1, "step": step + 1} | parts)
                following = (epoch, step + 1)
                if step + 1 == len(plan):
                    following, random = (epoch + 1, 0), generator.get_state()
                kept = State.of(*following, learner, optimiser, random, history)
                if progress:
                    progress("train", kept.epoch * len(batches) + kept.step * recipe.batch)
                if time.monotonic() - saved > _SAVE_EVERY:
                    checkpoint.write_state(kept)
                    saved = time.monotonic()
            checkpoint.write(kept)
            say(_last_line(kept, recipe))
    except BaseException:
        # Ctrl-C may come in the middle of a step: what is written is the last whole one.
        checkpoint.write_state(kept)
        raise
    checkpoint.write(kept)
    return Run(history, began_at)


def _check_epochs(recipe: Recipe, before: State, checkpoint: Checkpoint) -> None:
    if before.epoch + (before.step > 0) > recipe.epochs:
        raise OptionError(
            f"--epochs {recipe.epochs}: {checkpoint.files.learned} has been trained for "
            f"{before.epoch} already; name another file, or give --overwrite"
        )


def _descend(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    batch: Any,
    recipe: Recipe,
    epoch: int,
    step: int,
) -> dict[str, float]:
    """One step; the parts of the loss before it."""
    parts = learner.loss(batch)
    values = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))
    if not all(map(math.isfinite, values.values())):
        raise OptionError(
            f"--lr {recipe.lr:g}: the loss is no longer finite in epoch {epoch + 1}, step "
            f"{step + 1}; give a smaller one, and --overwrite"
        )
    optimiser.zero_grad()
    torch.autograd.backward(parts["total"])
    optimiser.step()
    return values


def _last_line(state: State, recipe: Recipe) -> str:
    """The epoch that has just ended, in words."""
    means = mean_losses(state.history)
    if not means:
        return f"epoch {state.epoch}: no image could be read"
    return f"epoch {state.epoch} of {recipe.epochs}: loss {means[-1]['total']:.4f}"
