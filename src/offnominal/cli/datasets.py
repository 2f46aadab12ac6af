"""``offnominal datasets``: what can be read, and what a data set of your own looks like to it."""

import json
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offnominal.cli import options
from offnominal.cli.command import Group, add_command, parameters_of
from offnominal.cli.stop import telling
from offnominal.cli.terminal import (
    UNREADABLE,
    Unreadable,
    console,
    progress_bar,
    say,
    table,
    waiting,
)
from offnominal.text import printable

if TYPE_CHECKING:
    from offnominal.datasets.dataset import Dataset
    from offnominal.datasets.report import Labels, Report

app = typer.Typer(cls=Group, help="List layouts and known data sets, or check one of your own.")


def open_from_options(
    root: Annotated[Path | None, "DATASET"] = None,
    layout: str = "auto",
    categories: str | None = None,
    good: list[str] | None = None,
    defects: list[str] | None = None,
    masks: Path | None = None,
    test_good: list[str] | None = None,
    train_share: float = 0.5,
    frame_step: int = 1,
    mask_threshold: int | None = None,
) -> "Dataset":
    """Open the data set that a command's options name; raises as `open_dataset` does.

    Parameters
    ----------
    root : path or None
        Folder of a data set or of one of its categories, or a manifest; or leave it out and give
        --good and --defects.
    layout : str
        Layout or data set, as `offnominal datasets` lists them.
    categories : str or None
        Only these, with commas.
    good : list of str or None
        Folder or quoted glob of good images; repeatable.
    defects : list of str or None
        Folder or quoted glob of defective images; folders below name the kind; repeatable.
    masks : path or None
        Folder of masks, named as the defective images.
    test_good : list of str or None
        Good images to test on; repeatable. Else --good is divided.
    train_share : float
        Share of good images to learn from, where nothing else says which.
    frame_step : int
        Of videos, every n-th frame.
    mask_threshold : int or None
        Smallest grey level of a mask that means defective; else 128, or 1 where masks hold class
        numbers.
    """
    from offnominal.datasets.dataset import open_dataset

    only = [name.strip() for name in categories.split(",")] if categories else None
    more: dict[str, Any] = {"masks": masks, "train_share": train_share, "frame_step": frame_step}
    more |= {"good": good or None, "defects": defects or None, "test_good": test_good or None}
    return open_dataset(root, layout, categories=only, mask_threshold=mask_threshold, **more)


def dataset_options(*without: str) -> list[Parameter]:
    """What a command hands on to `open_from_options`, for its ``**`` argument."""
    return [each for each in parameters_of(open_from_options) if each.name not in without]


@app.callback(invoke_without_command=True)
def datasets(context: typer.Context) -> None:
    """List the layouts that can be read, and known data sets with source and licence."""
    if context.invoked_subcommand is not None:
        return
    from offnominal.datasets.catalogue import LAYOUTS, PRESETS

    screen = console(175)
    layouts = [(layout.name, layout.looks_for, layout.about) for layout in LAYOUTS.values()]
    screen.print(table(("layout", "recognised by", "of"), layouts))
    screen.print()
    known = [
        (preset.name, preset.title, ", ".join(preset.layouts), preset.licence, preset.source)
        for preset in PRESETS.values()
    ]
    screen.print(table(("data set", "title", "layouts", "licence", "source"), known))
    say("Nothing is downloaded: fetch a data set from its source, and mind its licence.")
    say("See what yours holds with `offnominal datasets check FOLDER`.")


def check(
    boxes: list[Path] | None = None,
    classes: str | None = None,
    as_json: options.Json = False,
    **data: Any,
) -> None:
    """Read all images and masks, and say what they are, what is odd, and what follows.

    Parameters
    ----------
    boxes : list of path or None
        Annotations of the defective images: COCO or Label Studio JSON, a folder of YOLO, Pascal VOC
        or LabelMe files; repeatable.
    classes : str or None
        by-folder: the folder that a defective image lies in names its class.
    """
    dataset = open_from_options(**data)
    from offnominal.datasets.check import check as look_over

    with progress_bar(len(dataset.samples)) as advance:
        labels: Any = {"boxes": boxes or None, "classes": classes}
        report = look_over(dataset, lambda done: advance("checking", done), **labels)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)
    if report.unreadable:
        raise typer.Exit(UNREADABLE)


add_command(app, check, dataset_options())


def synthetic_scans(
    folder: Annotated[Path, "FOLDER"],
    seed: int = 0,
    size: int = 224,
    noise: float = 0.1,
    depth: list[float] | None = None,
    shape: list[str] | None = None,
    train: int = 16,
    test: int = 8,
    defective: int = 6,
) -> None:
    """Scan made parts, good and damaged, into a data set of points and colour with exact truth.

    Plates, bottles and springs before a stereo camera, in the layout of MVTec 3D-AD. The file
    truth.csv of each says how deep every damage is.

    Parameters
    ----------
    folder : path
        Folder to write to.
    seed : int
        The same seed gives the same scans.
    size : int
        Pixels of a side.
    noise : float
        Of depth at 0.3 m, in millimetres; it grows with the distance squared.
    depth : list of float or None
        Of the damage, in millimetres; repeatable, and taken in turn; else 0.5, 1 and 2.
    shape : list of str or None
        plate, bottle or spring; repeatable; else all three.
    train : int
        Good scans of each part to fit.
    test : int
        Good scans of each part to test.
    defective : int
        Scans of each part with each kind of damage.
    """
    from offnominal.scans.synthetic import write_scans

    how: Any = {"depths": tuple(depth)} if depth else {}
    how |= {"shapes": tuple(shape)} if shape else {}
    with waiting("scanning"):
        written = write_scans(folder, train, test, defective, seed, noise, size=size, **how)
    say(f"wrote {len(written):,} scans; see `offnominal datasets check {printable(folder)}`")


add_command(app, synthetic_scans)


def prepare(
    source: Annotated[Path, "SRC"],
    output: Annotated[Path, "OUT"],
    plane: bool = True,
    plane_distance: float = 0.005,
    largest: bool = True,
    size: int | None = None,
    unit: Literal["m", "mm"] = "m",
    seed: int = 0,
    strict: options.Strict = False,
) -> None:
    """Write a copy of a set of scans without the ground, in metres; the same command goes on.

    Parameters
    ----------
    source : path
        Data set of scans, or a folder of them.
    output : path
        Folder for the copy, in the layout of MVTec 3D-AD; clouds without a grid in their own.
    plane : bool
        Remove the plane at the picture's edges, found by RANSAC.
    plane_distance : float
        Metres from it within which points go.
    largest : bool
        Keep the largest object only, in the middle of a square.
    size : int or None
        Longer side of the grid, by nearest points; else as it is.
    unit : {"m", "mm"}
        Of the coordinates in the files.
    seed : int
        Of the search for the plane.
    """
    with telling(lambda: f"the same command goes on in {output}"), Unreadable(strict) as unreadable:
        from offnominal.datasets.prepared import Settings, prepare_dataset

        settings = Settings(plane, plane_distance, largest, size, unit, seed)
        with progress_bar(None) as advance:
            done = prepare_dataset(
                source, output, settings, unreadable, lambda number, _: advance("preparing", number)
            )
        scans = "1 scan" if done == 1 else f"{done:,} scans"
        say(f"{scans} in {output}, in metres")


add_command(app, prepare)


def _print(report: "Report") -> None:
    from rich.markup import escape as escape_markup

    def escape(text: str) -> str:
        return escape_markup(printable(text))

    screen = console(110)
    images = sum(n for entry in report.categories for _, _, n in entry.sizes)
    categories = "category" if len(report.categories) == 1 else "categories"
    title = (
        f"[bold]{report.name}[/]: {report.layout} layout, {len(report.categories)} {categories}, "
        f"{images:,} images read in {escape(report.root)}\n"
    )
    screen.print(title, highlight=False, soft_wrap=True)
    numbers = ["train", "validation", "test good", "defective", "masks"]
    if not any(entry.validation for entry in report.categories):
        numbers.remove("validation")
    rows = []
    for entry in report.categories:
        kinds = entry.test_defective
        counts = {"train": entry.train, "validation": entry.validation, "masks": entry.masks,
                  "test good": entry.test_good, "defective": sum(kinds.values())}  # fmt: skip
        told = ", ".join(f"{printable(kind)} {number}" for kind, number in kinds.items())
        rows.append(
            (
                printable(entry.category),
                *(str(counts[n]) for n in numbers),
                told,
                _sizes(entry.sizes),
            )
        )
    headings = ("category", *numbers, "kinds of defect", "sizes (width x height)")
    screen.print(table(headings, rows, numbers))
    if report.labels is not None:
        _print_labels(report.labels)
    for finding in report.findings:
        colour = {"error": "red", "warning": "yellow", "note": "cyan"}[finding.severity]
        number = f": {finding.count:,}" if finding.count else ""
        lines = [f"\n[{colour}]{finding.severity}:[/] {escape(finding.what)}{number}"]
        lines += [f"  {escape(example)}" for example in finding.examples]
        if finding.count > len(finding.examples):
            lines.append(f"  and {finding.count - len(finding.examples):,} more")
        if finding.action:
            lines.append(f"  -> {escape(finding.action)}")
        screen.print("\n".join(lines), highlight=False, soft_wrap=True)
    if not report.findings:
        screen.print("\nNothing odd.")


def _print_labels(labels: "Labels") -> None:
    screen = console(110)
    screen.print()
    rows = [(printable(kind), str(number), str(labels.marks.get(kind, 0)))
            for kind, number in labels.images.items()]  # fmt: skip
    screen.print(table(("class", "images", "marks"), rows, ("images", "marks")))
    told = f"marked exactly {labels.marked}, by boxes only {labels.boxed}"
    told += f", not at all {labels.unmarked}"
    if labels.sizes:
        least, middle, most = labels.sizes
        told += f"; {least} to {most} pixels long, the middle one {middle}"
    screen.print(told, highlight=False, soft_wrap=True)


def _sizes(sizes: tuple[tuple[int, int, int], ...]) -> str:
    """Each with its number, or the range."""
    if len(sizes) <= 3:
        number = " ({})" if len(sizes) > 1 else ""
        return ", ".join(f"{w}x{h}{number.format(n)}" for w, h, n in sizes) or "-"
    widths, heights, _ = zip(*sizes, strict=True)
    return (
        f"{len(sizes):,} sizes, {min(widths)} to {max(widths)} wide, "
        f"{min(heights)} to {max(heights)} high"
    )
