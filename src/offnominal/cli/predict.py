"""``offnominal predict``: scores, maps and decisions for new images."""

import inspect
import json
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from offnominal.cli import options
from offnominal.cli.command import named
from offnominal.cli.info import not_inspected
from offnominal.cli.option import MethodOptions, Option, method_options
from offnominal.cli.terminal import (
    ANOMALIES,
    Unreadable,
    count,
    names_from_stdin,
    progress_bar,
    say,
    warn_untrained,
)
from offnominal.errors import ImageError, OptionError
from offnominal.paths import PassedOver, find_images, stamp
from offnominal.text import digits, printable

if TYPE_CHECKING:
    from offnominal.cli.writer import Sink
    from offnominal.detectors.base import Detector

_BATCHED = "anomalydino-batched"
_SAVED = "overlay,json,csv,page"


class _Task(NamedTuple):
    """A detector, the images for it, and what the results depend on."""

    detector: "Detector"
    files: list[Path]
    run: dict[str, Any]
    model: Path | None = None

    def standing(self) -> tuple[int, ...] | None:
        """What tells that the model file is written into: its bank is read while images are scored.

        A file that another takes the place of stays as it is for those who have it open.
        """
        if self.model is None or not self.model.is_file():
            return None
        now = self.model.stat()
        return now.st_ino, now.st_size, now.st_mtime_ns


def predict(
    given: dict[str, Any],
    arguments: Annotated[list[str] | None, "MODEL IMAGES..."] = None,
    output: Annotated[str | None, "-o"] = None,
    save: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    fail_on_anomaly: bool = False,
    threshold: float | None = None,
    category: str | None = None,
    zero_shot_batch: Annotated[list[str] | None, "--zero-shot-batch DIR"] = None,
    method: str | None = None,
    sets: options.Sets = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    endpoint: options.Endpoint = None,
    key_variable: options.KeyVariable = None,
    strict: options.Strict = False,
    workers: Annotated[int | None, "--workers N"] = None,
    ray: Annotated[str | None, "--ray auto|ADDRESS"] = None,
) -> None:
    """Score images and say where they are anomalous and whether to reject them.

    The options of a method belong to --zero-shot-batch: a model file brings its own.

    Parameters
    ----------
    arguments : list of str or None
        A model file, then files, folders (searched through) or globs; - reads names from stdin.
        With --zero-shot-batch, neither.
    output : str or None
        Folder for results; - writes JSON lines to stdout, as does a pipe; else a table.
    save : str or None
        What to write into the folder: some of overlay,map,mask,cloud,json,csv,page; else all but
        map, mask and cloud. cloud: of scans, their points with scores as PLY, and a page that turns
        them.
    resume : bool
        Go on where an earlier run into this folder stopped.
    overwrite : bool
        Start afresh over earlier results.
    fail_on_anomaly : bool
        Exit with 1 if an image is anomalous; needs a threshold.
    threshold : float or None
        Reject images whose score is above this, whatever the model's own threshold.
    category : str or None
        Of the parts, for a model of several: `offnominal info` lists them.
    zero_shot_batch : list of str or None
        No model: score every image of a folder against all the others; repeatable.
    method : str or None
        With --zero-shot-batch: a method that scores a batch, else anomalydino-batched; with --help
        after it, its options are shown.
    workers : int or None
        Score by so many processes, in parts that a rerun goes on with; IMAGES may be a list, .txt
        or .parquet, and -o a URL as s3://bucket/run.
    ray : str or None
        The same by a Ray cluster, or by this machine where auto finds none; one worker a GPU or
        CPU, unless --workers says how many.
    """
    if workers is not None or ray is not None:
        from offnominal.cli.scaled import predict_by_workers

        if zero_shot_batch:
            told = "scores depend on all of a batch, which one process looks at"
            raise OptionError(f"--workers, --ray: not with --zero-shot-batch: {told}")
        if strict:
            raise OptionError("--strict: not with --workers or --ray, whose images have no order")
        _refuse_settled(given | {"method": method, "set": sets})
        how = arguments or [], weights, device, engine, endpoint, key_variable, category
        places = output, save, resume, overwrite
        predict_by_workers(how, places, threshold, workers, ray, fail_on_anomaly)
        return
    if output in (None, "-") and (resume or overwrite):
        raise OptionError("--resume and --overwrite need a folder: -o DIR")
    if output == "":
        raise OptionError("-o '': the name of the folder is empty; give one, or leave -o out")
    if threshold is not None:
        options.check_threshold(threshold)
    if output in (None, "-"):
        if save is not None:
            raise OptionError(f"--save {save}: needs a folder to write into: -o DIR")
    else:
        from offnominal.cli.results import check_free, parse_save

        parse_save(save or _SAVED)
        check_free(Path(output or ""), resume, overwrite)
    passed = PassedOver()
    if zero_shot_batch:
        if arguments:
            raise OptionError("--zero-shot-batch takes a folder, and no model or further images")
        given |= {"weights": weights, "device": device, "engine": engine}
        given |= {"endpoint": endpoint, "key_variable": key_variable}  # refused as unknown
        given |= {"category": category}
        task = _of_batch(method or _BATCHED, given, sets, zero_shot_batch, passed)
    else:
        of_batch = given | {"method": method, "set": sets}
        asked = endpoint, key_variable
        task = _of_model(
            arguments or [], of_batch, weights, device, engine, asked, passed, category
        )
    if threshold is not None:
        threshold = task.run["threshold"] = options.as_printed(threshold, task.detector)
    elif fail_on_anomaly and not task.detector.decides:
        raise OptionError(
            "--fail-on-anomaly needs a threshold, and there is none: give --threshold VALUE, or "
            "calibrate the model with good images"
        )
    where = "" if output in (None, "-") else f"; results in {output}"
    with Unreadable(strict) as unreadable:
        with _open_sink(task, output, save or _SAVED, resume, overwrite) as sink:
            warn_untrained(task.detector)
            try:
                before = _score(task, sink, unreadable, threshold, whole=bool(zero_shot_batch))
            except (KeyboardInterrupt, SystemExit) as stop:
                kept = f"{where}, and --resume goes on with them" if where and sink.rows else ""
                say(f"stopped after {count(sink.rows, 'image', '0')}{kept}")
                stop.told = True  # type: ignore[union-attr]  # for whoever catches it last
                raise
        said = [count(sink.rows, "image", "0"), *([f"{before} done before"] if before else [])]
        undecided = f"{sink.undecided} without a decision (no threshold)"
        said.append(undecided if sink.undecided else f"{sink.anomalous} anomalous")
        say(", ".join(said) + where)
        if sink.page:
            say(f"open {sink.page}")
        if passed.total():
            say(str(passed))
    if fail_on_anomaly and sink.anomalous:
        raise typer.Exit(ANOMALIES)
    if fail_on_anomaly and sink.undecided:
        raise OptionError("--fail-on-anomaly: some images have no decision; see the results")


def predict_options(args: list[str]) -> MethodOptions:
    """The options of the method that is to score a batch."""
    if not {"--zero-shot-batch", "--help", "-h"} & {word.partition("=")[0] for word in args}:
        return "predict", _settled(args)
    method = (named(args, "--method") or [_BATCHED])[-1]
    return method, method_options(method, without=("weights", "device", "engine"))


def _settled(args: list[str]) -> list[Option]:
    """The options of any method that a command line has, which a model file brings itself."""
    from offnominal.detectors.registry import METHODS, light_class
    from offnominal.detectors.signatures import option_defaults

    given = {word.partition("=")[0] for word in args if word.startswith("--")}
    own = {f"--{name.replace('_', '-')}" for name in inspect.signature(predict).parameters}
    left = given - own - {"--set"}
    found: dict[str, Option] = {}
    for method in METHODS:
        if not left:
            break
        for name, default in option_defaults(light_class(method)).items():
            flag = name.replace("_", "-")
            if meant := {f"--{flag}", f"--no-{flag}", f"--method-{flag}"} & left:
                kind = bool if isinstance(default, bool) else str
                found.setdefault(name, Option(name, kind, None))
                left -= meant
    return list(found.values())


def _of_batch(
    method: str,
    given: dict[str, Any],
    sets: list[str] | None,
    folders: list[str],
    passed: PassedOver,
) -> _Task:
    if not options.derives(method, "BatchDetector"):
        told = f"--method {method}: does not score a batch; fit it with `offnominal fit`"
        raise OptionError(told)
    files = find_images(folders, passed)
    detector = options.build_detector(method, given, sets)
    # Every score of a batch depends on all of its images.
    run = {"method": method, "images": [[str(file), stamp(file)] for file in files]}
    return _Task(detector, files, run | {"options": json.loads(json.dumps(detector.options()))})


def _of_model(
    arguments: list[str],
    of_batch: dict[str, Any],
    weights: str | None,
    device: str,
    engine: str,
    asked: tuple[str | None, str | None],
    passed: PassedOver,
    category: str | None,
) -> _Task:
    import hashlib

    if arguments:
        options.check_given(arguments[0], arguments[1:], "predict", weights, device, engine)
    if len(arguments) < 2:
        raise OptionError(
            "give a model file and at least one image, folder or glob, as `offnominal predict "
            "part.offn new/`"
        )
    _refuse_settled(of_batch)
    model, *names = arguments
    files = find_images(names_from_stdin() if names == ["-"] else names, passed)
    with Path(model).open("rb") if Path(model).is_file() else nullcontext() as file:
        # Tells model files apart, thresholds included; of the file as it is opened, not replaced.
        digest = hashlib.file_digest(file, "sha256").hexdigest() if file else ""
    detector = options.open_model(model, weights, device, *asked, engine)
    if category is not None:
        detector = detector.for_category(category)
    detector.check_category()
    detector.predict([])  # raises what every image would meet, before there is a folder
    # Whoever is asked elsewhere is another model.
    run = {"model": digest} | ({"endpoint": asked[0]} if asked[0] else {})
    run |= {"category": category} if category else {}
    return _Task(detector, files, run, Path(model))


def _refuse_settled(given: dict[str, Any]) -> None:
    """Raise an :class:`OptionError` for an option that a model file brings itself."""
    for name in [name for name, value in given.items() if value is not None]:
        flag = f"--{name.replace('_', '-')}"
        told = f"{flag} is settled in the model file; it goes with --zero-shot-batch only"
        raise OptionError(told)


def _open_sink(task: _Task, output: str | None, save: str, resume: bool, overwrite: bool) -> "Sink":
    from offnominal.cli.results import ResultWriter, parse_save
    from offnominal.cli.writer import Printer

    if output is None or output == "-":
        return Printer(as_json=output == "-" or not sys.stdout.isatty())
    kinds = parse_save(save)
    each = task.detector.each_category()
    if "mask" in kinds and any(one.pixel_threshold is None for one in each):
        raise OptionError(
            "--save mask needs a threshold, and there is none; calibrate a model, or leave mask out"
        )
    about = _about(task)
    return ResultWriter(Path(output), kinds, task.files, task.run, resume, overwrite, about)


def _about(task: _Task) -> list[tuple[str, str]]:
    """What the results are made with, for their page."""
    by_hand = task.run.get("threshold")
    limit = options.threshold_in_words(task.detector)
    if by_hand is not None:
        limit = f"{digits(by_hand)}: given by hand"
    return [
        ("Model", printable(task.model or "none: the images are compared with one another")),
        ("Method", task.detector.method),
        *([("Category", printable(task.run["category"]))] if "category" in task.run else []),
        ("Threshold", limit),
    ]


def _score(
    task: _Task, sink: "Sink", unreadable: Unreadable, threshold: float | None, whole: bool
) -> int:
    """Score what is not in the sink; a batch as a whole. Returns how many were there before."""
    todo = [file for file in task.files if whole or str(file) not in sink.done]

    def on_error(error: ImageError) -> None:
        sink.write_error(error)
        unreadable(error)

    began, sizes = task.standing(), Counter[tuple[int, int]]()
    with progress_bar(len(todo)) as advance:

        def progress(stage: str, done: int) -> None:
            advance(stage, done + len(unreadable.errors))

        for prediction in task.detector.stream(todo, on_error, progress):
            now = task.standing()
            if began and now and now[0] == began[0] and now != began:
                raise OptionError(
                    f"{task.model}: was written into during the run; score the images again. A "
                    "running model is changed by moving another file into its place"
                )
            if threshold is not None:
                prediction = replace(prediction, threshold=threshold)
            if prediction.source not in sink.done:
                sink.write(prediction)
                sizes[prediction.image.shape[0], prediction.image.shape[1]] += 1
    if engine := getattr(task.detector, "engine_in_force", ""):
        sink.about.append(("Engine", engine))
    for words in not_inspected(task.detector, sizes):
        say(f"not inspected: {words}")
    return sum(str(file) in sink.done for file in task.files)
