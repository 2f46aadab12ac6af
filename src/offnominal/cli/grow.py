"""``offnominal add``, ``forget``, ``undo``, ``history``: a model changes by single references."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offnominal.cli import options
from offnominal.cli.info import describe_threshold
from offnominal.cli.terminal import Unreadable, count, progress_bar, say
from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector
    from offnominal.detectors.growing import Change

__all__ = ["add", "forget", "history", "undo"]

# Methods that keep the patches of their references one by one.
_GROWING = ("anomalydino", "multilayer-nn", "patchcore", "softpatch", "subspacead")

_When = Annotated[
    str | None,
    typer.Option(
        "--when",
        help="Time to note in the history: now, or as 2026-03-01T09:30.",
        show_default="none, so that the same steps give the same file",
    ),
]
_DONE = {"add": "learned", "forget": "forgot", "undo": "took back a step with"}
_SCORED = {
    "affected": "the other references' scores were brought up to date, exactly",
    "all": "every reference was scored anew",
    "kept": "the other references keep their scores, which can be too high but not too low",
}


def add(
    model: options.Model,
    images: Annotated[list[str], "IMAGES..."],
    output: options.Output = None,
    when: _When = None,
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
    from offnominal.paths import find_images

    time = _time(when)
    files = find_images(images)
    detector = _load(model, weights, device, "learn from single further images")
    unreadable = Unreadable(strict)
    with progress_bar(None) as advance:
        change = detector.add(files, unreadable, advance, time)
    if change.images or output:
        detector.save(output or model)
    _report(change, detector, output or model)
    unreadable.finish()


def forget(
    model: options.Model,
    images: Annotated[list[str], "IMAGE..."],
    output: options.Output = None,
    compact: bool = False,
    when: _When = None,
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
    time = _time(when)
    detector = _load(model, weights, device, "forget single images")
    with progress_bar(None) as advance:
        change = detector.forget(images, time, advance)
    if compact:
        detector.compact()
    detector.save(output or model)
    _report(change, detector, output or model)


def undo(
    model: options.Model,
    output: options.Output = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
) -> None:
    """Go back to before the last add or forget, exactly."""
    detector = _load(model, weights, device, "go back a step")
    with progress_bar(None) as advance:
        change = detector.undo(advance)
    detector.save(output or model)
    _report(change, detector, output or model)


def history(
    model: options.Model, as_json: options.Json = False, weights: options.Weights = None
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
        typer.echo(
            f"{version.number:>4}  {version.what:<8}{version.references:>10}{version.rows:>12,}  "
            f"{version.when or '-':<22}{_first(version.images)}"
        )


def _load(model: Path, weights: str | None, device: str, wish: str) -> "Detector":
    """A model of a method that can change by single references."""
    from offnominal.detectors import METHODS
    from offnominal.detectors.saving import load

    detector = load(model, weights, device)
    able = [n for n in METHODS if getattr(METHODS[n], "grows", n in _GROWING)]
    if detector.method not in able:
        raise OptionError(
            f"{detector.method} cannot {wish}, since it does not keep the patches of its "
            "references one by one: fit it anew, with the images that it should know, or choose "
            f"another method ({', '.join(able)})"
        )
    return detector


def _time(text: str | None) -> datetime | None:
    """The time that ``--when`` names."""
    if text is None:
        return None
    if text == "now":
        return datetime.now(UTC)
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise OptionError(f"--when {text}: give now, or a time as 2026-03-01T09:30") from error


def _report(change: "Change", detector: "Detector", output: Path) -> None:
    """Say what a step changed."""
    say(f"{output}: {_DONE[change.what]} {count(len(change.images), 'image', '0')}")
    for name in change.images[:5]:
        say(f"             {name}")
    if len(change.images) > 5:
        say(f"             and {len(change.images) - 5} more")
    if change.known:
        say(f"  left out   {len(change.known)} that it knows already: {_first(change.known)}")
    say(f"  references {_from_to(*map(str, change.references))}")
    if any(change.rows):
        say(f"  bank       {_from_to(*(f'{rows:,}' for rows in change.rows))} patches")
    say(f"  threshold  {describe_threshold(detector)}")
    before, after = (f"{each.value:.4g}" if each else "none" for each in change.threshold)
    moved = f"before: {before}" if before != after else ""
    for told in (moved, _SCORED.get(change.rescored), detector.calibration_note):
        if told:
            say(f"             {told}")


def _from_to(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
