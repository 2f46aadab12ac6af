"""``offnominal merge``: one model of several."""

from pathlib import Path
from typing import Annotated

import typer

from offnominal.cli import options
from offnominal.cli.change import When, parse_when, report_change
from offnominal.cli.terminal import progress_bar, say
from offnominal.errors import OptionError


def merge(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL MODEL...", help="Model files fitted with the same options."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file to write.")],
    when: When = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
) -> None:
    """Join what several models have learned; an image that several know counts once."""
    from offnominal.detectors.saving import load

    if len(models) < 2:
        raise OptionError("give two model files or more")
    time = parse_when(when)
    first = load(models[0], weights, device)
    for path in models[1:]:
        other = load(path, weights, device)
        with progress_bar(None) as advance:
            try:
                change = first.merge(other, time, advance)
            except OptionError as error:
                raise OptionError(f"{models[0]} and {path}: {error}") from error
        say(f"from {path}")
        report_change(change, first, output)
    first.save(output)
