"""``offnominal methods``: what there is to choose from."""

import typer

from offnominal.detectors.registry import METHODS


def methods() -> None:
    """List the detection methods."""
    for method in METHODS.values():
        typer.echo(f"{method.name}\n  {method.about}\n  needs: {method.needs}\n  {method.paper}")
