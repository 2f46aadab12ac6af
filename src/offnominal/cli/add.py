"""``offnominal add``: a model learns from more good images at once."""

from typing import Annotated

import typer

from offnominal.cli import options
from offnominal.cli.change import Model, Output, When, parse_when, report_change
from offnominal.cli.terminal import UNREADABLE, Unreadable, progress_bar


def add(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...", help="Good images, such as false alarms: files, folders, globs."
        ),
    ],
    output: Output = None,
    when: When = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    strict: options.Strict = False,
) -> None:
    """Learn from more good images, without the earlier ones; thresholds are set anew."""
    from offnominal.detectors.saving import load
    from offnominal.paths import find_images

    time = parse_when(when)
    files = find_images(images)
    detector = load(model, weights, device)
    unreadable = Unreadable(strict)
    with progress_bar(None) as advance:
        change = detector.add(files, unreadable, advance, time)
    if change.images or output:
        detector.save(output or model)
    report_change(change, detector, output or model)
    unreadable.report()
    if unreadable.errors:
        raise typer.Exit(UNREADABLE)
