"""``offnominal add``, ``forget``, ``undo``, ``history``: a model changes by single references."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offnominal.cli import options
from offnominal.cli.info import describe_threshold
from offnominal.cli.terminal import Unreadable, count, progress_bar, say, tell
from offnominal.errors import ModelFileError, OptionError
from offnominal.text import printable

if TYPE_CHECKING:
    from offnominal.detectors.references import Change

_DONE = {"add": "learned", "forget": "forgot", "undo": "took back a step with"}
_SCORED = {
    "affected": "the other references' scores were brought up to date, exactly",
    "all": "every reference was scored anew",
    "kept": "the other references keep their scores, which are approximate",
}


def add(
    model: options.Model,
    images: Annotated[list[str], "IMAGES..."],
    output: options.Output = None,
    when: options.When = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    strict: options.Strict = False,
) -> None:
    """Learn from more good images, without the earlier ones; thresholds are set anew.

    Parameters
    ----------
    images : list of str
        Good images, such as false alarms: files, folders, globs.
    """
    from offnominal.paths import PassedOver, find_images

    time, passed = _time(when), PassedOver()
    options.check_model(output or model)
    files = find_images(images, passed)
    with options.changing(output or model), Unreadable(strict) as unreadable:
        detector = _load("add", model, weights, device)
        with progress_bar(len(files)) as advance:
            change = detector.add(files, unreadable, advance, time)
        _keep(change, detector, model, output)
        tell(("", str(passed)))


def forget(
    model: options.Model,
    images: Annotated[list[str], "IMAGE..."],
    output: options.Output = None,
    compact: bool = False,
    when: options.When = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
) -> None:
    """Give up references; `offnominal undo` brings them back.

    Parameters
    ----------
    images : list of str
        References: names as `offnominal history` lists them or the ends of them, digests, or the
        image files themselves.
    compact : bool
        Drop it from the file as well: no undo, a smaller file.
    """
    options.check_model(output or model)
    time = _time(when)
    with options.changing(output or model):
        detector = _load("forget", model, weights, device)
        with progress_bar(None) as advance:
            change = detector.forget(images, time, advance)
        if compact:
            detector.compact()
        _keep(change, detector, model, output)


def undo(
    model: options.Model,
    output: options.Output = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
) -> None:
    """Go back to before the last add or forget, exactly."""
    options.check_model(output or model)
    with options.changing(output or model):
        detector = _load("undo", model, weights, device)
        with progress_bar(None) as advance:
            change = detector.undo(advance)
        _keep(change, detector, model, output)


def history(model: options.Model, as_json: options.Json = False) -> None:
    """List the steps of a model, the first one first, and the images of each."""
    from offnominal.detectors.references import References
    from offnominal.modelfile import read_header

    try:
        references = References.from_plain(read_header(model).get("references"))
    except ValueError as error:
        raise ModelFileError(f"{model}: its history is damaged; fit it anew") from error
    steps = references.history()
    if as_json:
        known = [{"file": references[n].file, "digest": references[n].digest}
                 for n in references.active]  # fmt: skip
        told = {"history": [asdict(step) for step in steps], "references": known}
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(f"{'step':>4}  {'what':<8}{'references':>10}{'patches':>12}  {'when':<22}images")
    for step in steps:
        typer.echo(
            f"{step.number:>4}  {step.what:<8}{step.references:>10}{step.rows:>12,}  "
            f"{step.when or '-':<22}{printable(_first(step.images))}"
        )


def _load(step: str, model: Path, weights: str | None, device: str) -> Any:
    """The detector of a model file, if its method can take a step without another fit."""
    from offnominal.detectors.registry import METHODS
    from offnominal.modelfile import read_header

    able = {"all": ("add", "forget", "undo"), "adds": ("add",), "no": ()}
    method = read_header(model)["method"]
    if method in METHODS and step not in able[METHODS[method].grows]:
        others = ", ".join(name for name, known in METHODS.items() if step in able[known.grows])
        raise OptionError(
            f"{method} cannot {step}: it does not keep what it learned image by image. Fit it anew "
            f"with the images that it should know, or choose another method ({others})"
        )
    return options.open_model(model, weights, device)


def _time(text: str | None) -> datetime | None:
    """The time that ``--when`` names."""
    if text is None:
        return None
    try:
        return datetime.now(UTC) if text == "now" else datetime.fromisoformat(text)
    except ValueError as error:
        raise OptionError(f"--when {text}: give now, or a time as 2026-03-01T09:30") from error


def _keep(change: "Change", detector: Any, model: Path, output: Path | None) -> None:
    """Save what a step changed, and say what that is."""
    if change.images or output:
        detector.save(output or model)
    say(f"{output or model}: {_DONE[change.what]} {count(len(change.images), 'image', '0')}")
    before, after = (f"{each.value:.4g}" if each else "none" for each in change.threshold)
    known = f"{len(change.known)} that it knows already: {_first(change.known)}"
    tell(
        ("", _first(change.images, 5)),
        ("left out", known if change.known else ""),
        ("references", _from_to(*change.references)),
        ("bank", f"{_from_to(*change.rows)} patches" if any(change.rows) else ""),
        ("threshold", describe_threshold(detector)),
        ("", f"before: {before}" if before != after else ""),
        ("", _SCORED.get(change.rescored)),
        ("", detector.calibration_note),
    )


def _from_to(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _first(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
