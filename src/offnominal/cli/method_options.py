"""Options that a command takes from signatures: each is written in a constructor and nowhere else.

A constructor names the option, its annotation the type and the choices, its default the default,
and the ``Parameters`` section of the class's docstring the help. So a method of another package
has its options on the command line as soon as it is registered.
"""

import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from offnominal.errors import OptionError

__all__ = ["Option", "described", "method_options", "options_of"]

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_MARKUP = re.compile(r"\[(?=[a-z#/@])")


@dataclass(frozen=True)
class Option:
    """An argument of a constructor, as the command line shows it.

    Attributes
    ----------
    name : str
    kind : type
        The annotation.
    default : Any
        The constructor's own; what the command hands on is None where nothing was given.
    help : str
        From the docstring.
    panel : str
        Heading under which the help lists it.
    """

    name: str
    kind: Any
    default: Any
    help: str = ""
    panel: str = "Options"

    @property
    def kinds(self) -> list[Any]:
        """What the annotation allows, without None."""
        union = get_origin(self.kind) in (Union, UnionType)
        return [
            kind for kind in (get_args(self.kind) if union else [self.kind]) if kind != NoneType
        ]

    def parameter(self, taken: Iterable[str], many: bool) -> inspect.Parameter:
        """What Typer reads: ``--name``, or ``--method-name`` where the command has that itself."""
        flag = ("--method-" if self.name in taken else "--") + self.name.replace("_", "-")
        kind, metavar = self._shown()
        if many:
            kind, metavar = list[str], "VALUE..."
        elif kind is bool:
            flag = f"{flag}/--no-{flag[2:]}"
        info = typer.Option(
            flag,
            metavar=metavar,
            help=self.help,
            show_default=_words(self.default) or False,
            rich_help_panel=self.panel,
        )
        return inspect.Parameter(
            f"option_{self.name}",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, info],
        )

    def _shown(self) -> tuple[Any, str | None]:
        """The type that Typer reads and its name in the help, where it is not Typer's own."""
        if Path in self.kinds:
            return str, "FILE"
        if len(self.kinds) == 1:
            [kind] = self.kinds
            if kind in (bool, int, float) or get_origin(kind) is Literal:
                return kind, None
            if _is(kind, Mapping):
                return str, "JSON"
            if kind is not str and _is(kind, Sequence):
                return str, "A,B,..."
        return str, None

    def read(self, value: Any) -> Any:
        """What the constructor takes, from what Typer read."""
        if not isinstance(value, str) or len(self.kinds) != 1 or self.kinds[0] is str:
            return value
        [kind] = self.kinds
        flag = f"--{self.name.replace('_', '-')} {value}"
        if _is(kind, Mapping):
            try:
                return json.loads(value)
            except ValueError as error:
                raise OptionError(f'{flag}: give JSON such as {{"name": 1}} ({error})') from error
        if _is(kind, Sequence):
            item = next((each for each in get_args(kind) if each in (int, float)), str)
            try:
                return tuple(item(part.strip()) for part in value.split(","))
            except ValueError as error:
                told = "whole numbers such as 2,3 or -1" if item is int else "numbers such as 0.5,2"
                raise OptionError(f"{flag}: give {told}") from error
        return value


def options_of(cls: type, panel: str = "Options", without: Sequence[str] = ()) -> list[Option]:
    """The arguments of a class's constructor, its own first, then those of its bases.

    A constructor with ``**`` hands the rest on to the next base.
    """
    texts = _texts(cls)
    found: dict[str, Option] = {}
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        hints = get_type_hints(constructor)
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for each in parameters:
            if each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
                continue
            kind, text = hints.get(each.name, str), texts.get(each.name, "")
            found.setdefault(each.name, Option(each.name, kind, each.default, text, panel))
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    return [option for name, option in found.items() if name not in without]


def method_options(method: str, without: Sequence[str] = ()) -> list[Option]:
    """The options of a detection method."""
    from offnominal.detectors import detector_class

    return options_of(detector_class(method), f"Options of {method}", without)


def _texts(cls: type) -> dict[str, str]:
    """Descriptions of parameters in the docstrings of a class and its bases, the class's first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= described(vars(base).get("__doc__"))
    return found


def described(docstring: str | None) -> dict[str, str]:
    """Names in a docstring's section ``Parameters`` or ``Attributes``, and what it says of them."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    section, names = "", [""]
    kinds, texts = dict[str, str](), dict[str, str]()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line and set(below.strip()) == {"-"}:
            section = line
        elif section in ("Parameters", "Attributes") and line and not line.startswith(" "):
            left, _, kind = line.partition(" : ")
            names = [name.strip() for name in left.split(",")]
            kinds |= dict.fromkeys(names, kind)
        elif section in ("Parameters", "Attributes") and line:
            texts |= {name: f"{texts.get(name, '')} {line.strip()}".strip() for name in names}
    return {name: _plain(texts.get(name, kind)) for name, kind in kinds.items()}


def _plain(text: str) -> str:
    """A docstring's words without its markup, nor anything that rich would take for its own."""
    return _MARKUP.sub(r"\\[", _ROLE.sub(r"\1", text).replace("``", "`"))


def _words(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return "" if default is None or default is inspect.Parameter.empty else str(default)


def _is(kind: Any, wanted: type) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, wanted)
