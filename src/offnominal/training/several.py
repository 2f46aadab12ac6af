"""A training on several GPUs, or processes, at once: Lightning Fabric averages their gradients.

Each takes its part of every batch. Batch norm's statistics are each one's own, and those of the
first are kept; on one device a batch is seen as a whole, so results differ a little.
"""

import sys
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offnominal.errors import OptionError
from offnominal.training.checkpoint import Checkpoint, History
from offnominal.training.loop import Batches, Together, run
from offnominal.training.recipe import Course

__all__ = ["train_on_several"]


class Movable(Protocol):
    """What is trained, with a module of all that has parameters, and a way to another device."""

    module: Any

    def loss(self, batch: Any) -> dict[str, Tensor]: ...
    def parameters(self) -> Any: ...
    def named_parameters(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Any, strict: bool) -> Any: ...
    def move(self, device: torch.device) -> None: ...


class Part(Protocol):
    """Batches that can be brought to another device."""

    def __len__(self) -> int: ...
    def plan(self, size: int, generator: torch.Generator) -> Any: ...
    def load(self, planned: Any) -> Any: ...
    def move(self, device: torch.device) -> None: ...


class Result(NamedTuple):
    """What is learned, as arrays, and one row a step."""

    state: dict[str, NDArray[Any]]
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
        told = "needs lightning-fabric: pip install 'offnominal[gpus]'"
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
    found: Result = fabric.launch(work, _Job(learner, batches, course, checkpoint))
    return found


class _Job:
    """What each process is handed, as one object: Fabric takes collections apart."""

    def __init__(
        self, learner: Movable, batches: Part, course: Course, checkpoint: Checkpoint | None
    ) -> None:
        self.parts = learner, batches, course, checkpoint


def _train(fabric: Any, job: _Job) -> Result:
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
    # As arrays: a tensor would be shared with a process that ends before it is read.
    return Result({k: t.cpu().numpy() for k, t in learner.state_dict().items()}, history)


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
