"""Where a training stands, and its files: what is learned, the losses, the state to go on from.

The state is one safetensors file; its metadata's one entry, ``offnominal_training``, is a JSON
object with the format's version, the training's identity, the files that it learns from, the epoch
and step that come next, and a digest over all of it and the tensors.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from offnominal.atomic import write_atomically
from offnominal.errors import DatasetError, ModelFileError, OptionError
from offnominal.sealed import Damaged, open_sealed, sealed, validated

__all__ = ["Checkpoint", "Files", "History", "Learner", "State", "mean_losses"]
__all__ += ["read_losses", "unusable"]

FORMAT = 3
_KEY = "offnominal_training"
_LEARNED, _OPTIMISER = "learned.", "optimiser."

# What an optimiser keeps of each parameter, by its class.
_KEPT = {name: {"step", "exp_avg", "exp_avg_sq"} for name in ("Adam", "AdamW", "StableAdamW")}
_KEPT |= {"SGD": {"momentum_buffer"}}

Count = Annotated[int, Field(ge=0, le=2**40)]
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
        optimisers: Sequence[Optimizer],
        random: Tensor,
        history: History,
    ) -> "State":
        """Copy all that a training consists of; parameters that are frozen are left out."""
        frozen = {name for name, each in learner.named_parameters() if not each.requires_grad}
        found = {_LEARNED + k: t for k, t in learner.state_dict().items() if k not in frozen}
        for first, optimiser in _numbered(optimisers):
            for number, values in optimiser.state_dict()["state"].items():
                start = f"{_OPTIMISER}{first + number}."
                found |= {start + k: t for k, t in values.items() if isinstance(t, Tensor)}
        copies = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in found.items()}
        return cls(epoch, step, copies, random, list(history))

    def restore(self, learner: Learner, optimisers: Sequence[Optimizer]) -> None:
        """Put the numbers back where they came from; if they do not fit there, Damaged."""
        self._check(learner, optimisers)
        learner.load_state_dict(_under(self.tensors, _LEARNED), strict=False)
        numbers: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(self.tensors, _OPTIMISER).items():
            number, _, name = key.partition(".")
            # The optimiser would go on with these very tensors; the state's stay as they are.
            numbers.setdefault(int(number), {})[name] = value.clone()
        for first, optimiser in _numbered(optimisers):
            own = optimiser.state_dict()
            places = {n for group in own["param_groups"] for n in group["params"]}
            kept = {n: numbers[first + n] for n in places if first + n in numbers}
            optimiser.load_state_dict({"state": kept, "param_groups": own["param_groups"]})

    def _check(self, learner: Learner, optimisers: Sequence[Optimizer]) -> None:
        frozen = {name for name, each in learner.named_parameters() if not each.requires_grad}
        shapes = {name: each.shape for name, each in learner.state_dict().items()}
        own = {name: each.shape for name, each in _under(self.tensors, _LEARNED).items()}
        if own != {name: shape for name, shape in shapes.items() if name not in frozen}:
            raise Damaged("what it has learned does not fit")
        shapes, wanted = {}, {}
        for first, optimiser in _numbered(optimisers):
            for place, parameter in enumerate(_parameters(optimiser), start=first):
                shapes[str(place)] = parameter.shape
                wanted[str(place)] = _KEPT.get(type(optimiser).__name__, set())
        kept: dict[str, set[str]] = {}
        for key, value in _under(self.tensors, _OPTIMISER).items():
            number, _, name = key.partition(".")
            kept.setdefault(number, set()).add(name)
            if number not in shapes or value.shape not in (shapes[number], torch.Size()):
                raise Damaged("what its optimiser keeps does not fit")
        if any(not wanted[number] <= names for number, names in kept.items()):
            raise Damaged("its optimiser keeps other numbers")
        if not all(each.isfinite().all() for each in self.tensors.values()):
            raise Damaged("holds numbers that are not finite")
        if not all(math.isfinite(value) for row in self.history for value in row.values()):
            raise Damaged("holds losses that are not finite")
        try:
            torch.Generator().set_state(self.random)
        except (RuntimeError, TypeError) as error:
            raise Damaged("its random numbers cannot go on") from error


class _Header(BaseModel):
    """What the header of a state says."""

    model_config = ConfigDict(strict=True)

    format: int
    identity: dict[str, Any]
    files: dict[str, str]
    epoch: Count
    step: Count
    columns: list[str]


def _write_nothing(epochs: int, history: History) -> None:
    """What is learned is written by others, once it is whole."""


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
    sources : mapping of str to str
        Digest of each file that is learned from, by its name: the same for the whole training.
    each_epoch : bool
        Whether all files are written after each epoch, not only the state now and then.
    writes : bool
        Whether this process is the one that writes.
    """

    files: Files
    identity: Mapping[str, Any]
    write_learned: Callable[[int, History], None] = _write_nothing
    overwrite: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)
    each_epoch: bool = True
    writes: bool = True

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
            if learned.exists() and self.each_epoch:
                raise OptionError(
                    f"-o {learned}: exists, and {path.name}, from which its training could go on, "
                    "does not; name another file, or give --overwrite"
                )
            return None
        if path.is_dir():
            raise OptionError(f"{path}: is a folder, where the state of the training would be")
        state, identity, sources = _read(path)
        if differ := sorted(
            name
            for name in sources.keys() | self.sources.keys()
            if sources.get(name) != self.sources.get(name)
        ):
            more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
            raise OptionError(
                f"-o {learned}: belongs to a training on other files, of which "
                f"{', '.join(differ[:5])}{more} differ; put them back to go on, name another file, "
                "or give --overwrite"
            )
        for name, ours in self.identity.items():
            theirs = identity.get(name)
            if theirs != ours:
                raise OptionError(
                    f"-o {learned}: belongs to another training, whose {name} is {theirs}, not "
                    f"{ours}; give the same options to go on, name another file, or give "
                    "--overwrite"
                )
        return state

    def said(self, name: str) -> Any:
        """A value of the identity of the training whose state is there; None where none is."""
        return _read(self.files.state)[1].get(name) if self.files.state.is_file() else None

    def write_state(self, state: State) -> None:
        """Write where the training stands."""
        if not self.writes:
            return
        columns = list(state.history[0]) if state.history else []
        header = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "files": dict(self.sources),
            "epoch": state.epoch,
            "step": state.step,
            "columns": columns,
        }
        rows = torch.tensor([list(row.values()) for row in state.history], dtype=torch.float64)
        tensors = {
            "random": state.random,
            "history": rows.reshape(len(state.history), len(columns)),
        }
        write_atomically(self.files.state, sealed(_KEY, header, state.tensors | tensors))

    def write(self, state: State) -> None:
        """Write all files.

        The state goes first: without it a result that lies there would be in the way.
        """
        self.write_state(state)
        self.write_learned(state.epoch, state.history)
        lines = "".join(f"{json.dumps(row)}\n" for row in state.history)
        write_atomically(self.files.losses, lines.encode())


def unusable(path: Path, why: object) -> ModelFileError:
    """The error of a state that a training cannot go on from."""
    return ModelFileError(
        f"{path}: damaged, or not the state of a training ({why}); delete it, or give --overwrite, "
        "to begin anew"
    )


def _read(path: Path) -> tuple[State, dict[str, Any], dict[str, str]]:
    """A state, its training's identity and the digests of its files."""
    try:
        content, tensors, _ = open_sealed(path, _KEY)
        if content is not None and content.get("format") != FORMAT:
            raise Damaged("written by another version of Offnominal")
        header = validated(_Header, content)
        if header.columns and not {"epoch", "step", "total"} <= set(header.columns):
            raise Damaged("its losses lack epoch, step or total")
        random, rows = tensors.pop("random"), tensors.pop("history").tolist()
        history = [_row(dict(zip(header.columns, row, strict=True))) for row in rows]
    except (Damaged, ValueError, KeyError, TypeError, OverflowError) as error:
        raise unusable(path, str(error)[:300]) from error
    state = State(header.epoch, header.step, tensors, random, history)
    return state, header.identity, header.files


def _row(values: Mapping[str, float]) -> dict[str, float]:
    return {**values, "epoch": int(values["epoch"]), "step": int(values["step"])}


def _parameters(optimiser: Optimizer) -> list[nn.Parameter]:
    return [each for group in optimiser.param_groups for each in group["params"]]


def _numbered(optimisers: Sequence[Optimizer]) -> Iterator[tuple[int, Optimizer]]:
    """Optimisers, and the number of the first parameter of each, counted through all of them."""
    first = 0
    for optimiser in optimisers:
        yield first, optimiser
        first += len(_parameters(optimiser))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def read_losses(path: Path) -> History:
    """The JSON lines of a training's losses, all of them numbers.

    Raises
    ------
    DatasetError
        If it cannot be read.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [_row(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error)[:200]
        raise DatasetError(f"{path}: no losses of a training ({reason})") from error


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
