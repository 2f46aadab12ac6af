"""``offnominal demo``: the whole path on parts that it draws itself."""

from pathlib import Path
from typing import Annotated

import typer

from offnominal.cli.stop import telling
from offnominal.cli.terminal import console, progress_bar, say, table
from offnominal.text import printable


def demo(
    output: Annotated[Path, "-o"] = Path("demo-report"),
    backbone: str | None = None,
    weights: str | None = None,
    seed: int = 0,
) -> None:
    """Draw synthetic parts, run the whole path on them, and write a page to look at.

    Without --backbone or --weights it uses the network that was installed with it.

    Parameters
    ----------
    output : path
        Folder for the parts and the page.
    backbone : str or None
        See `offnominal backbones`.
    weights : str or None
        Local weights of the backbone.
    seed : int
        Seed of the parts.
    """
    told = f"no page was written; {output} has what was there before, and what is done so far"
    with telling(lambda: told):
        from offnominal.demo import run_demo
        from offnominal.report.words import heading

        say("drawing parts of two looks, with defects")
        with progress_bar(None) as advance:
            result = run_demo(output, backbone, weights, seed, progress=advance)
    rows = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
            for row in result.figures]  # fmt: skip
    heads = [heading(name) for name in result.figures[0]]
    console(120).print(table(heads, rows, heads[1:]))
    typer.echo(f"\nOpen {printable(result.page.absolute())}")
