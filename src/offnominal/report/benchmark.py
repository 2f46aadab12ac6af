"""The report of a benchmark: one HTML page, and its tables as CSV and LaTeX."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

from offnominal.atomic import writing
from offnominal.benchmark.store import FinishedCell, Plan, read_runs, require
from offnominal.errors import OptionError
from offnominal.report import sections
from offnominal.report.conditions import conditions
from offnominal.report.gallery import choose, foremost, make_cards
from offnominal.report.labels import foremost_counts
from offnominal.report.page import write
from offnominal.report.results import gather
from offnominal.report.sentences import headline, warning
from offnominal.report.speed import speed
from offnominal.report.tables import latex, present, write_cells, write_results
from offnominal.report.words import METRICS, join

__all__ = ["write_report"]

Progress = Callable[[str, int], None]

FILES = ("report.html", "cells.csv", "results.csv", "results.tex")
"""What a report is made of, the page first."""
_FOOTER = b"Written by Offnominal"  # stands in every page

_MOST_CURVES = 120  # cells whose curves are drawn, so that the page stays one that opens


def write_report(
    runs: Path,
    output: Path | None = None,
    data: Path | None = None,
    title: str | None = None,
    gallery: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Write ``report.html``, ``cells.csv``, ``results.csv`` and ``results.tex``.

    Parameters
    ----------
    runs : Path
        Folder that ``offnominal benchmark`` wrote.
    output : Path or None
        Folder for the files; ``RUNS/report`` if None. Files of an earlier report are replaced.
    data : Path or None
        Root of the data set, if it has moved since.
    title : str or None
        Heading of the page; it names the data sets if None.
    gallery : bool
        Whether to show images.
    progress : callable or None
        Called with the stage and how many of its steps are done.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DatasetError
        If there is no finished cell, or one is damaged.
    OptionError
        If a package is missing, `data` is no folder, or the files cannot be written.
    """
    for package in ("pyarrow", "matplotlib", "pandas"):
        require(package, "offnominal report")
    if data is not None and not data.is_dir():
        raise OptionError(f"--data {data}: no such folder; name the data set's root")
    cells, plans = read_runs(runs)
    output = output or runs / "report"
    _check_room(output)
    setups = gather(cells)
    names = list(dict.fromkeys(setup.dataset for setup in setups))
    sources: list[str] = []
    told = [plan for plan in _told(plans, cells) if plan.cells]
    parts = [sections.plan_section(plan, setups, sources) for plan in told]
    shown = sections.shown_cells(setups)
    pictured = sections.best_cells(shown)
    if sum(map(len, shown.values())) > _MOST_CURVES:
        shown = {"best of each category": pictured[:_MOST_CURVES]}
    curves = []
    for done, (group, mine) in enumerate(shown.items(), 1):
        curves.append(sections.curve_block(group, mine))
        if progress:
            progress("curves", done)
    # Few categories leave room for more images of each.
    each, typical = max(4, 60 // len(pictured)), max(2, min(8, 30 // len(pictured)))
    choices = [choice for cell in pictured for choice in choose(cell, min(each, 24), typical)]
    kept = foremost(choices)
    cards, gone = make_cards(kept, data, progress) if gallery else ([], [])
    told_of = {
        "warning": warning(setups),
        "plans": parts,
        "key": [METRICS[metric][:2] for metric in present(setups)],
        "curves": curves,
        "speed": speed(foremost_counts(setups)),
        "gallery": gallery,
        "pictured": sections.which(pictured),
        "cards": cards,
        "gone": gone,
        "left_out": len(choices) - len(kept),
        "conditions": conditions(cells, setups),
        "sources": sources,
    }
    tables = [t for part in parts for p in part["parts"] for t in (p["table"], *p["categories"])]
    with ExitStack() as stack:  # all of them appear, or none
        page, *others = (stack.enter_context(writing(output / name)) for name in FILES)
        title = title or f"Benchmark on {join(names)}"
        write(page, "benchmark.html.j2", title, headline(setups), **told_of)
        try:
            write_cells(others[0], cells)
            write_results(others[1], setups)
            others[2].write_bytes(latex(tables, sources).encode())
        except OSError as error:
            raise OptionError(f"-o {output}: cannot be written ({error.strerror})") from error
    return output / FILES[0]


def _check_room(output: Path) -> None:
    """Make the folder, or refuse one with files of these names that no report wrote."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with (output / FILES[0]).open("rb") if (output / FILES[0]).is_file() else BytesIO() as old:
            ours = _FOOTER in old.read()
    except OSError as error:
        raise OptionError(f"-o {output}: cannot be made ({error.strerror})") from error
    there = [output / name for name in FILES if os.path.lexists(output / name)]
    if there and not ours:
        raise OptionError(
            f"-o {output}: {there[0].name} in it is not from an earlier report, and would be "
            "replaced; name another folder"
        )
    if not os.access(output, os.W_OK):
        raise OptionError(f"-o {output}: nothing can be written there; name another folder")


def _told(plans: Sequence[Plan], cells: Sequence[FinishedCell]) -> list[Plan]:
    """The plans, and one more for the cells that none of them names."""
    named = {name for plan in plans for name in plan.cells}
    rest = tuple(cell.name for cell in cells if cell.name not in named)
    extra = [Plan("other", "Other results" if plans else "Results", (), rest)] if rest else []
    return [*plans, *extra]
