"""Option values: the checks that constructors share, and what each option of a method is."""

import inspect
import json
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from offnominal.errors import ImageError, OptionError

__all__ = [
    "LeaveOneOut",
    "OnError",
    "Precision",
    "Progress",
    "check_choice",
    "check_range",
    "checked_options",
    "choose_device",
    "option_defaults",
]

OnError = Callable[[ImageError], None]
Progress = Callable[[str, int], None]
Precision = Literal["fp32", "bf16", "fp16"]
LeaveOneOut = Literal["exact", "approximate", "none"]


def check_choice(option: str, value: object, choices: Any) -> None:
    """Raise an :class:`OptionError` that lists the choices: a ``Literal``, or a sequence."""
    allowed = get_args(choices) or choices
    if value not in allowed:
        raise OptionError(f"{option} {value!r}: choose one of {', '.join(map(str, allowed))}")


def check_range(
    option: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Raise an :class:`OptionError` that names the range, unless a number lies in it."""
    fine = (
        _is_number(value, whole)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not fine:
        low = f"above {above}" if above is not None else f"from {least}"
        high = f" to below {below}" if below is not None else f" up to {most}"
        some = most is None and below is None
        told = (f"{least} or more" if above is None else f"more than {above}") if some else low
        name = option.replace("_", "-")
        kind = "a whole number, " if whole and not _is_number(value, whole) else ""
        raise OptionError(f"--{name} {value}: give {kind}{told}{'' if some else high}")


def _is_number(value: object, whole: bool) -> bool:
    truth = isinstance(value, bool)  # which Python takes for a number
    kind = Integral if whole else Real
    return not truth and isinstance(value, kind) and math.isfinite(value)


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


def option_defaults(kind: type) -> dict[str, Any]:
    """The arguments of a constructor and their defaults, those of its bases first.

    A subclass names its own arguments and passes the rest on to its base as ``**options``.
    """
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" not in vars(base) or base.__module__.partition(".")[0] == "torch":
            continue
        for parameter in inspect.signature(vars(base)["__init__"]).parameters.values():
            if parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                found[parameter.name] = parameter.default
    found.pop("args", None)  # object's own
    return found


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
