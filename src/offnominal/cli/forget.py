"""``offnominal forget``: a model gives up what it learned from an image."""

from typing import Annotated

import typer

from offnominal.cli import options
from offnominal.cli.change import Model, Output, When, parse_when, report_change
from offnominal.cli.terminal import progress_bar


def forget(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="References: names as `offnominal history` lists them or the ends of them, "
            "digests, or the image files themselves.",
        ),
    ],
    output: Output = None,
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Drop it from the file as well: no undo, a smaller file."),
    ] = False,
    when: When = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
) -> None:
    """Give up references; `offnominal undo` brings them back."""
    from offnominal.detectors.saving import load

    time = parse_when(when)
    detector = load(model, weights, device)
    with progress_bar(None) as advance:
        change = detector.forget(images, time, advance)
    if compact:
        detector.compact()
    detector.save(output or model)
    report_change(change, detector, output or model)
