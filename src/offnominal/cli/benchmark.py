"""``offnominal benchmark``: grids over data sets, methods, options, shots and seeds."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offnominal.cli import options
from offnominal.cli.datasets import (
    Defects,
    FrameStep,
    Good,
    Layout,
    Masks,
    MaskThreshold,
    TestGood,
    TrainShare,
    open_from_options,
)
from offnominal.cli.terminal import UNREADABLE, USAGE, progress_bar, say
from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.benchmark.cell import Cell
    from offnominal.benchmark.plan import Request
    from offnominal.benchmark.runner import Outcome
    from offnominal.datasets import Dataset

_GB = 10**9


def benchmark(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of results; finished cells are kept.")
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folders of data sets, or manifests; or name --good and --defects.",
            show_default=False,
        ),
    ] = None,
    layout: Layout = "auto",
    categories: Annotated[
        list[str] | None, typer.Option(help="Only these.", show_default="all")
    ] = None,
    good: Good = None,
    defects: Defects = None,
    masks: Masks = None,
    test_good: TestGood = None,
    train_share: TrainShare = 0.5,
    frame_step: FrameStep = 1,
    mask_threshold: MaskThreshold = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="One of the questions of the AnomalyDINO paper; other options change it. "
            "`--preset list` names them.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="See `offnominal methods`.", show_default="anomalydino"),
    ] = None,
    shots: Annotated[
        list[str] | None,
        typer.Option(help="Numbers of references, or full.", show_default="1"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of draws of the references.")] = 3,
    sampling: Annotated[
        Literal["random", "first"],
        typer.Option(
            help="random: drawn by seed, fewer within more. first: files in order, seed s takes "
            "the s-th lot, as the AnomalyDINO code does."
        ),
    ] = "random",
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="Names, files of weights, or NAME=FILE; METHOD: before it is for that method "
            "alone.",
            show_default="dinov2_vits14",
        ),
    ] = None,
    resolution: Annotated[
        list[str] | None,
        typer.Option(help="Smaller side in pixels.", show_default="the backbone's own"),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE,VALUE",
            help="Values of any option of the method, as rotations=none,agnostic. A plus joins "
            "the parts of one value: layers=2+3,3. METHOD:NAME=VALUE is for that method alone.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Where features are kept between cells and runs.",
            show_default="in the user's folder of caches",
        ),
    ] = None,
    cache_limit: Annotated[float, typer.Option(help="What they may take, in GB.")] = 20.0,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute features anew for every cell.")
    ] = False,
    maps: Annotated[
        bool, typer.Option("--maps", help="Keep every anomaly map, in half precision.")
    ] = False,
    class_names: Annotated[
        str | None,
        typer.Option(
            "--class-names",
            help="What the parts are called, for methods that read: a JSON or CSV file with a name "
            "for each category, or `categories`, which takes the categories' own.",
            show_default="object",
        ),
    ] = None,
    device: options.Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what is missing; run nothing.")
    ] = False,
) -> None:
    """Run a grid of cells over data sets; a rerun does only what is missing.

    The same command may run in several terminals, or on several machines over one shared folder:
    each takes cells that no other is at.
    """
    if preset == "list":
        _list_presets()
        return
    from offnominal.backbones.cache import FeatureCache, default_cache
    from offnominal.benchmark.plan import make_plan
    from offnominal.benchmark.runner import Runner
    from offnominal.benchmark.store import Plan, Store, require

    for package in ("pyarrow", "filelock"):
        require(package, "benchmark")
    roots: list[Path | None] = list(data) if data else [None]
    datasets = [
        open_from_options(
            root,
            layout,
            ",".join(categories) if categories else None,
            good,
            defects,
            masks,
            test_good,
            train_share,
            frame_step,
            mask_threshold,
        )
        for root in roots
    ]
    request, name, title, axes = _request(
        preset, method, shots, seeds, sampling, backbone, resolution, sets
    )
    if class_names is not None:
        request = replace(request, class_names=_names(class_names, datasets))
    for dataset in datasets:
        for note in dataset.notes:
            say(f"{dataset.name}: {note}")
    work = make_plan(datasets, request)
    for text in work.impossible:
        say(f"left out: {text}")
    store = Store(output)
    missing = [cell for cell in work.cells if not store.has(cell)]
    say(f"{len(work.cells)} cells, {len(missing)} to run")
    if dry_run:
        for cell in work.cells:
            typer.echo(f"{'there' if store.has(cell) else 'to run':<8}{cell.name}")
        return
    store.add_plan(Plan(name, title, axes, tuple(cell.name for cell in work.cells)))
    kept = None
    if not no_cache and request.cached:
        kept = FeatureCache(cache or default_cache(), int(cache_limit * _GB))
    runner = Runner(work, store, kept, device, maps)
    with progress_bar(None) as advance:
        outcome = runner.run(advance, _tell)
    _sum_up(outcome, output, bool(kept))


def _request(
    preset: str | None,
    method: list[str] | None,
    shots: list[str] | None,
    seeds: int,
    sampling: Literal["random", "first"],
    backbone: list[str] | None,
    resolution: list[str] | None,
    sets: list[str] | None,
) -> "tuple[Request, str, str, tuple[str, ...]]":
    """What is asked for: the preset's settings, with those that were given in their place."""
    from offnominal.benchmark.grid import parse_sets
    from offnominal.benchmark.plan import Request, varied
    from offnominal.benchmark.presets import PRESETS

    if preset is not None and preset not in PRESETS:
        raise OptionError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset] if preset is not None else None
    methods = _split(method) or ([chosen.method] if chosen else ["anomalydino"])
    given = list(sets or [])
    if resolution:
        given.append(f"resolution={','.join(_split(resolution))}")
    settings: dict[str, Any] = {k: list(v) for k, v in chosen.sets.items()} if chosen else {}
    settings |= parse_sets(given, methods)
    numbers = [_shots(text) for text in _split(shots)] or list(chosen.shots if chosen else (1,))
    request = Request(
        methods=methods,
        shots=numbers,
        seeds=seeds,
        sampling=sampling,
        backbones=_split(backbone),
        sets=settings,
        cached=chosen.cached if chosen else True,
    )
    if chosen:
        axes = tuple(dict.fromkeys((*chosen.axes, *varied(request))))
        return request, chosen.name, chosen.title, axes
    return request, "grid", "Results", varied(request) or ("shots",)


def _names(given: str, datasets: "list[Dataset]") -> dict[str, str]:
    """What each category's parts are called."""
    if given == "categories":
        return {name: name for dataset in datasets for name in dataset.categories}
    from offnominal.language.names import read_class_names

    return read_class_names(given)


def _split(values: list[str] | None) -> list[str]:
    """Values given in a row, one by one, or separated by commas."""
    return [part for value in values or [] for part in value.split(",") if part]


def _shots(text: str) -> int | None:
    if text in ("full", "all"):
        return None
    try:
        return int(text)
    except ValueError as error:
        raise OptionError(f"--shots {text}: give numbers, or full") from error


def _tell(cell: "Cell", figures: dict[str, float]) -> None:
    wanted = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("aupro", "AUPRO"))
    known = [
        f"{words} {100 * figures[key]:.1f}"
        for key, words in wanted
        if not math.isnan(figures.get(key, math.nan))
    ]
    say(f"{cell.name}: {', '.join(known) or 'no figure is defined'}")


def _sum_up(outcome: "Outcome", output: Path, cached: bool) -> None:
    said = [f"{outcome.finished} cells run"]
    if outcome.before:
        said.append(f"{outcome.before} were there")
    if outcome.elsewhere:
        said.append(f"{outcome.elsewhere} are being run by another process")
    if cached and outcome.finished:
        said.append(
            f"features of {outcome.computed:,} views computed, of {outcome.from_cache:,} found"
        )
    say("; ".join(said))
    if outcome.untrained:
        reasons = "; ".join(sorted(outcome.untrained))
        say(f"weights not pretrained ({reasons}): these figures say nothing about the methods")
    for text in sorted(outcome.unreadable):
        say(f"left out: {text}")
    for text in outcome.failed:
        say(f"failed: {text}")
    typer.echo(f"Make the page with: offnominal report {output}")
    if outcome.failed:
        raise typer.Exit(USAGE)
    if outcome.unreadable:
        raise typer.Exit(UNREADABLE)


def _list_presets() -> None:
    from offnominal.benchmark.presets import PRESETS

    for preset in PRESETS.values():
        typer.echo(f"{preset.name:<22}{preset.title}")
