"""``offnominal fit``: good images in, a model file out."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from offnominal.checks import check_range
from offnominal.cli import options
from offnominal.cli.command import named
from offnominal.cli.curves import going_on, leave_curves
from offnominal.cli.info import describe, describe_tests, not_inspected
from offnominal.cli.labels import read_labels
from offnominal.cli.mistakes import check_images_given
from offnominal.cli.option import MethodOptions, method_options
from offnominal.cli.terminal import Unreadable, count, progress_bar, say, tell, warn_untrained
from offnominal.detectors.methods import METHODS
from offnominal.errors import OptionError
from offnominal.filekinds import is_model
from offnominal.text import digits

if TYPE_CHECKING:
    from offnominal.detectors.refine import Share
    from offnominal.paths import PassedOver

_DEFAULT = "anomalydino"


def fit(
    output: Annotated[Path, "-o"],
    given: dict[str, Any],
    good: Annotated[list[str] | None, "GOOD_DIR..."] = None,
    method: str = _DEFAULT,
    sets: options.Sets = None,
    defects: list[str] | None = None,
    masks: Path | None = None,
    boxes: list[Path] | None = None,
    classes: Literal["by-folder"] | None = None,
    categories: bool = False,
    shots: int | None = None,
    seed: int = 0,
    synthetic: bool = True,
    refine: str | None = None,
    overwrite: bool = False,
    when: options.When = None,
    strict: options.Strict = False,
    workers: Annotated[int | None, "--workers N"] = None,
    ray: Annotated[str | None, "--ray auto|ADDRESS"] = None,
) -> None:
    """Learn from images of good parts, or from none with a zero-shot method; write a model file.

    Each method has options of its own: `offnominal fit --method NAME --help` lists them.

    Parameters
    ----------
    output : path
        Model file to write, as part.offn.
    good : list of str or None
        Folders, files or globs of good images; zero-shot methods need none.
    method : str
        See `offnominal methods`; with --help after it, its options are shown.
    defects : list of str or None
        Folders, files or globs of defective images to learn from as well; repeatable.
    masks : path or None
        Folder of their masks, named as the images; some may lack one.
    boxes : list of path or None
        Annotations of them: COCO or Label Studio JSON, a folder of YOLO, Pascal VOC or LabelMe
        files; repeatable.
    classes : str or None
        by-folder: the folder that a defective image lies in names its class.
    categories : bool
        With a trained method, or rad: one model of several categories, a folder each, or those of
        a data set; each gets a threshold of its own.
    shots : int or None
        Use this many of the images (of each category), drawn at random; else all.
    seed : int
        Seed of the draw of --shots.
    synthetic : bool
        Score 48 synthetic defects, and say how many the threshold would pass.
    refine : str or None
        Leave out images that the others call anomalous before the fit: auto, or a share of them.
        Takes 6 to 15 fits more.
    overwrite : bool
        Begin a training anew where the state of another lies.
    workers : int or None
        Let so many processes look at the references, for methods that add up what is seen; the
        model is the same to the byte.
    ray : str or None
        The same by a Ray cluster, or by this machine where auto finds none; one worker a GPU or
        CPU, unless --workers says how many. The model's folder lies where all machines reach it.
    """
    from offnominal.paths import PassedOver, find_images

    options.check_model(output)
    picture = output.with_suffix(".mask.png")
    options.check_picture(picture)
    trained = _check(method, good or [], categories, refine)
    if not defects and METHODS[method].defects == "required":
        raise OptionError(
            f"--method {method}: learns from defective images as well; give --defects bad/, or "
            "another method, as `offnominal methods` lists them"
        )
    known = read_labels(defects or [], masks, boxes or [], classes)
    noted, passed = options.read_when(when), PassedOver()
    chosen = options.chosen_options(method, given, sets)  # what takes no torch is told at once
    if shared := workers is not None or ray is not None:
        _check_shared(method, chosen, bool(known) or categories or refine is not None)
    if (
        not categories
        and _takes_categories(method)
        and sum(Path(each).is_dir() for each in good or []) > 1
    ):
        say("the folders are learned as one category; --categories: a threshold for each")
    if categories:
        found = _categories(good or [], passed)
    else:
        found = {"": find_images(good, passed)} if good else {}
    groups = {name: _draw(own, shots, seed) for name, own in found.items()} or {"": []}
    detector = options.build_detector(method, given, sets)
    rows = getattr(detector, "rows_file", None)
    if rows is not None and Path(rows) == output.absolute():
        raise OptionError(
            f"--rows-file {rows}: is the model's own name, as -o has it; name another"
        )
    more: dict[str, Any] = {"when": noted, "defects": known}
    if trained:
        more |= {"state": output, "overwrite": overwrite, "tell": say}
    refining = output.with_suffix(".refine.json")
    if shared:
        from offnominal.scale.looking import forget_looks
    with options.changing(output), Unreadable(strict) as unreadable:
        if refine is not None:
            asked = refine, method, given, sets, seed, strict, refining
            groups = {name: _refined(own, *asked) for name, own in groups.items()}
        files: Any = groups if categories else groups[""]
        if shared:
            told = _looked_at(detector, chosen, files, workers, ray, output)
            cast(Any, detector).looked_at = told
        total = sum(len(own) for own in groups.values())
        with progress_bar(total) as advance, going_on(output, detector):
            more |= {"on_error": unreadable, "progress": advance, "synthetic": synthetic}
            detector.fit(files, **more)
        detector.save(output)
        refining.unlink(missing_ok=True)
        if shared:
            forget_looks(str(_looks(output).absolute()))
        _report(detector, output, picture)
        if trained:
            leave_curves(cast(Any, detector), output)
        tell(("", str(passed)))
        warn_untrained(detector)


def _check_shared(method: str, chosen: dict[str, Any], more: bool) -> None:
    """Refuse what workers cannot share."""
    from offnominal.scale.looking import check_looks

    check_looks(method, chosen)
    if more:
        told = "good images alone can be shared out; leave the other out"
        raise OptionError(f"--workers, --ray: not with --defects, --categories or --refine: {told}")


def _looks(output: Path) -> Path:
    """Where workers write what they see, until the model is written."""
    return output.with_name(f"{output.name}.parts")


def _looked_at(
    detector: Any,
    chosen: dict[str, Any],
    files: list[Path],
    workers: int | None,
    ray: str | None,
    output: Path,
) -> Any:
    """What tells of each reference what the workers saw."""
    from offnominal.detectors.references import References
    from offnominal.paths import stamp
    from offnominal.scale.engines import engine_for
    from offnominal.scale.looking import Looker, look_by_workers
    from offnominal.scale.parts import Store

    engine = engine_for(workers, ray)
    # Copies have no number, and what a worker does may depend on it.
    taken = References().take_in(detector.read(files, lambda error: None), [])
    numbers: dict[str, int] = {}
    for number, image, source in taken:
        if number == 0:  # which settles the engine for all
            detector.look(number, image)
        numbers[str(source)] = number
    if name := detector.engine_in_force:
        chosen = chosen | {"engine": name}
    looker = Looker(detector.method, chosen, numbers, Store(str(_looks(output).absolute())))
    with progress_bar(len(numbers)) as advance:
        return look_by_workers(
            looker, list(numbers), stamp, engine, lambda done: advance("features", done)
        )


def fit_options(args: list[str]) -> MethodOptions:
    """The options of the method that a command line names."""
    method = (named(args, "--method") or [_DEFAULT])[-1]
    return method, method_options(method)


def _check(method: str, good: list[str], categories: bool, refine: str | None) -> bool:
    """Refuse what cannot be, as far as names tell; returns whether the method is trained."""
    from offnominal.detectors.registry import light_class

    if options.derives(method, "BatchDetector"):
        told = "nothing to fit: it scores the images of a batch; use `predict --zero-shot-batch`"
        raise OptionError(f"--method {method}: {told}")
    trained = options.derives(method, "TrainedDetector")
    if categories and not _takes_categories(method):
        told = "rad can have them, and a method with a training, such as dinomaly"
        raise OptionError(f"--categories: not with {method}; {told}")
    if categories and not good:
        raise OptionError("--categories: name folders of good images, or a data set")
    for name in good:
        if is_model(Path(name)):
            raise OptionError(
                f"{name}: is a model file, not a folder of good images; to score images with it: "
                f"`offnominal predict {name} new/`"
            )
    check_images_given(good)
    if not good and getattr(light_class(method), "needs_references", True):
        raise OptionError(
            f"--method {method}: learns from good images; give a folder of them, as `offnominal "
            "fit good/ -o part.offn`"
        )
    if refine is not None:
        _share(refine)
    return trained


def _takes_categories(method: str) -> bool:
    """Whether one model of the method can know several categories."""
    from offnominal.detectors.registry import light_class

    return bool(getattr(light_class(method), "takes_categories", False))


def _share(refine: str) -> "Share":
    """``auto``, or the share of the images that ``--refine`` names."""
    try:
        share: Share = "auto" if refine == "auto" else float(refine)
    except ValueError as error:
        told = "give auto, or a share of the images, as 0.1"
        raise OptionError(f"--refine {refine}: {told}") from error
    if share != "auto":
        check_range("refine", share, above=0, most=0.5)
    return share


def _categories(folders: list[str], passed: "PassedOver") -> dict[str, list[Path]]:
    """Good images of each category: of a data set, or of folders, which are named for theirs."""
    from offnominal.datasets import open_dataset
    from offnominal.paths import find_images

    if len(folders) == 1:
        dataset = open_dataset(folders[0])
        return {name: [one.image for one in dataset.train(name)] for name in dataset.categories}
    found: dict[str, list[Path]] = {}
    for folder in folders:
        parts = [part for part in Path(folder).absolute().parts if part not in ("train", "good")]
        if parts[-1] in found:
            told = f"two folders would be the category {parts[-1]}; rename one"
            raise OptionError(f"--categories {folder}: {told}")
        found[parts[-1]] = find_images(folder, passed)
    return found


def _draw(files: list[Path], shots: int | None, seed: int) -> list[Path]:
    """Some of the files, as the benchmark draws them, kept in their order."""
    if shots is None:
        return files
    if not 1 <= shots <= len(files):
        raise OptionError(f"--shots {shots}: there are {len(files)} images; give 1 to that many")
    from offnominal.datasets.shots import draw_numbers

    return [files[number] for number in sorted(draw_numbers(len(files), shots, seed))]


def _refined(
    files: list[Path],
    refine: str,
    method: str,
    given: dict[str, Any],
    sets: list[str] | None,
    seed: int,
    strict: bool,
    state: Path,
) -> list[Path]:
    """What is kept of the files; those that are not are listed, the worst one first."""
    from offnominal.detectors.refine import refine as refined

    found = refined(
        lambda: options.build_detector(method, dict(given), sets),
        files,
        _share(refine),
        seed=seed,
        on_error=None if strict else lambda error: None,  # the fit that follows tells them
        tell=say,
        state=state,
    )
    if not found.settled:
        say(f"refine: not settled after {found.rounds} rounds; the last one counts")
    for number in sorted(found.left_out, key=lambda number: -found.scores[number]):
        say(f"left out: {files[number]}, score {digits(found.scores[number])}")
    unread = {n for n in range(len(files)) if n not in {*found.kept, *found.left_out}}
    return [files[number] for number in sorted({*found.kept, *unread})]


def _report(detector: Any, output: Path, picture: Path) -> None:
    say(f"{output}: {detector.method} on {count(len(detector.references), 'good image')}")
    copies = f"{detector.copies} exact copies of others" if detector.copies else ""
    sizes = Counter((one.size[0], one.size[1]) for one in detector.references)
    unseen = [("unseen", words) for words in not_inspected(detector, sizes)]
    tell(("left out", copies), *describe(detector, detector.header()), *unseen)
    tell(*describe_tests(detector))
    if not hasattr(detector, "foreground_picture"):
        return
    if detector.masking_test_ or detector.masks_:
        from offnominal.pictures import save_picture

        first = detector.image_of(detector.references[0].file)
        save_picture(picture, detector.foreground_picture(first))
        tell(("", f"the mask as a picture: {picture}"))
