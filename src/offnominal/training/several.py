"""A training on several GPUs, or processes, at once: Lightning Fabric averages their gradients.

Each takes its part of every batch. Batch norm's statistics are each one's own, and those of the
first are kept; on one device a batch is seen as a whole, so results differ a little.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from offnominal.errors import OptionError
from offnominal.training.checkpoint import Checkpoint, History, Learner
from offnominal.training.loop import Batches, Together, run
from offnominal.training.recipe import Course

__all__ = ["train_on_several"]

_STATE, _HISTORY = "learned.safetensors", "losses.json"


class Movable(Learner, Protocol):
    """What is trained, with a module of all that has parameters, and a way to another device."""

    module: Any

    def move(self, device: torch.device) -> None: ...


class Part(Batches, Protocol):
    """Batches that can be brought to another device."""

    def move(self, device: torch.device) -> None: ...


class Result(NamedTuple):
    """What is learned, and one row a step."""

    state: dict[str, Tensor]
    history: History


def train_on_several(
    devices: int,
    learner: Movable,
    batches: Part,
    course: Course,
    checkpoint: Checkpoint | None,
) -> Result:
    """Train in as many processes as there are devices; the first one writes and tells.

    Raises
    ------
    OptionError
        If there are not as many devices, a batch has fewer images, or Fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        told = "needs lightning-fabric: pip install lightning-fabric"
        raise OptionError(f"--devices {devices}: {told}") from error
    there = torch.cuda.device_count()
    if there and there < devices:
        raise OptionError(f"--devices {devices}: this machine has {there}")
    if course.batch < devices:
        raise OptionError(f"--devices {devices}: a batch of {course.batch} is too few for each")
    strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True)
    accelerator = "cuda" if there else "cpu"
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy)
    work: Any = _train  # Fabric's annotation leaves out the arguments that it hands on
    # By files: what a process returns goes through a pipe that nobody reads before it ends.
    with tempfile.TemporaryDirectory(prefix="offnominal-") as folder:
        fabric.launch(work, _Job(learner, batches, course, checkpoint, Path(folder)))
        history = json.loads((Path(folder) / _HISTORY).read_text())
        return Result(load((Path(folder) / _STATE).read_bytes()), history)


class _Job:
    """What each process is handed, as one object: Fabric takes collections apart."""

    def __init__(
        self,
        learner: Movable,
        batches: Part,
        course: Course,
        checkpoint: Checkpoint | None,
        folder: Path,
    ) -> None:
        self.parts = learner, batches, course, checkpoint
        self.folder = folder


def _train(fabric: Any, job: _Job) -> None:
    """One process's part."""
    learner, batches, course, checkpoint = job.parts
    learner.move(fabric.device)
    batches.move(fabric.device)
    wrapped = fabric.setup_module(_Loss(learner), move_to_device=False)

    def together(values: Tensor) -> Tensor:
        mean: Tensor = fabric.all_reduce(values, reduce_op="mean")
        return mean

    first = fabric.is_global_zero

    def say(line: str) -> None:
        if first:
            print(line, file=sys.stderr, flush=True)

    part = Together(fabric.global_rank, fabric.world_size, wrapped, together)
    kept = checkpoint if first or checkpoint is None else replace(checkpoint, writes=False)
    history = run(learner, _Share(batches, part), course, kept, tell=say, together=part).history
    if first:
        learned = {name: each.cpu().contiguous() for name, each in learner.state_dict().items()}
        save_file(learned, job.folder / _STATE)
        (job.folder / _HISTORY).write_text(json.dumps(history))


class _Loss(nn.Module):
    """The loss as the forward pass of a module that holds what is trained."""

    def __init__(self, learner: Movable) -> None:
        super().__init__()
        self.module, self._loss = learner.module, learner.loss

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self._loss(batch)


class _Share:
    """Each step's images of one process."""

    def __init__(self, batches: Batches, part: Together) -> None:
        self._batches, self._part = batches, part

    def __len__(self) -> int:
        return len(self._batches)

    def plan(self, size: int, generator: torch.Generator) -> list[Any]:
        """Every so-manieth image of each step."""
        rank, world = self._part.rank, self._part.world
        return [step[rank::world] for step in self._batches.plan(size, generator)]

    def load(self, planned: Any) -> Any:
        """The batch of a step."""
        return self._batches.load(planned)
