"""``offnominal predict``: scores, maps and decisions for new images."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offnominal.cli import options
from offnominal.cli.terminal import (
    ANOMALIES,
    UNREADABLE,
    Unreadable,
    progress_bar,
    say,
    warn_untrained,
)
from offnominal.detectors import METHODS
from offnominal.errors import ImageError, OptionError

if TYPE_CHECKING:
    from offnominal.cli.writer import ResultWriter
    from offnominal.detectors.base import Detector
    from offnominal.detectors.prediction import Prediction

_BATCHED = "anomalydino-batched"


def predict(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL IMAGES...",
            help="A model file, then files, folders (searched through) or globs; - reads names "
            "from stdin. With --zero-shot-batch, neither.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for results; - writes JSON lines to stdout, as does a pipe.",
            show_default="a table",
        ),
    ] = None,
    save: Annotated[
        str, typer.Option(help="What to write: some of overlay,map,mask,json,csv.")
    ] = "overlay,json,csv",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run into this folder stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start afresh over earlier results.")
    ] = False,
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help="Exit with 1 if an image is anomalous.")
    ] = False,
    zero_shot_batch: Annotated[
        list[str] | None,
        typer.Option(
            "--zero-shot-batch",
            metavar="DIR",
            help="No model: score every image of a folder against all the others.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="With --zero-shot-batch: a method that scores a batch.", show_default=_BATCHED
        ),
    ] = None,
    sets: options.Sets = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    layers: options.Layers = None,
    resolution: options.Resolution = None,
    resize: options.Resize = None,
    mask: options.Mask = None,
    aggregate: options.Aggregate = None,
    sixteen_bit: options.SixteenBit = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    strict: options.Strict = False,
) -> None:
    """Score images and say where they are anomalous and whether to reject them.

    The options from --method to --precision, but for --weights and --device, belong to
    --zero-shot-batch: a model file brings its own.
    """
    from offnominal.paths import find_images

    of_batch = {
        "method": method,
        "set": sets,
        "backbone": backbone,
        "layers": layers,
        "resolution": resolution,
        "resize": resize,
        "mask": mask,
        "aggregate": aggregate,
        "sixteen_bit": sixteen_bit,
        "precision": precision,
    }
    if zero_shot_batch:
        if arguments:
            raise OptionError("--zero-shot-batch takes a folder, and no model or further images")
        chosen = method or _BATCHED
        given = of_batch | {"weights": weights, "device": device}
        del given["method"], given["set"]
        detector = options.build_detector(chosen, given, sets)
        if not METHODS[chosen].batched:
            raise OptionError(
                f"--method {chosen}: does not score a batch; fit it with `offnominal fit`"
            )
        files = find_images(zero_shot_batch)
        # Every score of a batch depends on all of its images.
        run: dict[str, Any] = {"method": chosen, "images": [str(file) for file in files]}
        run["options"] = json.loads(json.dumps(detector.options()))
    else:
        if not arguments or len(arguments) < 2:
            raise OptionError("give a model file and at least one image, folder or glob")
        for name, value in of_batch.items():
            if value is not None:
                raise OptionError(
                    f"--{name.replace('_', '-')} is settled in the model file; it goes with "
                    "--zero-shot-batch only"
                )
        from offnominal.detectors.saving import load

        detector = load(Path(arguments[0]), weights, device)
        names = sys.stdin.read().splitlines() if arguments[1:] == ["-"] else arguments[1:]
        files = find_images(names)
        run = {"model": _fingerprint(Path(arguments[0]))}
    _run(detector, files, run, output, save, resume, overwrite, fail_on_anomaly, strict)


def _run(
    detector: "Detector",
    files: list[Path],
    run: dict[str, Any],
    output: str | None,
    save: str,
    resume: bool,
    overwrite: bool,
    fail_on_anomaly: bool,
    strict: bool,
) -> None:
    from offnominal.cli.writer import ResultWriter, parse_save

    if output in (None, "-") and (resume or overwrite):
        raise OptionError("--resume and --overwrite need a folder: -o DIR")
    warn_untrained(detector)
    unreadable = Unreadable(strict)
    anomalous = undecided = count = 0
    with ExitStack() as stack:
        writer: ResultWriter | None = None
        todo = files
        on_error: Callable[[ImageError], None] = unreadable
        if output is not None and output != "-":
            folder = Path(output)
            kinds = parse_save(save)
            if "mask" in kinds and detector.pixel_threshold is None:
                raise OptionError(
                    "--save mask needs a threshold, and there is none; calibrate a model, or leave "
                    "mask out"
                )
            writer = ResultWriter(folder, kinds, files, run, resume, overwrite)
            stack.enter_context(writer)
            if not METHODS[detector.method].batched:  # a batch is scored as a whole
                todo = [file for file in files if str(file) not in writer.done]
            on_error = _both(unreadable, writer)
        advance = stack.enter_context(progress_bar(len(todo)))
        before = len(files) - len(todo)

        def progress(stage: str, done: int) -> None:
            advance(stage, done + len(unreadable.errors))

        for prediction in detector.stream(todo, on_error, progress):
            count += 1
            if writer is None:
                _print(prediction, as_json=output == "-" or not sys.stdout.isatty())
            elif prediction.source not in writer.done:
                writer.write(Path(prediction.source), prediction)
            anomalous += prediction.is_anomalous is True
            undecided += prediction.is_anomalous is None
        if writer is not None:
            anomalous = writer.anomalous
    _summary(count, before, anomalous, undecided, output)
    unreadable.report()
    if unreadable.errors:
        raise typer.Exit(UNREADABLE)
    if fail_on_anomaly and anomalous:
        raise typer.Exit(ANOMALIES)


def _summary(count: int, before: int, anomalous: int, undecided: int, output: str | None) -> None:
    parts = [f"{count} image{'s' if count != 1 else ''}"]
    if before:
        parts.append(f"{before} done before")
    parts.append(
        f"{undecided} without a decision (no threshold)" if undecided else f"{anomalous} anomalous"
    )
    where = f"; results in {output}" if output not in (None, "-") else ""
    say(", ".join(parts) + where)


def _print(prediction: "Prediction", as_json: bool) -> None:
    from offnominal.cli.writer import json_line

    if as_json:
        print(json_line(prediction.as_row()), flush=True)
        return
    verdict = {True: "REJECT", False: "ok", None: "-"}[prediction.is_anomalous]
    print(f"{verdict:<7}{prediction.score:<10.4g}{prediction.source}", flush=True)


def _both(unreadable: Unreadable, writer: "ResultWriter") -> Callable[[ImageError], None]:
    def note(error: ImageError) -> None:
        writer.write_error(error)
        unreadable(error)

    return note


def _fingerprint(path: Path) -> str:
    """Tells model files apart, thresholds included."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
