"""Training prompts or layers: what is learned changes, everything else is frozen.

Zhou et al., ICLR 2024 (arXiv 2310.18961), section 3.3, and the released code; CoOp's prompts and
APRIL-GAN's layers go through the same loop with learners of their own.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from offnominal.detectors.learned import LearnedDetector
from offnominal.errors import OptionError
from offnominal.language.learnedfile import LearnedFile, write_learned
from offnominal.training.files import Files, find_state, mean_losses, write_losses
from offnominal.training.learners import TRAINABLE, Learner
from offnominal.training.mosaic import Four, draw_mosaics
from offnominal.training.recipe import Recipe
from offnominal.training.state import History, State
from offnominal.training.tower import Tower

__all__ = ["Outcome", "run_training"]

Progress = Callable[[str, int], None]

_SAVE_EVERY = 60.0  # seconds, so that a power cut costs no more


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes
    ----------
    files : Files
    about : LearnedFile
        What the file says of itself.
    learner : Learner
    history : list of list of float
        One row a step: epoch and step, both from 1, and the parts of the loss.
    began_at : (epoch, step)
        Where this run took over, counted from 0; (0, 0) for a new one.
    """

    files: Files
    about: LearnedFile
    learner: Learner
    history: History
    began_at: tuple[int, int]


def run_training(
    detector: LearnedDetector,
    tower: Tower,
    recipe: Recipe,
    output: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Outcome:
    """Train prompts or layers, and write them after every epoch.

    Beside them lie the losses, and the state: where a training was broken off by Ctrl-C, a
    signal or an error, the same call goes on after the last step that was finished, and on the CPU
    ends with the same bytes as if nothing had happened.

    Parameters
    ----------
    detector : LearnedDetector
        Its options are those that images are read under.
    tower : Tower
        Of the same detector, with the images to train on.
    recipe : Recipe
    output : Path
        File of what is learned. The other files are named after it; see `Files`.
    settings : mapping or None
        Of the learner, as ``length``.
    data : mapping or None
        What the file says of the data, as plain values.
    overwrite : bool
        Begin anew where files of another training are.
    progress : callable or None
        Called with the stage and how many images have been used in all epochs.
    tell : callable or None
        Called with lines for a person.

    Raises
    ------
    OptionError
        If the files of another training are in the way, or the loss is not finite.
    """
    training = _Training(detector, tower, recipe, Files(output), dict(settings or {}))
    training.about["data"] = dict(data or {})
    began_at = training.begin(overwrite)
    if tell and began_at != (0, 0):
        tell(f"{output}: goes on after epoch {began_at[0]}, step {began_at[1]}")
    try:
        while training.epoch < recipe.epochs:
            training.run_epoch(progress)
            training.write()
            if tell:
                tell(training.last_line())
    except BaseException:
        # Ctrl-C may come in the middle of a step: what is written is the last whole one.
        training.latest.write(training.files.state)
        raise
    training.write()
    about, learner = training.describe(), training.learner
    return Outcome(training.files, about, learner, training.history, began_at)


class _Training:
    """The moving parts of a training; see :func:`run_training`."""

    latest: State

    def __init__(
        self,
        detector: LearnedDetector,
        tower: Tower,
        recipe: Recipe,
        files: Files,
        settings: dict[str, Any],
    ) -> None:
        self.detector, self.tower, self.recipe, self.files = detector, tower, recipe, files
        self.generator = torch.Generator().manual_seed(recipe.seed)
        build = TRAINABLE[detector.method].learner
        self.learner = build(detector, recipe, tower.part_names(), settings, self.generator)
        self.learned = self.learner.learned
        self.optimiser = recipe.make_optimiser(self.learned.parameters())
        self.epoch, self.step = 0, 0
        self.history: History = []
        self.random = self.generator.get_state()  # as it stands when an epoch begins
        begin = {"start_from": settings["start_from"]} if "start_from" in settings else {}
        self.about: dict[str, Any] = dict(begin)
        net = detector.clip
        self.backbone = {"name": net.name, "digest": net.digest, "text": self.learner.digest}
        images = [f"{s.category} {s.image.name} {s.label}" for s in tower.samples]
        self.identity = {
            "method": detector.method,
            "backbone": net.digest,
            **self.learned.settings(),
            **begin,
            **detector.reading(),
            **recipe.identity(),
            "class_names": dict(tower.names),
            "images": hashlib.sha256("\n".join(images).encode()).hexdigest()[:16],
        }

    def begin(self, overwrite: bool) -> tuple[int, int]:
        """Go on from the state that lies there, or begin; the epoch and step that come next."""
        before = find_state(self.files, self.identity, overwrite)
        if before is None:
            self.latest = self._stand()
        else:
            self.history = before.restore(self.learned, self.optimiser)
            self.epoch, self.step, self.random = before.epoch, before.step, before.random
            self.latest = before
            if self.epoch > self.recipe.epochs or (self.epoch == self.recipe.epochs and self.step):
                raise OptionError(
                    f"--epochs {self.recipe.epochs}: {self.files.learned} has been trained for "
                    f"{self.epoch} already; name another file, or give --overwrite"
                )
        return self.epoch, self.step

    def run_epoch(self, progress: Progress | None) -> None:
        """What is left of an epoch."""
        images, size = len(self.tower.samples), self.recipe.batch
        self.generator.set_state(self.random)
        batches = torch.split(torch.randperm(images, generator=self.generator), size)
        mosaics = draw_mosaics(self.tower.samples, self.recipe.mosaic, self.generator)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(self.epoch)
        saved = time.monotonic()
        for number in range(self.step, len(batches)):
            self._run_step(batches[number].tolist(), mosaics)
            self.step = number + 1
            if self.step == len(batches):
                self.epoch, self.step, self.random = self.epoch + 1, 0, self.generator.get_state()
            self.latest = self._stand()
            if progress:
                progress("train", self.epoch * images + self.step * size)
            if time.monotonic() - saved > _SAVE_EVERY:
                self.latest.write(self.files.state)
                saved = time.monotonic()

    def _run_step(self, numbers: list[int], mosaics: Mapping[int, Four]) -> None:
        batch = self.tower.batch(numbers, mosaics)
        if batch is None:  # none of its images can be read
            return
        parts = self.learner.loss(batch)
        values: list[float] = torch.stack(parts).tolist()
        if not all(map(math.isfinite, values)):
            raise OptionError(
                f"--lr {self.recipe.lr:g}: the loss is no longer finite in epoch {self.epoch + 1}, "
                f"step {self.step + 1}; give a smaller one, and --overwrite"
            )
        self.optimiser.zero_grad()
        torch.autograd.backward(parts.total)
        self.optimiser.step()
        self.history.append([self.epoch + 1, self.step + 1, *values])

    def describe(self) -> LearnedFile:
        """What the file says of itself."""
        means = mean_losses(self.history)
        training = {
            "recipe": asdict(self.recipe) | {"epochs": self.epoch},
            "losses": [{name: round(v, 6) for name, v in each.items()} for each in means],
        }
        return LearnedFile(
            self.detector.method,
            self.learned.settings(),
            self.detector.reading(),
            self.backbone,
            self.about | training,
        )

    def last_line(self) -> str:
        """The epoch that has just ended, in words."""
        means = mean_losses(self.history)
        if not means:
            return f"epoch {self.epoch}: no image could be read"
        return f"epoch {self.epoch} of {self.recipe.epochs}: loss {means[-1]['total']:.4f}"

    def write(self) -> None:
        """Write what is learned, losses and state."""
        write_learned(self.files.learned, self.learned, self.describe())
        write_losses(self.files.losses, self.history)
        self.latest.write(self.files.state)

    def _stand(self) -> State:
        return State.of(
            self.identity,
            self.epoch,
            self.step,
            self.learned,
            self.optimiser,
            self.random,
            self.history,
        )
