"""``offnominal fit``: good images in, a model file out."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offnominal.cli import options
from offnominal.cli.info_lines import describe_bank, describe_search
from offnominal.cli.terminal import UNREADABLE, Unreadable, progress_bar, say, warn_untrained
from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector


def fit(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Model file to write, as part.offn.")
    ],
    good: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="GOOD_DIR...",
            help="Folders, files or globs of good images; zero-shot methods need none.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="See `offnominal methods`.")] = "anomalydino",
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    resolution: options.Resolution = None,
    resize: options.Resize = None,
    tile: options.Tile = None,
    layers: options.Layers = None,
    mask: options.Mask = None,
    mask_references: Annotated[
        bool | None,
        typer.Option(
            "--mask-references", help="Leave background out of the bank too.", show_default="no"
        ),
    ] = None,
    rotations: Annotated[
        str | None,
        typer.Option(
            help="Angles of the references: none, agnostic (0, 45, ..., 315), or a list 0,90,180.",
            show_default="agnostic",
        ),
    ] = None,
    neighbours: Annotated[
        int | None,
        typer.Option(help="Nearest neighbours whose distances are averaged.", show_default="1"),
    ] = None,
    aggregate: options.Aggregate = None,
    search: options.Search = None,
    storage: options.Storage = None,
    class_name: options.ClassName = None,
    sets: options.Sets = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Use this many of the images, drawn at random.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
    sixteen_bit: options.SixteenBit = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    false_reject: options.FalseReject = None,
    strict: options.Strict = False,
) -> None:
    """Learn from images of good parts, or from none with a zero-shot method; write a model file."""
    from offnominal.paths import find_images

    if not output.absolute().parent.is_dir():
        raise OptionError(f"-o {output}: the folder {output.parent} does not exist; create it")
    given = {
        "backbone": backbone,
        "weights": weights,
        "resolution": resolution,
        "resize": resize,
        "tile": tile,
        "layers": layers,
        "mask": mask,
        "mask_references": mask_references,
        "rotations": rotations,
        "neighbours": neighbours,
        "aggregate": aggregate,
        "search": search,
        "storage": storage,
        "class_name": class_name,
        "sixteen_bit": sixteen_bit,
        "device": device,
        "precision": precision,
        "false_reject": false_reject,
    }
    detector = options.build_detector(method, given, sets)
    _check_images(method, good)
    files = _draw(find_images(good), shots, seed) if good else []
    unreadable = Unreadable(strict)
    with progress_bar(len(files)) as advance:
        detector.fit(files, on_error=unreadable, progress=advance)
    detector.save(output)
    _report(detector, output)
    warn_untrained(detector)
    unreadable.report()
    if unreadable.errors:
        raise typer.Exit(UNREADABLE)


def _check_images(method: str, good: list[str] | None) -> None:
    from offnominal.detectors import METHODS

    references = METHODS[method].references
    if METHODS[method].batched:
        raise OptionError(
            f"--method {method}: has nothing to fit: it scores the images of a batch; use "
            "`offnominal predict --zero-shot-batch`"
        )
    if references == "required" and not good:
        raise OptionError(
            f"--method {method}: needs {METHODS[method].needs}; name a folder of them, or choose a "
            "zero-shot method (see `offnominal methods`)"
        )
    if references == "none" and good:
        raise OptionError(
            f"--method {method}: learns from no image; leave {good[0]} out, and give good images "
            "to `offnominal calibrate` for a threshold"
        )


def _draw(files: list[Path], shots: int | None, seed: int) -> list[Path]:
    """Some of the files, as the benchmark draws them, kept in their order."""
    if shots is None:
        return files
    if not 1 <= shots <= len(files):
        raise OptionError(f"--shots {shots}: there are {len(files)} images; give 1 to that many")
    from offnominal.datasets.shots import draw_numbers

    return [files[number] for number in sorted(draw_numbers(len(files), shots, seed))]


def _report(detector: "Detector", output: Path) -> None:
    from offnominal.detectors.patches import PatchDetector
    from offnominal.images import read_image

    count = len(detector.references_)
    say(f"{output}: {detector.method} on {count or 'no'} good image{'s' if count != 1 else ''}")
    if detector.copies_:
        say(f"  left out   {detector.copies_} exact copies of others")
    network = detector.load_network()
    if network.digest:
        say(f"  backbone   {network.name}, digest {network.digest[:12]}")
    if detector.bank_rows:
        say(f"  bank       {describe_bank(detector)}")
    for title, words in describe_search(detector):
        say(f"  {title:<11}{words}")
    if isinstance(detector, PatchDetector):
        test = detector.masking_test_
        why = f" ({test['reason']})" if test else ""
        say(f"  mask       {'on' if detector.masks_ else 'off'}{why}")
        if test or detector.masks_:
            from PIL import Image

            first = read_image(detector.references_[0]["file"], detector.sixteen_bit)
            picture = output.with_suffix(".mask.png")
            Image.fromarray(detector.foreground_picture(first)).save(picture)
            say(f"             as a picture: {picture}")
    say(f"  threshold  {describe_threshold(detector)}")


def describe_threshold(detector: "Detector") -> str:
    """What the detector's threshold promises, in words."""
    if detector.threshold is not None:
        return str(detector.threshold)
    from offnominal.detectors.chat import ChatModel

    count = len(detector.good_scores_)
    enough = "3 give an estimate"
    if isinstance(detector, ChatModel):
        needed = math.ceil(1 / detector.false_reject) - 1
        enough = f"{needed} give one; until then the model's own answers decide"
    return (
        f"none: {count or 'no'} good image{'s' if count != 1 else ''} to set it by; run "
        f"`offnominal calibrate` with good images that it has not learned from ({enough})"
    )
