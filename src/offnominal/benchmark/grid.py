"""Grids: every combination of some values of some settings."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offnominal.detectors import METHODS, detector_class
from offnominal.errors import OptionError

__all__ = ["combinations", "of_method", "parse_sets"]

_WORDS = {"true": True, "false": False, "default": None}  # a default is looked up


def parse_sets(texts: Iterable[str], methods: Sequence[str]) -> dict[str, list[Any]]:
    """Values of detector options from ``NAME=VALUE,VALUE`` texts.

    Parameters
    ----------
    texts : iterable of str
        A name may be shortened while it stays unique. Commas separate values; a plus joins the
        parts of one value, as in ``layers=2+3,3`` or ``rotations=0+90+180+270,none``. ``default``
        is the constructor's own. ``METHOD:NAME=VALUE`` is for that method alone, in the place of
        what is given for all.
    methods : sequence of str
        The methods that the options are for.

    Returns
    -------
    dict of str to list
        By the option's name, with the method and a colon before it where one was named.

    Raises
    ------
    OptionError
        If a text has no ``=``, or a name that no method knows.
    """
    common = _defaults(methods)
    sets: dict[str, list[Any]] = {}
    for text in texts:
        told, equals, values = text.partition("=")
        if not equals or not values:
            raise OptionError(f"--set {text}: write NAME=VALUE, or NAME=VALUE,VALUE for several")
        method, name = of_method(told)
        if method is not None and method not in methods:
            raise OptionError(
                f"--set {text}: {method} is not among the methods to run, {', '.join(methods)}"
            )
        known = common if method is None else _defaults([method])
        name = name.strip().replace("-", "_")
        fitting = [name] if name in known else [k for k in known if k.startswith(name)]
        if len(fitting) != 1:
            raise OptionError(
                f"--set {text}: {method or ', '.join(methods)} has no option {name!r}; there are "
                f"{', '.join(sorted(known))}"
            )
        parsed = [_value(part.strip(), fitting[0], known[fitting[0]]) for part in values.split(",")]
        key = fitting[0] if method is None else f"{method}:{fitting[0]}"
        sets.setdefault(key, []).extend(parsed)
    return sets


def of_method(text: str) -> tuple[str | None, str]:
    """The method that a text names before a colon, and the rest; no method where it is for all.

    A colon belongs to the text itself where no method stands before it, as in
    ``open_clip:ViT-B-16`` and ``C:\\weights``.
    """
    name, colon, rest = text.partition(":")
    return (name, rest) if colon and name in METHODS else (None, text)


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
