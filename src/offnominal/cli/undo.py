"""``offnominal undo``: a model goes back a step."""

from offnominal.cli import options
from offnominal.cli.change import Model, Output, report_change
from offnominal.cli.terminal import progress_bar


def undo(
    model: Model,
    output: Output = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
) -> None:
    """Go back to before the last add, forget or merge, exactly."""
    from offnominal.detectors.saving import load

    detector = load(model, weights, device)
    with progress_bar(None) as advance:
        change = detector.undo(advance)
    detector.save(output or model)
    report_change(change, detector, output or model)
