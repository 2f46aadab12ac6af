"""``offnominal info``: what a model file holds, and how it searches its bank."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offnominal.cli import options
from offnominal.cli.change import Model
from offnominal.cli.info_lines import describe_bank, describe_search, search_facts

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector


def info(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every option.")] = False,
    weights: options.Weights = None,
) -> None:
    """Say what a model is: method, backbone, references, bank, search and threshold."""
    from offnominal.detectors.saving import load, read_header

    detector = load(model, weights, "cpu")
    version = read_header(model)["version"]
    if as_json:
        typer.echo(json.dumps(_facts(detector, version), indent=1))
        return
    typer.echo(f"{model}: {detector.method}, written by Offnominal {version}")
    for title, words in _lines(detector, model):
        typer.echo(f"  {title:<11}{words}")


def _lines(detector: "Detector", model: Path) -> list[tuple[str, str]]:
    from offnominal.cli.fit import describe_threshold

    network = detector.load_network()
    digest = f", digest {network.digest[:12]}" if network.digest else ""
    lines = [("backbone", f"{network.name}{digest}")]
    defaults = type(detector).option_defaults()
    told = ("backbone", "weights")
    chosen = {
        name: value
        for name, value in detector.options().items()
        if name not in told and value != defaults[name]
    }
    if chosen:
        lines.append(("options", ", ".join(f"{name}={value}" for name, value in chosen.items())))
    lines.append(("references", str(len(detector.references_))))
    if detector.bank_rows:
        lines.append(("bank", describe_bank(detector)))
    lines += describe_search(detector)
    lines.append(("threshold", describe_threshold(detector)))
    if detector.calibration_note:
        lines.append(("", detector.calibration_note))
    steps = [version.what for version in detector.history()]
    lines.append(("steps", ", ".join(steps)))
    lines.append(("size", f"{model.stat().st_size / 1e6:.1f} MB"))
    return lines


def _facts(detector: "Detector", version: str) -> dict[str, Any]:
    from dataclasses import asdict

    network = detector.load_network()
    threshold = detector.threshold
    return {
        "version": version,
        "method": detector.method,
        "backbone": {"name": network.name, "digest": network.digest},
        "options": detector.options(),
        "references": len(detector.references_),
        "patches": detector.bank_rows,
        "search": search_facts(detector),
        "calibration": detector.calibration_,
        "threshold": None if threshold is None else asdict(threshold),
        "steps": [step.what for step in detector.history()],
    }
