"""Files of what RegAD learned on other categories: one safetensors file of stages and transformers.

The header's metadata has one entry, ``offnominal_regad``, a JSON object: the format's and the
library's version, how the stages are built, and how they were trained.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from pydantic import BaseModel, ConfigDict

from offnominal._version import __version__
from offnominal.atomic import write_atomically
from offnominal.backbones.weights import build_arguments
from offnominal.detectors.meta.networks import Plan, Registered
from offnominal.errors import ModelFileError, OptionError
from offnominal.sealed import Damaged, open_sealed, sealed, validated

__all__ = ["built", "read_registered", "write_registered"]

FORMAT = 1
_KEY = "offnominal_regad"
_MAKE = "make one with `offnominal train regad`"


class _Plan(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    network: str
    arguments: dict[str, bool | int | float | str | None]
    levels: list[int]
    side: int
    mean: list[float]
    std: list[float]


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)

    format: int
    version: str = "?"
    plan: _Plan
    training: dict[str, Any] = {}


def write_registered(path: Path, registered: Registered, training: Mapping[str, Any]) -> None:
    """Write what was learned; the file appears whole or not at all, the same bytes for the same.

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    plan = registered.plan.plain()
    header = {"format": FORMAT, "version": __version__, "plan": plan, "training": dict(training)}
    tensors = {k: t.detach().cpu().contiguous() for k, t in registered.state_dict().items()}
    write_atomically(path, sealed(_KEY, header, tensors))


def read_registered(learned: str | Path | None) -> tuple[Registered, dict[str, Any]]:
    """Open a file: the stages, frozen, on the CPU, and how they were trained.

    Raises
    ------
    OptionError
        If none is named.
    ModelFileError
        If it is missing, damaged, foreign, or of a newer format.
    """
    if learned is None:
        raise OptionError(
            "--method regad: needs what was learned on other categories; make it with "
            "`offnominal train regad`, and give the file with --learned"
        )
    path = Path(learned)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path}: {what}; {_MAKE}")
    try:
        content, tensors, _ = open_sealed(path, _KEY)
        if content is None:
            raise Damaged("no file of what RegAD learned")
        if isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise Damaged("written by a newer Offnominal; install it")
        header = validated(_Header, content)
        registered = built(header.plan.model_dump())
        if not all(each.isfinite().all() for each in tensors.values()):
            raise Damaged("holds numbers that are not finite")
        registered.load_state_dict(tensors)
    except (Damaged, OptionError, RuntimeError, TypeError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ModelFileError(f"{path}: cannot be used ({reason}); {_MAKE}") from error
    registered.eval().requires_grad_(False)
    return registered, header.training


def built(plan: Mapping[str, Any]) -> Registered:
    """Stages as a file says that they are built, of no weights yet.

    Raises
    ------
    ValueError, TypeError, LookupError, RuntimeError, OptionError
        If it says no such thing.
    """
    told = _Plan.model_validate(dict(plan))
    if not told.levels or min(told.levels) < 0 or not len(told.mean) == len(told.std) == 3:
        raise ValueError("levels, mean or std")
    # A file must not have anything fetched, nor read from elsewhere.
    if not timm.is_model(told.network.split(".")[0]):
        raise ValueError("no network of timm's")
    words = {name: json.dumps(value) for name, value in told.arguments.items()}
    if build_arguments(words) != told.arguments:
        raise ValueError("arguments that no weights file gives")
    return Registered(Plan(**told.model_dump()))
