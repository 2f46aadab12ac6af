"""Options that every detector takes, and checks of their values."""

from collections.abc import Sequence
from typing import Literal, TypedDict, TypeVar, get_args

import torch

from offnominal.backbones.base import Resize
from offnominal.errors import OptionError
from offnominal.memory.index_choice import parse_search

__all__ = [
    "CommonOptions",
    "Precision",
    "Storage",
    "check_bank",
    "check_choice",
    "choose_device",
    "evenly",
]

T = TypeVar("T")

Precision = Literal["fp32", "bf16", "fp16"]
Storage = Literal["fp32", "fp16", "int8"]


class CommonOptions(TypedDict, total=False):
    """Options of every detector; the base class says what they mean."""

    backbone: str | None
    weights: str | None
    layers: Sequence[int] | None
    resolution: int | None
    resize: Resize | None
    tile: int | None
    sixteen_bit: str
    smoothing: float
    false_reject: float
    precision: Precision
    device: str


def check_choice(option: str, value: object, choices: Sequence[object]) -> None:
    """Raise an :class:`OptionError` that lists the choices."""
    if value not in choices:
        raise OptionError(f"{option} {value!r}: choose one of {', '.join(map(str, choices))}")


def check_bank(storage: str, search: str) -> None:
    """Raise an :class:`OptionError` if a bank cannot be kept or searched so."""
    check_choice("storage", storage, get_args(Storage))
    parse_search(search)


def choose_device(device: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Raises
    ------
    OptionError
        If it is not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"--device {device}: not on this machine; `offnominal doctor` lists what is"
        ) from error
    return chosen


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spread; all of them for 0."""
    step = max(1, len(items) / count) if count else 1
    return [items[int(turn * step)] for turn in range(int(len(items) / step))]
