"""Where a training stands, as a file: what is learned, optimiser, random numbers, losses so far.

One safetensors file; its metadata's one entry, ``offnominal_training``, is a JSON object with the
format's version, the training's identity, and the epoch and step that come next.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from offnominal.atomic import write_atomically
from offnominal.errors import ModelFileError
from offnominal.training.losses import PARTS

__all__ = ["History", "State", "read_state"]

FORMAT = 1
_KEY = "offnominal_training"
_LEARNED, _OPTIMISER = "learned.", "optimiser."

History = list[list[float]]
"""One row a step: epoch and step, both from 1, and the parts of the loss."""


@dataclass(frozen=True)
class State:
    """A training between two steps.

    Attributes
    ----------
    identity : dict
        Plain values that every part of one training has in common.
    epoch, step : int
        What comes next, both counted from 0.
    tensors : dict
        Copies of what is learned and of the optimiser's numbers.
    random : Tensor
        The generator's state at the beginning of the epoch, uint8.
    history : list of list of float
        One row a step: epoch and step, both from 1, and the parts of the loss.
    """

    identity: dict[str, Any]
    epoch: int
    step: int
    tensors: dict[str, Tensor]
    random: Tensor
    history: History

    @classmethod
    def of(
        cls,
        identity: dict[str, Any],
        epoch: int,
        step: int,
        learned: nn.Module,
        optimiser: Optimizer,
        random: Tensor,
        history: History,
    ) -> "State":
        """Copy all that a training consists of."""
        tensors = {}
        for name, tensor in learned.state_dict().items():
            tensors[_LEARNED + name] = tensor.detach().to("cpu", copy=True).contiguous()
        for number, values in optimiser.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMISER}{number}.{name}"] = value.to("cpu", copy=True)
        return cls(identity, epoch, step, tensors, random, list(history))

    def restore(self, learned: nn.Module, optimiser: Optimizer) -> History:
        """Put the numbers back where they came from, and give the losses so far."""
        learned.load_state_dict(_under(self.tensors, _LEARNED))
        numbers: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(self.tensors, _OPTIMISER).items():
            number, _, name = key.partition(".")
            # The optimiser would go on with these very tensors; the state's stay as they are.
            numbers.setdefault(int(number), {})[name] = value.clone()
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": numbers, "param_groups": groups})
        return list(self.history)

    def write(self, path: Path) -> None:
        """Write the file in one step."""
        header = {
            "format": FORMAT,
            "identity": self.identity,
            "epoch": self.epoch,
            "step": self.step,
        }
        rows = torch.tensor(self.history, dtype=torch.float64).reshape(-1, 2 + len(PARTS))
        tensors = self.tensors | {"random": self.random, "history": rows}
        write_atomically(path, save(tensors, metadata={_KEY: json.dumps(header)}))


def read_state(path: Path) -> State:
    """Open a file of `State.write`.

    Raises
    ------
    ModelFileError
        If it is damaged, foreign, or of a newer format.
    """
    again = "delete it, or give --overwrite, to begin anew"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format"] > FORMAT:
            raise ModelFileError(f"{path}: written by a newer Offnominal; upgrade, or {again}")
        random, rows = tensors.pop("random"), tensors.pop("history").tolist()
        return State(header["identity"], header["epoch"], header["step"], tensors, random, rows)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path}: damaged, or not the state of a training ({error}); {again}"
        ) from error


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
