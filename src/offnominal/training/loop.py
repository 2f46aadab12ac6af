"""The loop of every training: a module with a loss, batches, a recipe, and a place to keep it all.

It knows no detector. A training that is broken off, by Ctrl-C, a signal, an error or a power cut,
goes on after the last step that was kept, and on the CPU ends with the same bytes as if nothing had
happened.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

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
from offnominal.training.recipe import Plan

__all__ = ["Batches", "Progress", "Run", "Together", "descend", "duration", "run", "seeded"]

Progress = Callable[[str, int], None]

_SAVE_EVERY = 60.0  # seconds, so that a power cut costs no more
_TELL_EVERY = 15.0
_SHARE = 0.1  # of the time may be spent on copies of large networks


class Batches(Protocol):
    """The images of a training."""

    def __len__(self) -> int:
        """How many images there are."""

    def plan(self, size: int, generator: torch.Generator) -> Sequence[Any]:
        """What each step of an epoch takes, `size` images each, drawn from the generator alone."""

    def load(self, planned: Any) -> Any | None:
        """The batch of a step; None if nothing of it can be read."""


class Together(NamedTuple):
    """One of several processes that train together.

    Attributes
    ----------
    rank, world : int
        Which one, of how many.
    loss : callable
        The loss of a batch, wrapped so that gradients are averaged over all.
    mean : callable
        Of a tensor over all.
    """

    rank: int
    world: int
    loss: Callable[[Any], dict[str, Tensor]]
    mean: Callable[[Tensor], Tensor]


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
    recipe: Plan,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
    generator: torch.Generator | None = None,
    after: Callable[[int], None] | None = None,
    together: Together | None = None,
) -> Run:
    """Train, and write what is learned.

    torch's generators are seeded anew for every step, from the recipe's seed and the step's number,
    so that what a loss draws does not depend on where a training was broken off.

    Parameters
    ----------
    learner : Learner
    batches : Batches
    recipe : Plan
    checkpoint : Checkpoint or None
        None: nothing is kept, and what is broken off is lost.
    progress : callable or None
        Called with the stage and how many images (or steps, of a course) have been used.
    tell : callable or None
        Called with lines for a person.
    generator : torch.Generator or None
        Draws the plan of each epoch, and its state is kept with the rest; None: a new one, from the
        recipe's seed.
    after : callable or None
        Called with the number of steps that are done, after each.
    together : Together or None
        Where this is one of several processes.

    Raises
    ------
    OptionError
        If the files of another training are in the way, or the loss is not finite.
    """
    say = tell or (lambda line: None)
    generator = generator or torch.Generator().manual_seed(recipe.seed)
    optimisers = recipe.make_optimisers(learner)
    kept = State.of(0, 0, learner, optimisers, generator.get_state(), [])
    before = checkpoint.find() if checkpoint else None
    if checkpoint and before is not None:
        try:
            before.restore(learner, optimisers)
        except Damaged as error:
            raise unusable(checkpoint.files.state, error) from error
        kept = before
    began_at, proven = (kept.epoch, kept.step), kept
    watch, whole = _Watch(say), checkpoint is not None and checkpoint.each_epoch
    history, saved = list(kept.history), time.monotonic()
    epoch, first, random, ended = kept.epoch, kept.step, kept.random, False
    try:
        while not ended:
            generator.set_state(random)
            plan = batches.plan(recipe.batch, generator)
            total = recipe.total(len(plan))
            if checkpoint and before is not None:
                where = recipe.place(before.epoch, before.step, len(plan))
                say(f"{checkpoint.files.learned}: goes on after {where}")
                before = None
            elif checkpoint and not whole and not history:
                checkpoint.write_state(kept)  # a full disk is better known now than at the end
            if checkpoint and first >= len(plan):
                raise unusable(checkpoint.files.state, f"step {first} of {len(plan)}")
            if checkpoint and (told := recipe.too_far(epoch, first, len(plan))):
                advice = "name another file, or give --overwrite"
                raise OptionError(f"-o {checkpoint.files.learned}: {told}; {advice}")
            for step in range(first, len(plan)):
                done = epoch * len(plan) + step
                if ended := done >= total:
                    break
                recipe.set_rates(optimisers, done, len(plan))
                with seeded(recipe.seed, epoch, step, *([together.rank] if together else [])):
                    batch = batches.load(plan[step])
                    if batch is not None:
                        values = descend(learner, optimisers, batch, recipe.clip, together)
                        if values is None:
                            kept = proven
                            at = (epoch, step)
                            raise OptionError(_not_finite(recipe, checkpoint, at, kept, len(plan)))
                        proven = kept  # what was kept before this step still has a loss
                        history.append({"epoch": epoch + 1, "step": step + 1} | values)
                if after:
                    after(done + 1)
                following = (epoch, step + 1)
                if step + 1 == len(plan):
                    following, random = (epoch + 1, 0), generator.get_state()
                last = done + 1 == total or (whole and following[1] == 0)
                if checkpoint and (last or watch.may_copy()):
                    with watch.copying():
                        kept = State.of(*following, learner, optimisers, random, history)
                if progress:
                    progress(*recipe.progress(epoch, step + 1, len(plan), len(batches)))
                if not whole:
                    watch.tell(history, done + 1, total)
                if checkpoint and time.monotonic() - saved > _SAVE_EVERY:
                    checkpoint.write_state(proven)
                    saved = time.monotonic()
            else:
                epoch, first = epoch + 1, 0
                ended = epoch * len(plan) >= total
                if checkpoint and whole:
                    checkpoint.write(kept)
                    say(_last_line(kept, total // len(plan)))
        if history and not all(each.detach().isfinite().all() for each in learner.parameters()):
            kept = proven
            at = (int(history[-1]["epoch"]) - 1, int(history[-1]["step"]) - 1)
            raise OptionError(_not_finite(recipe, checkpoint, at, kept, len(plan)))
    except BaseException:
        # Ctrl-C may come in the middle of a step: what is written is the last whole one.
        if checkpoint:
            checkpoint.write_state(kept)
        raise
    if checkpoint:
        (checkpoint.write if whole else checkpoint.write_state)(kept)
    return Run(history, began_at)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed torch's generators for the length of the block; outside of it they go on as before."""
    [number] = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    with torch.random.fork_rng():
        torch.manual_seed(int(number) >> 1)
        yield


def descend(
    learner: Learner,
    optimisers: Sequence[Optimizer],
    batch: Any,
    clip: float | None = None,
    together: Together | None = None,
) -> dict[str, float] | None:
    """One step; the parts of the loss before it. None: it is not finite, and nothing is learned."""
    parts = together.loss(batch) if together else learner.loss(batch)
    found = torch.stack([each.detach() for each in parts.values()])
    if together:  # so that all stop where one has to
        found = together.mean(found)
    values = dict(zip(parts, found.tolist(), strict=True))
    if not all(map(math.isfinite, values.values())):
        return None
    for optimiser in optimisers:
        optimiser.zero_grad()
    torch.autograd.backward(parts["total"])
    if clip is not None:
        clip_grad_norm_([p for p in learner.parameters() if p.grad is not None], clip)
    for optimiser in optimisers:
        optimiser.step()
    return values


def _not_finite(
    recipe: Plan, checkpoint: Checkpoint | None, at: tuple[int, int], kept: State, per_epoch: int
) -> str:
    told = recipe.advice(*at, per_epoch)
    if checkpoint is None or checkpoint.each_epoch:
        return told
    where = recipe.place(kept.epoch, kept.step, per_epoch)
    return (
        f"{told}. {checkpoint.files.state} holds the state after {where}, from which the same "
        "command goes on then; if that is too late, give --overwrite"
    )


class _Watch:
    """When a copy of the state is worth its time, and when to say how far a training has come."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began = self._told = self._copied = time.monotonic()
        self._cost, self._first = 0.0, -1

    def may_copy(self) -> bool:
        """Whether copies take next to no time, or there was none for long."""
        if self._cost < 0.01:
            return True
        return self._cost < _SHARE * (time.monotonic() - self._copied)

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Measure what a copy takes."""
        began = time.monotonic()
        yield
        self._copied = time.monotonic()
        self._cost = self._copied - began

    def tell(self, history: History, done: int, total: int) -> None:
        """Say how far it is, what the loss is and how long the rest will take."""
        now = time.monotonic()
        if self._first < 0:  # the first step takes longer than others
            self._first, self._began = done, now
        if not history or (now - self._told < _TELL_EVERY and done < total):
            return
        self._told = now
        recent = [row["total"] for row in history[-20:]]
        left = (now - self._began) / max(done - self._first, 1) * (total - done)
        told = f", {duration(left)} left" if done > self._first and done < total else ""
        loss = f"{math.fsum(recent) / len(recent):.4g}"
        self._say(f"step {done:,} of {total:,}: loss {loss}{told}")


def duration(seconds: float) -> str:
    """Such as ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _last_line(state: State, epochs: int) -> str:
    """The epoch that has just ended, in words."""
    means = mean_losses(state.history)
    if not means:
        return f"epoch {state.epoch}: no image could be read"
    return f"epoch {state.epoch} of {epochs}: loss {means[-1]['total']:.4f}"
