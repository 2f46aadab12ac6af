"""How far a fit or a prediction is, shown where somebody looks: in a terminal or in a notebook."""

import html
import sys
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

__all__ = ["UNITS", "Progress", "ShowProgress", "bar", "shown"]

Progress = Callable[[str, int], None]
"""Called with a stage and the number of images that it has done."""
ShowProgress = Progress | bool | None
"""The same, or whether to show a bar."""

# Stages that count other things than the images that they are given.
UNITS = {"coreset": "patches", "distributions": "places", "synthetic": "defects",
          "training": "steps"}  # fmt: skip
_OFTEN = 0.1  # seconds between two updates in a notebook


@contextmanager
def shown(progress: ShowProgress, images: object) -> Iterator[Progress | None]:
    """What a stage is told to: the callable itself, or a bar while the block lasts.

    Parameters
    ----------
    progress : callable, bool or None
        True: a bar for each stage, on stderr if that is a terminal, or below a notebook's cell;
        nothing where there is neither.
    images
        Whose number is the total, if it has one.
    """
    if not isinstance(progress, bool):
        yield progress
        return
    total = len(images) if isinstance(images, Sized) else None
    if not progress:
        yield None
    elif _in_notebook():
        notebook = _Notebook(total)
        try:
            yield notebook.advance
        finally:
            notebook.show()
    else:
        with bar(total) as advance:
            yield advance


def _in_notebook() -> bool:
    # Rich draws in notebooks through ipywidgets; a page's own element needs no package.
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


@contextmanager
def bar(total: int | None) -> Iterator[Progress]:
    """A bar for each stage on stderr, with rate and time left; nothing if that is no terminal."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description:<10}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    tasks: dict[str, bars.TaskID] = {}
    with bars.Progress(*columns, console=console, disable=not console.is_terminal) as drawn:
        first = drawn.add_task("starting", total=None, rate="")

        def advance(stage: str, done: int) -> None:
            unit = UNITS.get(stage, "images")
            drawn.update(first, visible=False)
            if stage not in tasks:
                known = total if unit == "images" else None
                tasks[stage] = drawn.add_task(stage, total=known, rate="")
            speed = drawn.tasks[tasks[stage]].speed
            rate = f"{speed:.1f} {unit}/s" if speed else ""
            drawn.update(tasks[stage], completed=done, rate=rate)

        yield advance


class _Notebook:
    """Lines of a table, each a stage with its bar, in one output that is written anew."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._done: dict[str, int] = {}
        self._began: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._drawn = 0.0
        self._handle: Any = None

    def advance(self, stage: str, done: int) -> None:
        """A stage has come so far."""
        now = time.monotonic()
        self._began.setdefault(stage, now)
        self._done[stage], self._last[stage] = done, now
        if now - self._drawn >= _OFTEN:
            self._drawn = now
            self.show()

    def show(self) -> None:
        """Write what is known."""
        if not self._done:
            return
        from IPython.display import HTML, display

        rows = "".join(self._row(stage) for stage in self._done)
        table = f'<table style="text-align:left">{rows}</table>'
        page = HTML(table)
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)

    def _row(self, stage: str) -> str:
        done, unit = self._done[stage], UNITS.get(stage, "images")
        total = self._total if unit == "images" else None
        of = "" if total is None else f" of {total}"
        # Without a total the bar would move for ever, in a saved notebook, too.
        drawn = "" if total is None else f'<progress max="{total}" value="{done}"></progress>'
        took = f"{self._last[stage] - self._began[stage]:.1f} s"
        cells = (html.escape(stage), drawn, f"{done}{of} {unit}", took)
        return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
