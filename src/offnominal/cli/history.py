"""``offnominal history``: how a model came to know what it knows."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from offnominal.cli import options
from offnominal.cli.change import Model


def history(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every name.")] = False,
    weights: options.Weights = None,
) -> None:
    """List the steps of a model, the first one first, and the images of each."""
    from offnominal.detectors.saving import load

    detector = load(model, weights, "cpu")
    versions = detector.history()
    if as_json:
        steps = [asdict(version) for version in versions]
        known = [{key: r[key] for key in ("file", "digest")} for r in detector.references_]
        typer.echo(json.dumps({"history": steps, "references": known}, indent=1))
        return
    typer.echo(f"{'step':>4}  {'what':<8}{'references':>10}{'patches':>12}  {'when':<22}images")
    for version in versions:
        count = len(version.images)
        shown = ", ".join(version.images[:3]) + (f" and {count - 3} more" if count > 3 else "")
        typer.echo(
            f"{version.number:>4}  {version.what:<8}{version.references:>10}{version.rows:>12,}  "
            f"{version.when or '-':<22}{shown}"
        )
