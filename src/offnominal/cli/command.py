"""Commands for Typer to read, from signatures and docstrings; options of methods come late.

An option is written in a signature and nowhere else, the command's own or a constructor's: the
argument names it, its annotation the type and the choices, its default the default, and the
section ``Parameters`` of the docstring the help. So a method of another package has its options on
the command line as soon as it is registered.
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from offnominal.errors import OptionError

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_MARKUP = re.compile(r"\[(?=[a-z#/@])")
# What the help shows for a value that is read from words.
_SHOWN: dict[type, str | None] = {Path: "FILE", str: None, Mapping: "JSON", Sequence: "A,B,..."}

# -- options of constructors ------------------------------------------------------------------


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
        texts |= _described(vars(base).get("__doc__"))
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
    """The options of a detection method."""
    from offnominal.detectors.registry import detector_class

    return options_of(detector_class(method), f"Options of {method}", without)


def _words(default: Any) -> str:
    if default is None or default is inspect.Parameter.empty:
        return ""
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return {"True": "yes", "False": "no"}.get(str(default), str(default))


def _is(kind: Any, wanted: type) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, wanted)


def _described(docstring: str | None) -> dict[str, str]:
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


# -- commands ---------------------------------------------------------------------------------


# Whose options a command line asks for, and which.
MethodOptions = tuple[str, list[Option]]


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a command for Typer to read, with the help that its docstring gives them.

    A string beside the type says more: ``Annotated[Path, "-o"]`` is ``-o`` or ``--output``,
    ``Annotated[str, "--set NAME=VALUE"]`` shows what it takes, and
    ``Annotated[list[str], "IMAGES..."]`` is no option but an argument.
    """
    texts = _described(function.__doc__)
    found = []
    for each in inspect.signature(function).parameters.values():
        words = getattr(each.annotation, "__metadata__", ("",))
        if each.kind is each.VAR_KEYWORD or each.name == "given":
            continue
        if isinstance(words[0], str):
            kind = get_args(each.annotation)[0] if words[0] else each.annotation
            info = _declared(each.name, words[0], texts.get(each.name, ""), each.default is True)
            each = each.replace(annotation=Annotated[kind, info])
        found.append(each.replace(kind=each.KEYWORD_ONLY))
    return found


def _declared(name: str, word: str, text: str, switch: bool = False) -> Any:
    if word and not word.startswith("-"):
        return typer.Argument(metavar=word, help=text, show_default=False)
    flag, _, metavar = word.partition(" ")
    flags = [flag] if flag else []
    if not flag.startswith("--"):
        long = f"--{name.replace('_', '-')}"
        flags.append(f"{long}/--no-{long[2:]}" if switch else long)
    return typer.Option(*flags, metavar=metavar or None, help=text)


def add_command(
    app: typer.Typer,
    function: Callable[..., Any],
    more: Sequence[inspect.Parameter] = (),
    find: Callable[[list[str]], MethodOptions] | None = None,
    many: bool = False,
) -> None:
    """Add a command, some of whose options may depend on the command line, as on ``--method``.

    ``more`` is what the function's ``**`` argument takes. ``find``, given the words of the command
    line, says which further options there are; they arrive in the argument ``given`` by name, None
    where nothing was given. Where the function has an argument of that name itself, the option is
    ``--method-NAME``.

    With ``many``, ``--shots 1 2 4`` is read as ``--shots 1 --shots 2 --shots 4``, and what is found
    takes several values: for commands without arguments of their own, where a word after an option
    can be nothing but its value.
    """
    fixed = _spelled_out(function, more)
    look = find or (lambda args: (function.__name__, []))

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            owner, options = look(args)
            one = typer.Typer(add_completion=False)
            one.command()(_spelled_out(function, more, options, many))
            built = typer.main.get_command(one)
            self.params, self.callback = built.params, built.callback
            if many:
                args = _spread(args, self.params)
            _refuse_unknown(args, self.get_params(ctx), owner)
            return super().parse_args(ctx, args)

    app.command(cls=Command)(fixed)


def _spelled_out(
    function: Callable[..., Any],
    more: Iterable[inspect.Parameter],
    options: Sequence[Option] = (),
    many: bool = False,
) -> Callable[..., Any]:
    """A command with its ``**`` argument, and what its argument ``given`` holds, spelled out."""
    # Typer hands everything over by name, so the order of those with defaults is free.
    parameters = [*parameters_of(function), *more]
    taken = {each.name for each in parameters}
    parameters += [option.parameter(taken, many) for option in options]

    takes_them = "given" in inspect.signature(function).parameters

    def command(**values: Any) -> Any:
        read = {one.name: one.read(values.pop(f"option_{one.name}")) for one in options}
        return function(**values, **({"given": read} if takes_them else {}))

    command.__name__ = function.__name__
    command.__doc__ = inspect.cleandoc(function.__doc__ or "").partition("\nParameters\n---")[0]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def named(args: Sequence[str], flag: str, many: bool = False) -> list[str]:
    """The values that a command line gives an option, before it is parsed."""
    found, taking = [], False
    for word in args:
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            taking = name == flag and not equals
            found += [value] if name == flag and equals else []
        elif taking:
            found.append(word)
            taking = many
    return found


def _flags(params: Sequence[Any]) -> set[str]:
    return {flag for each in params for flag in (*each.opts, *each.secondary_opts)}


def _refuse_unknown(args: Sequence[str], params: Sequence[Any], owner: str) -> None:
    """Name the method that lacks an option, where Typer would only say that there is none."""
    known = {flag for flag in _flags(params) if flag.startswith("--")}
    for word in args[: args.index("--")] if "--" in args else args:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag, sorted(known), 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise OptionError(
                f"{flag}: {owner} has no such option; {meant}"
                "`--help` after the same words lists those that there are"
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
