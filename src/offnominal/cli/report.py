"""``offnominal report``: one page, and tables, of a benchmark's results."""

from pathlib import Path
from typing import Annotated

import typer

from offnominal.cli.terminal import progress_bar, say


def report(
    runs: Annotated[Path, typer.Argument(help="Folder that `offnominal benchmark` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder for the page and the tables.", show_default="RUNS/report"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The data set's root, if it has moved since.", show_default="where it was"
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Heading of the page.", show_default="names the data sets")
    ] = None,
    no_gallery: Annotated[
        bool, typer.Option("--no-gallery", help="Leave the images out: a small page.")
    ] = False,
) -> None:
    """Write one self-contained page of results, and its tables as CSV and LaTeX.

    The page works offline, opens from disk and prints.
    """
    from offnominal.report.benchmark import write_report

    with progress_bar(None) as advance:
        page = write_report(runs, output, data, title, not no_gallery, advance)
    size = page.stat().st_size / 1e6
    for name in ("cells.csv", "results.csv", "results.tex"):
        say(f"wrote {page.parent / name}")
    say(f"wrote {page} ({size:.1f} MB)")
    typer.echo(f"Open {page.absolute()}")
