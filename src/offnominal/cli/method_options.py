"""Options that a command takes from signatures: each is written in a constructor and nowhere else.

A constructor names the option, its annotation the type and the choices, its default the default,
and the ``Parameters`` section of the class's docstring the help. So a method of another package
has its options on the command line as soon as it is registered.
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from offnominal.errors import OptionError

__all__ = [
    "Found", "Option", "add_command", "method_options", "named", "options_of", "parameters_of",
    "spelled_out",
]  # fmt: skip

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


Options = Sequence[tuple[Option, inspect.Parameter]]


class Found(NamedTuple):
    """The options that a command line asks for, and whose they are."""

    owner: str
    options: list[Option]


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
        found |= _described(vars(base).get("__doc__"))
    return found


def _described(docstring: str | None) -> dict[str, str]:
    """Names and descriptions in the section ``Parameters`` or ``Attributes``."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    section, names, found = "", [""], dict[str, str]()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line and set(below.strip()) == {"-"}:
            section = line
        elif section in ("Parameters", "Attributes") and line and not line.startswith(" "):
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
        elif section in ("Parameters", "Attributes") and line:
            found |= {name: f"{found.get(name, '')} {line.strip()}".strip() for name in names}
    return {name: _plain(text) for name, text in found.items()}


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


# -- commands -----------------------------------------------------------------------------------


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a command for Typer to read, with the help that its docstring gives them.

    A string beside the type says more: ``Annotated[Path, "-o"]`` is ``-o`` or ``--output``,
    ``Annotated[bool, "--json"]`` an option of another name, ``Annotated[str, "--set NAME=VALUE"]``
    shows what it takes, and ``Annotated[list[str], "IMAGES..."]`` is no option but an argument.
    """
    texts = _described(function.__doc__)
    found = []
    for each in inspect.signature(function).parameters.values():
        words = getattr(each.annotation, "__metadata__", ("",))
        if each.kind is each.VAR_KEYWORD or each.name == "given":
            continue
        if isinstance(words[0], str):
            kind = get_args(each.annotation)[0] if words[0] else each.annotation
            info = _declared(each.name, words[0], texts.get(each.name, ""))
            each = each.replace(annotation=Annotated[kind, info])
        found.append(each.replace(kind=each.KEYWORD_ONLY))
    return found


def _declared(name: str, word: str, text: str) -> Any:
    if word and not word.startswith("-"):
        return typer.Argument(metavar=word, help=text, show_default=False)
    flag, _, metavar = word.partition(" ")
    flags = [flag] if flag else []
    if not flag.startswith("--"):
        flags.append(f"--{name.replace('_', '-')}")
    return typer.Option(*flags, metavar=metavar or None, help=text)


def spelled_out(
    function: Callable[..., Any], more: Iterable[inspect.Parameter] = (), found: Options = ()
) -> Callable[..., Any]:
    """A command for Typer to read, with its ``**`` argument spelled out.

    Parameters
    ----------
    function : callable
    more : iterable of inspect.Parameter
        What its ``**`` argument takes.
    found : sequence of (Option, inspect.Parameter)
        What its argument ``given`` holds, a dict by the options' names.
    """
    takes_options = "given" in inspect.signature(function).parameters

    def command(**values: Any) -> Any:
        given = {option.name: option.read(values.pop(each.name)) for option, each in found}
        return function(**values, **({"given": given} if takes_options else {}))

    # Typer hands everything over by name, so the order of those with defaults is free.
    parameters = [*parameters_of(function), *more, *(each for _, each in found)]
    command.__name__ = function.__name__
    command.__doc__ = inspect.cleandoc(function.__doc__ or "").partition("\nParameters\n---")[0]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def add_command(
    app: typer.Typer,
    function: Callable[..., Any],
    find: Callable[[list[str]], Found],
    more: Sequence[inspect.Parameter] = (),
    many: bool = False,
) -> None:
    """Add a command whose options depend on the command line, such as on ``--method``.

    Parameters
    ----------
    app : typer.Typer
    function : callable
        The values arrive in its argument ``given`` by their names, None where none was given. Where
        it has an argument of an option's name itself, the option is ``--method-NAME``.
    find : callable
        Given the words of the command line, says which options there are.
    more : sequence of inspect.Parameter
        What its ``**`` argument takes, whatever the command line says.
    many : bool
        Whether ``--shots 1 2 4`` is read as ``--shots 1 --shots 2 --shots 4``, and every option
        found takes several values. It is for commands without arguments of their own, where a word
        after an option can be nothing but its value.
    """
    fixed = spelled_out(function, more)

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if many:
                args = _spread(args, self.params)
            owner, options = find(args)
            taken = inspect.signature(fixed).parameters
            found = [(option, option.parameter(taken, many)) for option in options]
            one = typer.Typer(add_completion=False)
            one.command()(spelled_out(function, more, found))
            built = typer.main.get_command(one)
            self.params, self.callback = built.params, built.callback
            if many:
                args = _spread(args, self.params)
            _refuse_unknown(args, self.get_params(ctx), owner)
            return super().parse_args(ctx, args)

    app.command(cls=Command)(fixed)


def named(args: Sequence[str], flag: str) -> list[str]:
    """The values that a command line gives an option, before it is parsed."""
    pairs = zip(args, [*args[1:], ""], strict=True)
    found = [below if word == flag else word.removeprefix(f"{flag}=") for word, below in pairs
             if word == flag or word.startswith(f"{flag}=")]  # fmt: skip
    return [value for value in found if value]


def _flags(params: Sequence[Any]) -> set[str]:
    return {flag for each in params for flag in (*each.opts, *each.secondary_opts)}


def _refuse_unknown(args: Sequence[str], params: Sequence[Any], owner: str) -> None:
    """Name the method that lacks an option, where Typer would only say that there is none."""
    known = {flag for flag in _flags(params) if flag.startswith("--")}
    for word in args[: args.index("--")] if "--" in args else args:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag, sorted(known), 1)
            raise OptionError(
                f"{flag}: {owner} has no such option; "
                + (f"did you mean {near[0]}? " if near else "")
                + "`--help` after the same words lists those that there are"
            )


def _spread(args: Sequence[str], params: Sequence[Any]) -> list[str]:
    """The words with the name of an option before each of its values."""
    many = _flags([each for each in params if getattr(each, "multiple", False)])
    spread: list[str] = []
    option = ""
    for word in args:
        if word.startswith("-") and not re.fullmatch(r"-\d*\.?\d+", word):
            option = word
        elif option in many and spread and spread[-1] != option:
            spread.append(option)
        spread.append(word)
    return spread
