"""Checks of option values, shared by constructors and the command line; they import nothing heavy.

So a wrong value is told before torch, or even numpy, is there.
"""

import difflib
import math
import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, Literal, get_args

from offnominal.errors import OptionError

__all__ = [
    "AUGMENT",
    "PERCENT",
    "FalseReject",
    "check_aggregate",
    "check_augment",
    "check_choice",
    "check_range",
    "check_rate",
    "check_steps",
    "meant",
    "near",
    "parse_budget",
    "parse_sixteen_bit",
]

FalseReject = float | Literal["auto"]

_NEARLY = 0.08  # by how much a name may be less like what was given than the nearest

AUGMENT = ("flips", "turns", "rotations", "tilts", "shifts", "light", "colour")
"""What may happen to a good part in training; :mod:`offnominal.training.augment` does it."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 1000 * 3600.0  # seconds of a training

PERCENT = re.compile(r"(top|quantile|map-top)(\d+(?:\.\d+)?)")


def meant(word: object, known: Iterable[object]) -> str:
    """Such as ``did you mean padim? ``, or nothing where no word comes near.

    Words that begin with what was given come near as well.
    """
    given, names = str(word).lower(), [str(one) for one in known]
    begun = [one for one in names if len(given) > 2 and one.lower().startswith(given)]
    chosen = [*dict.fromkeys([*near(given, names), *begun])][:3]
    return f"did you mean {' or '.join(chosen)}? " if chosen else ""


def near(word: object, known: Iterable[object], least: float = 0.6) -> list[str]:
    """The nearest of some names, and those nearly as near: three at most, the nearest first.

    ``least`` is how like the word they must be, from 0 to 1.
    """
    given = str(word).lower()
    names = {str(one).lower(): str(one) for one in known}
    found = difflib.get_close_matches(given, names, 3, least)
    likeness = [difflib.SequenceMatcher(None, given, one).ratio() for one in found]
    return [
        names[one]
        for one, like in zip(found, likeness, strict=True)
        if like > likeness[0] - _NEARLY
    ]


def check_choice(option: str, value: object, choices: Any) -> None:
    """Raise an :class:`OptionError` that lists the choices: a ``Literal``, or a sequence."""
    allowed = get_args(choices) or choices
    if value not in allowed:
        told = f"{meant(value, allowed)}choose one of {', '.join(map(str, allowed))}"
        raise OptionError(f"{option} {value!r}: {told}")


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


def check_augment(names: str) -> list[str]:
    """The names in ``none`` or a list such as ``flips,light``.

    Raises
    ------
    OptionError
        If one is unknown.
    """
    found = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    for name in found:
        if name not in AUGMENT:
            told = f"{meant(name, AUGMENT)}choose none, or some of {', '.join(AUGMENT)}"
            raise OptionError(f"--augment {name}: {told}")
    return found


def check_rate(false_reject: FalseReject) -> None:
    """Raise an :class:`OptionError` if it is neither ``auto`` nor a rate inside (0, 1)."""
    if false_reject == "auto":
        return
    if not isinstance(false_reject, int | float) or not 0 < false_reject < 1:
        raise OptionError(
            f"--false-reject {false_reject}: give auto, or a rate between 0 and 1, as 0.01"
        )


def check_aggregate(how: str, own: str | None = None) -> None:
    """Raise an :class:`OptionError` if ``how`` is no way to aggregate.

    ``own`` is the name of the method's own image score, where it has one.
    """
    if how in ("max", "mean", "map-max", "quantile") or (own and how == own):
        return
    match = PERCENT.fullmatch(str(how))
    if match is None or not 0 < float(match[2]) <= 100:
        mine = f"{own} (the method's own), " if own else ""
        raise OptionError(
            f"--aggregate {how}: choose {mine}top1 (mean of the top 1 %, or top5 ...), max, "
            "map-max (maximum of the smoothed map), map-top1 (mean of the map's top 1 %), mean, "
            "or quantile99"
        )


def parse_sixteen_bit(value: str) -> tuple[float, float] | None:
    """Percentiles of a ``sixteen_bit`` option, or None for ``"range"``; OptionError otherwise."""
    if value == "range":
        return None
    try:
        low, high = (float(part) for part in value.split(","))
    except (ValueError, AttributeError, TypeError):
        low, high = math.nan, math.nan
    if not 0 <= low < high <= 100:
        raise OptionError(
            f"sixteen_bit={value!r}: expected 'range' or two percentiles with 0 <= P1 < P2 <= 100, "
            "such as '0.5,99.5'"
        )
    return low, high


def check_steps(steps: Any) -> None:
    """Raise an :class:`OptionError` if it is no number of steps, ``paper`` or None."""
    if steps in (None, "paper"):
        return
    if isinstance(steps, str):
        raise OptionError(f"--steps {steps}: give a whole number, or paper")
    check_range("steps", steps, least=1, most=10**8, whole=True)


def parse_budget(words: str) -> float:
    """Seconds from ``90s``, ``20m`` or ``1.5h``.

    Raises
    ------
    OptionError
        If it is no such time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", str(words).strip())
    if match is None or not float(match[1]):
        raise OptionError(f"--budget {words}: give a time such as 90s, 20m or 1.5h")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > _LONGEST:
        raise OptionError(f"--budget {words}: give at most {_LONGEST / 3600:.0f}h")
    return seconds
