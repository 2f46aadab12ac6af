"""Commands for Typer to read, from signatures and docstrings; options of methods come late.

A command's own options are in its signature: the argument names it, its annotation the type and the
choices, its default the default, and the section ``Parameters`` of the docstring the help.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from offnominal.checks import meant
from offnominal.cli.completion import COMPLETIONS
from offnominal.cli.mistakes import in_words, no_command
from offnominal.cli.option import MethodOptions, Option, described
from offnominal.cli.panels import ADVANCED, in_order
from offnominal.errors import OffnominalError, OptionError

__all__ = ["Group", "add_command", "named", "parameters_of"]

# What Typer raises for a command line that it cannot read.
UsageError: Any = typer.BadParameter.__mro__[1]


class Group(TyperGroup):
    """Commands; what cannot be read is told in a line, with what comes nearest."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words before the command."""
        if ctx.resilient_parsing and not args:
            return []
        if ctx.resilient_parsing and not args[0].startswith("-"):
            # None of them is there, and the Tab key need not wait for their types.
            self.params, self.add_help_option = [], False
        try:
            return super().parse_args(ctx, list(args))
        except UsageError as error:
            if not args:
                raise  # the help
            raise OptionError(in_words(error, ctx.info_name or "", args)) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a name; one that there is not is told with the nearest."""
        if args and not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise OptionError(no_command(args[0], self.list_commands(ctx)))
        return super().resolve_command(ctx, args)


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a command for Typer to read, with the help that its docstring gives them.

    A string beside the type says more: ``Annotated[Path, "-o"]`` is ``-o`` or ``--output``,
    ``Annotated[str, "--set NAME=VALUE"]`` shows what it takes, and
    ``Annotated[list[str], "IMAGES..."]`` is no option but an argument.
    """
    texts = described(function.__doc__)
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
    complete: Any = COMPLETIONS.get("trainable" if word == "METHOD" else name)
    if word and not word.startswith("-"):
        return typer.Argument(metavar=word, help=text, show_default=False, autocompletion=complete)
    flag, _, metavar = word.partition(" ")
    flags = [flag] if flag else []
    if not flag.startswith("--"):
        long = f"--{name.replace('_', '-')}"
        flags.append(f"{long}/--no-{long[2:]}" if switch else long)
    return typer.Option(*flags, metavar=metavar or None, help=text, autocompletion=complete)


def add_command(
    app: typer.Typer,
    function: Callable[..., Any],
    more: Sequence[inspect.Parameter] = (),
    find: Callable[[list[str]], MethodOptions] | None = None,
    many: bool = False,
    grouped: bool = False,
) -> None:
    """Add a command, some of whose options may depend on the command line, as on ``--method``.

    ``more`` is what the function's ``**`` argument takes. ``find``, given the words of the command
    line, says which further options there are; they arrive in the argument ``given`` by name, None
    where nothing was given. Where the function has an argument of that name itself, the option is
    ``--method-NAME``.

    With ``many``, ``--shots 1 2 4`` is read as ``--shots 1 --shots 2 --shots 4``, and what is found
    takes several values: for commands without arguments of their own, where a word after an option
    can be nothing but its value.

    With ``grouped`` the help has its options under headings, the usual ones first.
    """
    fixed = _spelled_out(function, more)
    look = find or (lambda args: (function.__name__, []))

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            try:
                owner, options = look(args)
            except OffnominalError:
                if not ctx.resilient_parsing:  # the Tab key asks no questions
                    raise
                owner, options = function.__name__, []
            one = typer.Typer(add_completion=False)
            one.command()(_spelled_out(function, more, options, many))
            built = typer.main.get_command(one)
            self.params, self.callback = built.params, built.callback
            if grouped:
                self.params = in_order(self.params)
            if many:
                args = _spread(args, self.params)
            if (
                ctx.resilient_parsing
            ):  # words as they are: to convert them takes longer than all else
                values, _, _ = self.make_parser(ctx).parse_args(args=list(args))
                ctx.params |= {each.name: values.get(each.name) for each in self.params}
                return []
            _refuse_unknown(args, self.get_params(ctx), owner)
            try:
                return super().parse_args(ctx, list(args))
            except UsageError as error:
                raise OptionError(in_words(error, ctx.info_name or "", args)) from error

        def get_help_option(self, ctx: Any) -> Any:
            option: Any = super().get_help_option(ctx)
            if grouped:
                option.rich_help_panel = ADVANCED
            return option

        def format_help(self, ctx: Any, formatter: Any) -> None:
            if grouped:  # room for the words: of a switch, the way that is not the default anyway
                for each in self.params:
                    if each.secondary_opts:
                        on = each.default or getattr(each, "show_default", None) == "yes"
                        each.opts, each.secondary_opts = (
                            (each.secondary_opts, []) if on else (each.opts, [])
                        )
            super().format_help(ctx, formatter)

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
            raise OptionError(
                f"{flag}: {owner} has no such option; {meant(flag, sorted(known))}"
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
