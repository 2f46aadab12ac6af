"""What a detector's training leaves beside its model: losses and curves, or its state."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from offnominal.cli.stop import telling
from offnominal.cli.terminal import say

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector
    from offnominal.detectors.trained import TrainedDetector

__all__ = ["going_on", "leave_curves"]


@contextmanager
def going_on(output: Path, detector: "Detector") -> Iterator[None]:
    """Say, where a training is broken off, that the same command goes on."""
    if not any(kind.__name__ == "TrainedDetector" for kind in type(detector).__mro__):
        yield  # asked by name: importing it would import torch
        return
    state = output.with_suffix(".state.safetensors")
    with telling(lambda: f"the same command goes on from {state}" if state.exists() else ""):
        yield


def leave_curves(detector: "TrainedDetector", output: Path) -> None:
    """Write losses and their page; the model is whole, so the state is not needed any more."""
    from offnominal.atomic import write_atomically
    from offnominal.detectors.networks import untrained
    from offnominal.report.training import intervals, write_training_page
    from offnominal.training.checkpoint import Files, mean_losses

    files, rows = Files(output), detector.losses
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    write_atomically(files.losses, lines.encode())
    files.state.unlink(missing_ok=True)
    say(f"losses: {files.losses}")
    if find_spec("matplotlib") is None:
        say("no curves: they need matplotlib: pip install matplotlib")
        return
    grouped = intervals(rows)
    parts = [part for part in rows[0] if part not in ("epoch", "step", "total")]
    write_training_page(
        files.page,
        f"Training of {detector.method} on {len(detector.references)} good images",
        [list(row.values()) for row in grouped],
        mean_losses(grouped),
        {k: v for k, v in detector.options().items() if v not in ({}, None)}
        | {"steps": detector.steps_, "held_back": len(detector.held_back_)},
        parts,
        "",
        untrained(detector) or "",
        steps=len(rows),
    )
    say(f"curves: {files.page}")
