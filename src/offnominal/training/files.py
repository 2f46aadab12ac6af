"""The files of a training: what was learned, losses, curves, and where it stands."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offnominal.atomic import write_atomically
from offnominal.errors import DatasetError, OptionError
from offnominal.training.losses import PARTS
from offnominal.training.state import History, State, read_state

__all__ = ["Files", "find_state", "mean_losses", "read_losses", "write_losses"]


@dataclass(frozen=True)
class Files:
    """The files of a training, by the name of the one it is for.

    Attributes
    ----------
    learned : Path
        The prompts or layers.
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


def find_state(files: Files, identity: Mapping[str, Any], overwrite: bool) -> State | None:
    """The state to go on from, or None to begin.

    Parameters
    ----------
    files : Files
    identity : mapping
        What every part of one training has in common.
    overwrite : bool
        Whether what is there is of no account.

    Raises
    ------
    OptionError
        If what is there belongs to another training.
    ModelFileError
        If the state cannot be read.
    """
    if overwrite:
        return None
    if not files.state.exists():
        if files.learned.exists():
            raise OptionError(
                f"-o {files.learned}: exists, and {files.state.name}, from which its training "
                "could go on, does not; name another file, or give --overwrite"
            )
        return None
    state = read_state(files.state)
    for name, ours in identity.items():
        theirs = state.identity.get(name)
        if theirs != ours:
            raise OptionError(
                f"-o {files.learned}: belongs to another training, whose {name} is {theirs}, not "
                f"{ours}; give the same options to go on, name another file, or give --overwrite"
            )
    return state


def write_losses(path: Path, history: History) -> None:
    """Write JSON lines, one a step: ``epoch`` and ``step`` from 1, and the parts of the loss."""
    lines = [
        json.dumps(
            {"epoch": int(row[0]), "step": int(row[1])} | dict(zip(PARTS, row[2:], strict=True))
        )
        for row in history
    ]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def read_losses(path: Path) -> History:
    """What `write_losses` wrote.

    Raises
    ------
    DatasetError
        If it cannot be read.
    """
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [[row["epoch"], row["step"], *(row[part] for part in PARTS)] for row in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: no losses of a training ({error})") from error


def mean_losses(history: History) -> list[dict[str, float]]:
    """Mean of each part of the loss over the steps of each epoch, in their order."""
    epochs: dict[int, list[list[float]]] = {}
    for row in history:
        epochs.setdefault(int(row[0]), []).append(row[2:])
    return [
        dict(zip(PARTS, (math.fsum(c) / len(c) for c in zip(*rows, strict=True)), strict=True))
        for _, rows in sorted(epochs.items())
    ]
