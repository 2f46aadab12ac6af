"""What the commands share: exit codes, messages, progress, and the list of unreadable images."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import typer

from offnominal.errors import ImageError, OptionError
from offnominal.progress import UNITS, bar
from offnominal.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from offnominal.detectors.base import Detector

_LISTED = 100  # of images that could not be used
_SECONDS = 10.0  # between two lines of progress where there is no terminal

ANOMALIES, USAGE, UNREADABLE, INTERNAL = 1, 2, 3, 70


def say(text: str = "") -> None:
    """Print a line for a person: on stderr, so that stdout carries results only.

    Whatever names are in it, it stays one line and steers no terminal.
    """
    print(printable(text), file=sys.stderr, flush=True)


def tell(*facts: tuple[str, str | None], out: Callable[[str], None] = say) -> None:
    """Print titles and what there is to say under each; a title without words is left out."""
    for title, words in facts:
        if words:
            out(printable(f"  {title:<11}{words}"))


def print_error(text: str) -> None:
    """Print an error for a person."""
    prefix = "\033[31merror:\033[0m" if sys.stderr.isatty() else "error:"
    print(prefix, printable(text), file=sys.stderr, flush=True)


def count(number: int, thing: str, none: str = "no") -> str:
    """Such as ``3 images``, ``1 image`` or ``no images``."""
    return f"{number or none} {thing}{'s' if number != 1 else ''}"


def warn_untrained(detector: "Detector") -> None:
    """Say so where a detector's weights are not pretrained, so that nobody trusts its scores."""
    from offnominal.detectors.networks import untrained

    if reason := untrained(detector):
        say(f"weights not pretrained ({reason}): scores say nothing about {detector.method}")


def console(width: int) -> "Console":
    """For tables on stdout; a pipe has no width, they keep their own there."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else width)


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()
) -> "Table":
    """A plain table; the columns of ``numbers`` are set to the right."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(printable(one)) for one in row))
    return made


class Unreadable:
    """Collects images that could not be used, so that the rest goes on; strict: stop at once.

    Around a command's work it lists them when that is over, in whatever way: where none could be
    used, the reasons are all there is to tell.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.errors: list[ImageError] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.finish()
        elif not isinstance(error, typer.Exit):
            self.list()

    def __call__(self, error: ImageError) -> None:
        """Note an error, or raise it."""
        if self.strict:
            raise error
        self.errors.append(error)

    def finish(self) -> None:
        """If there are any, list them and end the command with its exit code."""
        if self.errors:
            self.list()
            raise typer.Exit(UNREADABLE)

    def list(self) -> None:
        """Say which images could not be used, and why."""
        if self.errors:
            say(f"{count(len(self.errors), 'image')} could not be used:")
        for error in self.errors[:_LISTED]:
            say(f"  {error}")
        if len(self.errors) > _LISTED:
            say(f"  and {len(self.errors) - _LISTED} more")


# Tells a progress bar how far a stage has come.
Advance = Callable[[str, int], None]


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on a terminal what takes its time before there is any progress to show."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _lines_of_progress(total: int | None) -> Advance:
    """A line now and then: a log shows that something goes on, and how far it is."""
    began = last = time.monotonic()

    def advance(stage: str, done: int) -> None:
        nonlocal last
        if stage == "training":  # which says more itself, with the loss
            return
        if (now := time.monotonic()) - last >= _SECONDS:
            last = now
            unit = UNITS.get(stage, "images")
            of = f" of {total}" if total and unit == "images" else ""
            unit = unit.removesuffix("s") if done == 1 and not of else unit
            say(f"{stage}: {done}{of} {unit} after {now - began:.0f} s")

    return advance


@contextmanager
def progress_bar(total: int | None) -> Iterator[Advance]:
    """A bar on stderr with rate and time left, of ``total`` images; nothing without a terminal."""
    if not sys.stderr.isatty():
        yield _lines_of_progress(total)
        return
    with bar(total) as advance:
        yield advance


def names_from_stdin() -> list[str]:
    """One name a line; names may hold whatever file systems allow but a line feed."""
    lines = sys.stdin.buffer.read().split(b"\n")
    names = [name for line in lines if (name := os.fsdecode(line.removesuffix(b"\r")))]
    if not names:
        raise OptionError("-: no names of images came on stdin, one a line")
    return names
