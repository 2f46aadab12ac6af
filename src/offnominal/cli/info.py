"""``offnominal info``: what a model file holds."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from offnominal.cli import options
from offnominal.cli.terminal import count

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

__all__ = ["describe_bank", "describe_threshold", "info"]


def info(
    model: options.Model, as_json: options.Json = False, weights: options.Weights = None
) -> None:
    """Say what a model is: method, backbone, options, references, bank and threshold."""
    from offnominal.detectors.saving import load, read_header

    detector = load(model, weights, "cpu")
    version = read_header(model)["version"]
    if as_json:
        typer.echo(json.dumps(_facts(detector, version), indent=1))
        return
    typer.echo(f"{model}: {detector.method}, written by Offnominal {version}")
    for title, words in _lines(detector, model):
        typer.echo(f"  {title:<11}{words}")


def describe_bank(detector: "Detector") -> str:
    """How many patches the bank holds, and how, if not in full."""
    storage = getattr(detector, "storage", "fp32")
    return f"{detector.bank_rows:,} patches{'' if storage == 'fp32' else f' as {storage}'}"


def describe_threshold(detector: "Detector") -> str:
    """What the detector's threshold promises, in words."""
    if detector.threshold is not None:
        return str(detector.threshold)
    enough = "3 give an estimate"
    if detector.method == "chat":  # it has no estimates
        needed = math.ceil(1 / detector.false_reject) - 1
        enough = f"{needed} give one; until then the model's own answers decide"
    return (
        f"none: {count(len(detector.good_scores_), 'good image')} to set it by; run `offnominal "
        f"calibrate` with good images that it has not learned from ({enough})"
    )


def _lines(detector: "Detector", model: Path) -> list[tuple[str, str]]:
    network = detector.load_network()
    digest = f", digest {network.digest[:12]}" if network.digest else ""
    lines = [("backbone", f"{network.name}{digest}")]
    defaults = type(detector).option_defaults() | {"backbone": detector.backbone}
    chosen = [
        f"{name}={value}"
        for name, value in detector.options().items()
        if name != "weights" and value != defaults[name]
    ]
    if chosen:
        lines.append(("options", ", ".join(chosen)))
    lines.append(("references", str(len(detector.references_))))
    if detector.bank_rows:
        lines.append(("bank", describe_bank(detector)))
    lines.append(("threshold", describe_threshold(detector)))
    if detector.calibration_note:
        lines.append(("", detector.calibration_note))
    lines.append(("steps", ", ".join(version.what for version in detector.history())))
    lines.append(("size", f"{model.stat().st_size / 1e6:.1f} MB"))
    return lines


def _facts(detector: "Detector", version: str) -> dict[str, Any]:
    network = detector.load_network()
    threshold = detector.threshold
    return {
        "version": version,
        "method": detector.method,
        "backbone": {"name": network.name, "digest": network.digest},
        "options": detector.options(),
        "references": len(detector.references_),
        "patches": detector.bank_rows,
        "calibration": detector.calibration_,
        "threshold": None if threshold is None else asdict(threshold),
        "steps": [step.what for step in detector.history()],
    }
