"""Options that take several values in a row: ``--shots 1 2 4``."""

from typing import Any

from typer.core import TyperCommand

__all__ = ["ManyValues"]


class ManyValues(TyperCommand):
    """A command whose repeatable options also take their values in a row.

    ``--shots 1 2 4`` is read as ``--shots 1 --shots 2 --shots 4``. It is for commands without
    arguments of their own, where a word after an option can be nothing but its value.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the name of an option before each of its values, then parse as ever."""
        many = {
            name
            for parameter in self.params
            if getattr(parameter, "multiple", False)
            for name in parameter.opts
        }
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-") and not _is_number(word):
                option = word
            elif option in many and spread and spread[-1] != option:
                spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
