"""Options of constructors: their names, their types, and the device."""

import json
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from offnominal.checks import meant
from offnominal.detectors.deciding import LeaveOneOut
from offnominal.detectors.signatures import option_defaults
from offnominal.engines.base import EngineName
from offnominal.errors import ImageError, OptionError
from offnominal.progress import Progress, ShowProgress

__all__ = [
    "EngineName",
    "LeaveOneOut",
    "OnError",
    "Precision",
    "Progress",
    "ShowProgress",
    "checked_options",
    "choose_device",
    "option_defaults",
    "refuse_unknown",
]

OnError = Callable[[ImageError], None]
Precision = Literal["fp32", "bf16", "fp16"]


def refuse_unknown(method: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise an :class:`OptionError` that tells the nearest name, unless all are known."""
    listed = list(known)
    for name in names:
        if name not in listed:
            told = meant(name, listed).strip() or f"it has {', '.join(listed)}"
            raise OptionError(f"{method} has no option {name}: {told}")


def choose_device(device: str) -> Any:
    """The ``torch.device`` that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Raises
    ------
    OptionError
        If it is not on this machine.
    """
    import torch

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


def checked_options(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Options from a file, if each is of the type that the constructor's annotation gives it.

    Raises
    ------
    OptionError
        If one is not, or is unknown.
    """
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in vars(base) and base.__module__.partition(".")[0] != "torch":
            hints |= get_type_hints(vars(base)["__init__"])
    checked = {}
    for name, value in options.items():
        if name not in option_defaults(kind):
            raise OptionError(f"{name}: there is no such option")
        try:  # as JSON: there a tuple is a list, and nothing else is taken for another
            adapter: TypeAdapter[Any] = TypeAdapter(hints[name])
            read = adapter.validate_json(json.dumps(value), strict=True)
            checked[name] = value if read == value else read  # 1 stays 1 where 1.0 is as good
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise OptionError(f"{name} {str(value)[:60]!r}: {reason}") from error
    return checked
