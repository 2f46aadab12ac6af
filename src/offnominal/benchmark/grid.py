"""Grids: every combination of some values of some settings."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offnominal.detectors import detector_class
from offnominal.errors import OptionError

__all__ = ["combinations", "parse_sets"]

_WORDS = {"true": True, "false": False, "default": None}  # a default is looked up


def parse_sets(texts: Iterable[str], methods: Sequence[str]) -> dict[str, list[Any]]:
    """Values of detector options from ``NAME=VALUE,VALUE`` texts.

    Parameters
    ----------
    texts : iterable of str
        A name may be shortened while it stays unique. Commas separate values; a plus joins the
        parts of one value, as in ``layers=2+3,3`` or ``rotations=0+90+180+270,none``. ``default``
        is the constructor's own.
    methods : sequence of str
        The methods that the options are for.

    Raises
    ------
    OptionError
        If a text has no ``=``, or a name that no method knows.
    """
    known = _defaults(methods)
    sets: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise OptionError(f"--set {text}: write NAME=VALUE, or NAME=VALUE,VALUE for several")
        name = name.strip().replace("-", "_")
        fitting = [name] if name in known else [k for k in known if k.startswith(name)]
        if len(fitting) != 1:
            raise OptionError(
                f"--set {text}: {', '.join(methods)} has no option {name!r}; there are "
                f"{', '.join(sorted(known))}"
            )
        parsed = [_value(part.strip(), fitting[0], known[fitting[0]]) for part in values.split(",")]
        sets.setdefault(fitting[0], []).extend(parsed)
    return sets


def combinations(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination, the last setting varying fastest; one empty one for no settings."""
    rows = itertools.product(*values.values())
    return [dict(zip(values, row, strict=True)) for row in rows]


def _defaults(methods: Sequence[str]) -> dict[str, Any]:
    """Options of some methods and their defaults, without those that name a place or a device."""
    found: dict[str, Any] = {}
    for method in methods:
        found |= detector_class(method).option_defaults()
    return {name: value for name, value in found.items() if name not in ("device", "weights")}


def _value(text: str, name: str, default: Any) -> Any:
    if text in _WORDS:
        return default if text == "default" else _WORDS[text]
    if name == "layers":
        return tuple(_number(part, name) for part in text.split("+"))
    if isinstance(default, float):
        return float(_number(text, name))
    if isinstance(default, int):
        return _number(text, name)
    if default is None and text.replace(".", "", 1).isdigit():
        return _number(text, name)
    return text.replace("+", ",")


def _number(text: str, name: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise OptionError(f"--set {name}={text}: give a number")
