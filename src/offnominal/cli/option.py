"""Options of the command line that are arguments of constructors.

An option is written in a constructor's signature and nowhere else: the argument names it, its
annotation the type and the choices, its default the default, and the section ``Parameters`` of the
docstring the help. So a method of another package has its options on the command line as soon as it
is registered.
"""

import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from offnominal.cli.completion import COMPLETIONS
from offnominal.errors import OptionError

__all__ = ["MethodOptions", "Option", "described", "method_options", "options_of"]

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_MARKUP = re.compile(r"\[(?=[a-z#/@])")
# What the help shows for a value that is read from words.
_SHOWN: dict[type, str | None] = {Path: "FILE", str: None, Mapping: "JSON", Sequence: "A,B,..."}


@dataclass(frozen=True)
class Option:
    """An argument of a constructor, as the command line shows it."""

    name: str
    kind: Any  # the annotation
    default: Any  # the constructor's own; the command hands on None where nothing was given
    help: str = ""
    panel: str = "Options"  # heading under which the help lists it

    @property
    def only(self) -> Any:
        """What the annotation allows beside None, where that is one type; else str."""
        kinds = self._kinds
        return kinds[0] if len(kinds) == 1 else Path if Path in kinds else str

    @property
    def _kinds(self) -> list[Any]:
        union = get_origin(self.kind) in (Union, UnionType)
        kinds = get_args(self.kind) if union else [self.kind]
        return [each for each in kinds if each is not NoneType]

    def parameter(self, taken: Iterable[str], many: bool) -> inspect.Parameter:
        """What Typer reads: ``--name``, or ``--method-name`` where the command has that itself."""
        flag = ("--method-" if self.name in taken else "--") + self.name.replace("_", "-")
        kind, metavar = self.only, None
        if many:
            kind, metavar = list[str], "VALUE..."
        elif kind is bool:
            flag = f"{flag}/--no-{flag[2:]}"
        elif kind not in (int, float) and get_origin(kind) is not Literal:
            metavar = next((word for each, word in _SHOWN.items() if _is(kind, each)), None)
            kind = str
        shown = _words(self.default) or False
        told: dict[str, Any] = {"help": self.help, "rich_help_panel": self.panel}
        told["autocompletion"] = COMPLETIONS.get(self.name)
        info = typer.Option(flag, metavar=metavar, show_default=shown, **told)
        told = {"default": None, "annotation": Annotated[kind | None, info]}
        return inspect.Parameter(f"option_{self.name}", inspect.Parameter.KEYWORD_ONLY, **told)

    def read(self, value: Any) -> Any:
        """What the constructor takes, from what Typer read."""
        number = next((one for one in self._kinds[:-1] if one in (int, float)), None)
        if isinstance(value, str) and number:  # or a word, as auto
            with suppress(ValueError):
                return number(value)
        if not isinstance(value, str) or _is(self.only, str):
            return value
        item = next((each for each in get_args(self.only) if each in (int, float)), str)
        told = "whole numbers such as 2,3 or -1" if item is int else "numbers such as 0.5,2"
        try:
            if _is(self.only, Mapping):
                told = 'JSON such as {"name": 1}'
                return json.loads(value)
            many = _is(self.only, Sequence)
            return tuple(item(part.strip()) for part in value.split(",")) if many else value
        except ValueError as error:
            raise OptionError(f"--{self.name.replace('_', '-')} {value}: give {told}") from error


def options_of(cls: type, panel: str = "Options", without: Sequence[str] = ()) -> list[Option]:
    """The arguments of a class's constructor, its own first, then those of its bases.

    A constructor with ``**`` hands the rest on to the next base.
    """
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        texts |= described(vars(base).get("__doc__"))
    found: dict[str, Option] = {}
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        hints, kinds = get_type_hints(constructor), set()
        for each in list(inspect.signature(constructor).parameters.values())[1:]:
            kinds.add(each.kind)
            if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
                told = hints.get(each.name, str), each.default, texts.get(each.name, "")
                found.setdefault(each.name, Option(each.name, *told, panel))
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return [option for name, option in found.items() if name not in without]


def method_options(method: str, without: Sequence[str] = ()) -> list[Option]:
    """The options of a detection method; one of this package is read from its source.

    To import it would take seconds.
    """
    from offnominal.detectors.registry import light_class

    return options_of(light_class(method), f"Options of {method}", without)


def _words(default: Any) -> str:
    if default is None or default is inspect.Parameter.empty:
        return ""
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return {"True": "yes", "False": "no"}.get(str(default), str(default))


def _is(kind: Any, wanted: type) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, wanted)


def described(docstring: str | None) -> dict[str, str]:
    """Names in a docstring's section ``Parameters`` or ``Attributes``, and what it says of them."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    section, names, found = "", [""], dict[str, list[str]]()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line and set(below.strip()) == {"-"}:
            section = line
        elif section not in ("Parameters", "Attributes") or not line:
            continue
        elif line.startswith(" "):
            for name in names:
                found[name].append(line.strip())
        else:
            told, _, kind = line.partition(" : ")
            names = [name.strip() for name in told.split(",")]
            found |= {name: [kind] for name in names}
    # The type stands for words where there are none.
    return {name: _plain(" ".join(lines[1:] or lines)) for name, lines in found.items()}


def _plain(text: str) -> str:
    """A docstring's words without its markup, nor anything that rich would take for its own."""
    return _MARKUP.sub(r"\\[", _ROLE.sub(r"\1", text).replace("``", "`"))


# Whose options a command line asks for, and which.
MethodOptions = tuple[str, list[Option]]
