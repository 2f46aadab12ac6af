"""``offnominal report``: one page, and tables, of a benchmark's results."""

from pathlib import Path
from typing import Annotated

import typer

from offnominal.cli.terminal import progress_bar, say
from offnominal.text import printable


def report(
    runs: Annotated[Path, "RUNS"],
    output: Annotated[Path | None, "-o"] = None,
    data: Path | None = None,
    title: str | None = None,
    no_gallery: bool = False,
) -> None:
    """Write one self-contained page of results, and its tables as CSV and LaTeX.

    The page works offline, opens from disk and prints.

    Parameters
    ----------
    runs : path
        Folder that `offnominal benchmark` wrote.
    output : path or None
        Folder for the page and the tables; else RUNS/report.
    data : path or None
        The data set's root, if it has moved since.
    title : str or None
        Heading of the page; else it names the data sets.
    no_gallery : bool
        Leave the images out: a small page.
    """
    from offnominal.report.benchmark import write_report

    with progress_bar(None) as advance:
        page = write_report(runs, output, data, title, not no_gallery, advance)
    size = page.stat().st_size / 1e6
    for name in ("cells.csv", "results.csv", "results.tex"):
        say(f"wrote {page.parent / name}")
    say(f"wrote {page} ({size:.1f} MB)")
    typer.echo(f"Open {printable(page.absolute())}")
