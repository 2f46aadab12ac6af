"""Where a training stands, and its files: what is learned, the losses, the state to go on from.

The state is one safetensors file; its metadata's one entry, ``offnominal_training``, is a JSON
object with the format's version, the training's identity, and the epoch and step that come next.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from offnominal.atomic import write_atomically
from offnominal.errors import DatasetError, ModelFileError, OptionError

__all__ = ["Checkpoint", "Files", "History", "Learner", "State", "mean_losses", "read_losses"]

FORMAT = 2
_KEY = "offnominal_training"
_LEARNED, _OPTIMISER = "learned.", "optimiser."

History = list[dict[str, float]]
"""One row a step: ``epoch`` and ``step``, both from 1, and the parts of the loss by their names."""


class Learner(Protocol):
    """A ``torch.nn.Module`` with a loss; its parameters that ask for gradients are what changes."""

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Of a batch, as scalars: ``total``, which is to fall, and the parts that it is made of.

        The names are the same for every batch.
        """

    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...  # noqa: D102
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool) -> Any: ...  # noqa: D102


@dataclass(frozen=True)
class Files:
    """The files of a training, by the name of the one it is for.

    Attributes
    ----------
    learned : Path
        What is learned.
    """

    learned: Path

    @property
    def state(self) -> Path:
        """Where the training stands; not needed to use what was learned."""
        return self.learned.with_suffix(".state.safetensors")

    @property
    def losses(self) -> Path:
        """JSON lines, one a step."""
        return self.learned.with_suffix(".losses.jsonl")

    @property
    def page(self) -> Path:
        """The curves."""
        return self.learned.with_suffix(".html")


@dataclass(frozen=True)
class State:
    """A training between two steps.

    Attributes
    ----------
    epoch, step : int
        What comes next, both counted from 0.
    tensors : dict
        Copies of what is learned and of the optimiser's numbers.
    random : Tensor
        The generator's state at the beginning of the epoch, uint8.
    history : list of dict
        One row a step.
    """

    epoch: int
    step: int
    tensors: dict[str, Tensor]
    random: Tensor
    history: History

    @classmethod
    def of(
        cls,
        epoch: int,
        step: int,
        learner: Learner,
        optimiser: Optimizer,
        random: Tensor,
        history: History,
    ) -> "State":
        """Copy all that a training consists of; parameters that are frozen are left out."""
        frozen = {name for name, each in learner.named_parameters() if not each.requires_grad}
        found = {_LEARNED + k: t for k, t in learner.state_dict().items() if k not in frozen}
        for number, values in optimiser.state_dict()["state"].items():
            tensors = {k: t for k, t in values.items() if isinstance(t, Tensor)}
            found |= {f"{_OPTIMISER}{number}.{name}": each for name, each in tensors.items()}
        copies = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in found.items()}
        return cls(epoch, step, copies, random, list(history))

    def restore(self, learner: Learner, optimiser: Optimizer) -> None:
        """Put the numbers back where they came from."""
        learner.load_state_dict(_under(self.tensors, _LEARNED), strict=False)
        numbers: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(self.tensors, _OPTIMISER).items():
            number, _, name = key.partition(".")
            # The optimiser would go on with these very tensors; the state's stay as they are.
            numbers.setdefault(int(number), {})[name] = value.clone()
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": numbers, "param_groups": groups})


@dataclass(frozen=True)
class Checkpoint:
    """Keeps a training on disk, so that it can be broken off anywhere.

    Attributes
    ----------
    files : Files
    identity : mapping
        Plain values that every part of one training has in common.
    write_learned : callable
        Writes ``files.learned``, in one step; called with how many epochs have been run, and the
        history.
    overwrite : bool
        Whether files of another training that lie there are of no account.
    """

    files: Files
    identity: Mapping[str, Any]
    write_learned: Callable[[int, History], None]
    overwrite: bool = False

    def find(self) -> State | None:
        """The state to go on from, or None to begin.

        Raises
        ------
        OptionError
            If what is there belongs to another training.
        ModelFileError
            If the state cannot be read.
        """
        learned, path = self.files.learned, self.files.state
        if self.overwrite:
            return None
        if not path.exists():
            if learned.exists():
                raise OptionError(
                    f"-o {learned}: exists, and {path.name}, from which its training could go on, "
                    "does not; name another file, or give --overwrite"
                )
            return None
        state, identity = _read(path)
        for name, ours in self.identity.items():
            theirs = identity.get(name)
            if theirs != ours:
                raise OptionError(
                    f"-o {learned}: belongs to another training, whose {name} is {theirs}, not "
                    f"{ours}; give the same options to go on, name another file, or give "
                    "--overwrite"
                )
        return state

    def write_state(self, state: State) -> None:
        """Write where the training stands."""
        columns = list(state.history[0]) if state.history else []
        header = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "epoch": state.epoch,
            "step": state.step,
            "columns": columns,
        }
        rows = torch.tensor([list(row.values()) for row in state.history], dtype=torch.float64)
        tensors = {
            "random": state.random,
            "history": rows.reshape(len(state.history), len(columns)),
        }
        content = save(state.tensors | tensors, metadata={_KEY: json.dumps(header)})
        write_atomically(self.files.state, content)

    def write(self, state: State) -> None:
        """Write all files.

        The state goes first: without it a result that lies there would be in the way.
        """
        self.write_state(state)
        self.write_learned(state.epoch, state.history)
        lines = "".join(f"{json.dumps(row)}\n" for row in state.history)
        write_atomically(self.files.losses, lines.encode())


def _read(path: Path) -> tuple[State, dict[str, Any]]:
    """A state and its training's identity."""
    again = "delete it, or give --overwrite, to begin anew"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format"] != FORMAT:
            raise ModelFileError(f"{path}: written by another version of Offnominal; {again}")
        random, rows = tensors.pop("random"), tensors.pop("history").tolist()
        history = [_row(dict(zip(header["columns"], row, strict=True))) for row in rows]
        return State(header["epoch"], header["step"], tensors, random, history), header["identity"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path}: damaged, or not the state of a training ({error}); {again}"
        ) from error


def _row(values: Mapping[str, float]) -> dict[str, float]:
    return {**values, "epoch": int(values["epoch"]), "step": int(values["step"])}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def read_losses(path: Path) -> History:
    """The JSON lines of a training's losses.

    Raises
    ------
    DatasetError
        If it cannot be read.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [_row(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: no losses of a training ({error})") from error


def mean_losses(history: History) -> list[dict[str, float]]:
    """Mean of each part of the loss over the steps of each epoch, in their order."""
    epochs: dict[float, list[dict[str, float]]] = {}
    for row in history:
        epochs.setdefault(row["epoch"], []).append(row)
    return [
        {
            part: math.fsum(row[part] for row in rows) / len(rows)
            for part in rows[0]
            if part not in ("epoch", "step")
        }
        for _, rows in sorted(epochs.items())
    ]
