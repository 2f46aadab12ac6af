"""``offnominal add``, ``forget``, ``undo``, ``history``: a model changes by single references."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offnominal.cli import options
from offnominal.cli.info import describe_decisions, describe_known, describe_threshold
from offnominal.cli.labels import read_labels
from offnominal.cli.terminal import Unreadable, count, progress_bar, say, tell
from offnominal.errors import ModelFileError, OptionError
from offnominal.text import digits, printable

if TYPE_CHECKING:
    from offnominal.detectors.references import Change, References, Version

_DONE = {"add": "learned", "forget": "forgot", "undo": "took back a step with"}
_SCORED = {
    "affected": "the other references' scores were brought up to date, exactly",
    "all": "every reference was scored anew",
    "kept": "the other references keep their scores, which are approximate",
}


def add(
    model: options.Model,
    images: Annotated[list[str] | None, "IMAGES..."] = None,
    defects: list[str] | None = None,
    masks: Path | None = None,
    boxes: list[Path] | None = None,
    classes: Literal["by-folder"] | None = None,
    references: list[str] | None = None,
    output: options.Output = None,
    when: options.When = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    strict: options.Strict = False,
) -> None:
    """Learn from more good images, without the earlier ones, or know some defects.

    Parameters
    ----------
    images : list of str or None
        Good images, such as false alarms: files, folders, globs, or the opinions.json that a
        results page saves, of which those noted as good are taken.
    defects : list of str or None
        Folders, files or globs of defective images that the model is to know, instead of those
        that it knows; repeatable.
    masks : path or None
        Folder of their masks, named as the images; some may lack one.
    boxes : list of path or None
        Annotations of them, as `offnominal fit` takes them; repeatable.
    classes : str or None
        by-folder: the folder that a defective image lies in names its class.
    references : list of str or None
        With --defects: where the good images are now, if not where they were; repeatable.
    """
    from offnominal.opinions import sort_out
    from offnominal.paths import PassedOver, find_images

    options.check_given(model, images or [], "add", weights, device, engine)
    time, passed = options.read_when(when), PassedOver()
    options.check_model(output or model)
    if not (images or defects):
        read_labels([], masks, boxes or [], classes)  # each of them asks for --defects
    if bool(images) == bool(defects):
        raise OptionError("add: give good images, or defective ones with --defects; not both")
    if known := read_labels(defects or [], masks, boxes or [], classes):
        again = find_images(references, passed) if references else []
        with options.changing(output or model), Unreadable(strict) as unreadable:
            detector = options.open_model(model, weights, device, engine=engine)
            with progress_bar(len(known)) as advance:
                found = detector.learn_defects(known, again, unreadable, advance)
            detector.save(output or model)
            say(f"{output or model}: knows {count(len(found.defects), 'defective image')}")
            tell(*describe_known(detector.header()), *describe_decisions(detector))
            tell(("", str(passed)))
        return
    told = sort_out(images or [])
    if not told.good:
        raise OptionError(f"{', '.join(images or [])}: no image is noted as good, to be added")
    files = find_images(told.good, passed)
    with options.changing(output or model), Unreadable(strict) as unreadable:
        detector = _load("add", model, weights, device, engine)
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
    options.check_given(model, images, "forget", weights, device)
    options.check_model(output or model)
    time = options.read_when(when)
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
    """Go back to before the last add, forget or calibrate, exactly."""
    options.check_given(model, (), "undo", weights, device)
    options.check_model(output or model)
    with options.changing(output or model):
        detector = _load("undo", model, weights, device)
        with progress_bar(None) as advance:
            change = detector.undo(advance)
        _keep(change, detector, model, output)


def history(model: options.Model, as_json: options.Json = False) -> None:
    """List the steps of a model, the first one first, and the images of each."""
    options.check_given(model, (), "history")
    from offnominal.modelfile import read_header

    references = _known(model, read_header(model))
    steps = references.history()
    if as_json:
        known = [{"file": references[n].file, "digest": references[n].digest}
                 for n in references.active]  # fmt: skip
        told = {"history": [asdict(step) for step in steps], "references": known}
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(f"{'step':>4}  {'what':<11}{'references':>10}{'patches':>12}  {'when':<22}images")
    for step in steps:
        typer.echo(
            f"{step.number:>4}  {step.what:<11}{step.references:>10}{step.rows:>12,}  "
            f"{step.when or '-':<22}{printable(_told(step))}"
        )


def _known(model: Path, header: dict[str, Any]) -> "References":
    """The references that a model file has, and its steps."""
    from offnominal.detectors.references import References

    try:
        return References.from_plain(header.get("references"))
    except ValueError as error:
        raise ModelFileError(f"{model}: its history is damaged; fit it anew") from error


def _load(step: str, model: Path, weights: str | None, device: str, engine: str = "auto") -> Any:
    """The detector of a model file, if its method can take a step without another fit."""
    from offnominal.detectors.registry import METHODS
    from offnominal.modelfile import read_header

    able = {"all": ("add", "forget", "undo"), "adds": ("add",), "no": ()}
    header = read_header(model)
    method = header["method"]
    last = [one.what for one in _known(model, header).steps[-1:]]
    if step == "undo" and last == ["calibrate"]:  # which every method can take back
        return options.open_model(model, weights, device, engine=engine)
    if method in METHODS and step not in able[METHODS[method].grows]:
        others = ", ".join(name for name, known in METHODS.items() if step in able[known.grows])
        raise OptionError(
            f"{method} cannot {step}: it does not keep what it learned image by image. Fit it anew "
            f"with the images that it should know, or choose another method ({others})"
        )
    return options.open_model(model, weights, device, engine=engine)


def _keep(change: "Change", detector: Any, model: Path, output: Path | None) -> None:
    """Save what a step changed, and say what that is."""
    calibration = change.what == "undo" and not change.images
    if change.images or output or calibration:
        detector.save(output or model)
    many = "calibrate" if calibration else count(len(change.images), "image", "0")
    done = "took back" if calibration else _DONE[change.what]
    say(f"{output or model}: {done} {many}")
    before, after = (digits(each.value) if each else "none" for each in change.threshold)
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


def _told(step: "Version") -> str:
    """The images of a step, or what a calibration came to."""
    if step.what != "calibrate":
        return _first(step.images)
    value = "none" if step.threshold is None else digits(step.threshold)
    by = f"by {count(step.good, 'good image')}" if step.good else "SET BY HAND"
    return f"threshold {value}, {by}"


def _from_to(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _first(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
