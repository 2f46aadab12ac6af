"""Commands for Typer to read, from signatures and docstrings; some of their options come late."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NamedTuple, get_args

import typer
from typer.core import TyperCommand

from offnominal.cli.method_options import Option, described
from offnominal.errors import OptionError

__all__ = ["Found", "add_command", "named", "parameters_of", "spelled_out"]

Options = Sequence[tuple[Option, inspect.Parameter]]


class Found(NamedTuple):
    """The options that a command line asks for, and whose they are."""

    owner: str
    options: list[Option]


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a command for Typer to read, with the help that its docstring gives them.

    A string beside the type says more: ``Annotated[Path, "-o"]`` is ``-o`` or ``--output``,
    ``Annotated[bool, "--json"]`` an option of another name, ``Annotated[str, "--set NAME=VALUE"]``
    shows what it takes, and ``Annotated[list[str], "IMAGES..."]`` is no option but an argument.
    """
    texts = described(function.__doc__)
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
