"""Checks of options that newcomers get wrong, before torch is there to construct anything.

All that is not here, a constructor tells, a little later. It makes the same checks once more.
"""

from collections.abc import Callable, Mapping
from typing import Any

from offnominal.checks import (
    check_aggregate,
    check_range,
    check_rate,
    check_steps,
    parse_budget,
    parse_sixteen_bit,
)
from offnominal.detectors.signatures import option_defaults

__all__ = ["CHECKS", "check_values"]


def _aggregate(kind: type, value: Any) -> None:
    check_aggregate(value, getattr(kind, "own_score", None))


def _rotations(kind: type, value: Any) -> None:
    from offnominal.rotations import parse_rotations

    # Of one method it is a number; others find the angles out, or draw them.
    words = isinstance(option_defaults(kind)["rotations"], str)
    if words and value not in ("auto", "random30"):
        parse_rotations(value)


def _range(name: str, **bounds: Any) -> Callable[[type, Any], None]:
    return lambda kind, value: check_range(name, value, **bounds)


CHECKS: dict[str, Callable[[type, Any], object]] = {
    "aggregate": _aggregate,
    "budget": lambda kind, value: parse_budget(value),
    "coreset": _range("coreset", above=0, most=1),
    "false_reject": lambda kind, value: check_rate(value),
    "neighbours": _range("neighbours", whole=True, least=1),
    "resolution": _range("resolution", least=1),
    "rotations": _rotations,
    "sixteen_bit": lambda kind, value: parse_sixteen_bit(value),
    "smoothing": _range("smoothing", least=0, most=10_000),
    "steps": lambda kind, value: check_steps(value),
}
"""By an option's name: what is called with the method's class and the value."""


def check_values(kind: type, given: Mapping[str, Any]) -> None:
    """Raise an :class:`OptionError` where a value alone tells, as the constructor would.

    Of a method of another package nothing is told: there a name may mean anything.
    """
    if kind.__module__.partition(".")[0] != __name__.partition(".")[0]:
        return
    known = option_defaults(kind)
    for name in CHECKS.keys() & given.keys() & known.keys():
        if given[name] is not None:
            CHECKS[name](kind, given[name])
