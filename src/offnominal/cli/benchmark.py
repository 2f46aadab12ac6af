"""``offnominal benchmark``: grids over data sets, methods, options, shots and seeds."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offnominal.cli import options
from offnominal.cli.command import named
from offnominal.cli.datasets import open_from_options
from offnominal.cli.option import MethodOptions, Option, method_options
from offnominal.cli.stop import telling
from offnominal.cli.terminal import UNREADABLE, USAGE, progress_bar, say
from offnominal.errors import OptionError

if TYPE_CHECKING:
    from offnominal.benchmark.cell import Cell
    from offnominal.benchmark.plan import Work
    from offnominal.benchmark.presets import Preset
    from offnominal.benchmark.runner import Outcome
    from offnominal.benchmark.store import Store
    from offnominal.datasets import Dataset


def benchmark(
    output: Annotated[Path, "-o"],
    given: dict[str, Any],
    data: list[Path] | None = None,
    categories: list[str] | None = None,
    preset: str | None = None,
    method: list[str] | None = None,
    shots: list[str] | None = None,
    seeds: int = 3,
    sampling: Literal["random", "first"] = "random",
    backbone: list[str] | None = None,
    sets: Annotated[list[str] | None, "--set NAME=VALUE,VALUE"] = None,
    cache: options.Cache = None,
    cache_limit: options.CacheLimit = 20.0,
    no_cache: options.NoCache = False,
    maps: bool = False,
    class_names: str | None = None,
    labelled: list[str] | None = None,
    marks: Literal["both", "with", "without"] = "both",
    left_out: bool = True,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    dry_run: bool = False,
    workers: Annotated[int | None, "--workers N"] = None,
    ray: Annotated[str | None, "--ray auto|ADDRESS"] = None,
    **folders: Any,
) -> None:
    """Run a grid of cells over data sets; a rerun does only what is missing.

    The same command may run in several terminals, or on several machines over one shared folder:
    each takes cells that no other is at. Options of the methods take several values, as with --set.

    Parameters
    ----------
    output : path
        Folder of results; finished cells are kept.
    data : list of path or None
        Folders of data sets, or manifests; or name --good and --defects.
    categories : list of str or None
        Only these.
    preset : str or None
        A question, with the settings that answer it; other options change it. `--preset list`
        names them.
    method : list of str or None
        See `offnominal methods`; anomalydino if none is named. With --help after them, their
        options are shown.
    shots : list of str or None
        Numbers of references, or full; else 1.
    seeds : int
        Number of draws of the references.
    sampling : {"random", "first"}
        random: drawn by seed, fewer within more. first: files in order, seed s takes the s-th lot,
        as the AnomalyDINO code does.
    backbone : list of str or None
        Names, files of weights, or NAME=FILE; METHOD: before it is for that method alone.
    sets : list of str or None
        Values of an option of the methods, as rotations=none,agnostic. A plus joins the parts of
        one value: layers=2+3,3. METHOD:NAME=VALUE is for that method alone.
    maps : bool
        Keep every anomaly map, in half precision.
    class_names : str or None
        What the parts are called, for methods that read: a JSON or CSV file with a name for each
        category, or `categories`, which takes the categories' own.
    labelled : list of str or None
        Numbers of labelled defects to learn from, as 0 1 2 5. They are drawn from those of the
        test, and all numbers of a draw are tested on the same rest.
    marks : {"both", "with", "without"}
        Learn from these with their masks, without, or once with and once without.
    left_out : bool
        In each draw learn nothing of one kind of defect, and test on that one apart.
    dry_run : bool
        List the cells and what is missing; run nothing.
    workers : int or None
        Run by so many processes; cells that share a fit go to the same one.
    ray : str or None
        The same by a Ray cluster, or by this machine where auto finds none; one worker a GPU or
        CPU, unless --workers says how many. Data and results lie where all machines reach them.
    """
    if preset == "list":
        from offnominal.benchmark.presets import PRESETS

        for known in PRESETS.values():
            typer.echo(f"{known.name:<22}{known.title}")
        return
    done: list[str] = []

    def left() -> str:
        return f"{len(done)} cells run and kept in {output}; the same command goes on with the rest"

    methods, asked = _split(method) or [*_preset(preset).methods], _preset(preset)
    from offnominal.cli.mistakes import check_engine

    check_engine(engine)
    _check(output, methods, seeds, device, _split(backbone))
    numbers = [_shots(text) for text in _split(shots)] or asked.shots
    with telling(left):
        wanted = ",".join(categories) if categories else None
        roots: list[Path | None] = [*data] if data else [None]
        datasets = [open_from_options(root, categories=wanted, **folders) for root in roots]
        from offnominal.benchmark.grid import parse_sets
        from offnominal.benchmark.plan import Request, make_plan, varied
        from offnominal.benchmark.runner import Runner
        from offnominal.benchmark.store import Plan, Store, StoreError, require

        require("pyarrow", "offnominal benchmark")
        texts = [f"{name}={','.join(values)}" for name, values in given.items() if values]
        request = Request(
            methods=methods,
            shots=numbers,
            seeds=seeds,
            sampling=sampling,
            backbones=_split(backbone),
            sets={**asked.sets_for(methods), **parse_sets([*(sets or []), *texts], methods)},
            cached=asked.cached,
            class_names=_names(class_names, datasets),
            labelled=[_labelled(text) for text in _split(labelled)] or asked.labelled,
            marks={"both": (False, True), "with": (True,), "without": (False,)}[marks],
            leave_out=left_out,
        )
        store = Store(output)
        images = sum(len(dataset.samples) for dataset in datasets)
        say(f"reading {images:,} images, to know what the cells are of")
        with progress_bar(None) as advance:
            work = make_plan(datasets, request, advance)
        _announce(datasets, work, store, dry_run)
        if dry_run:
            return
        for (dataset, category), contents in work.contents.items():
            if changes := store.note(dataset, category, contents):
                say(f"{dataset}, {category}: {changes}; these are cells of their own")
        axes = (*(asked.axes if preset else ()), *varied(request)) or ("shots",)
        cells = tuple(cell.name for cell in work.cells)
        store.add_plan(Plan(asked.name, asked.title, tuple(dict.fromkeys(axes)), cells))
        kept = None if no_cache or not request.cached else options.open_cache(cache, cache_limit)

        def finished(cell: "Cell", figures: dict[str, float]) -> None:
            done.append(cell.name)
            _tell(cell, figures)

        try:
            if workers is not None or ray is not None:
                from offnominal.scale.cells import Cells, run_cells
                from offnominal.scale.engines import engine_for

                there = (kept.folder, kept.limit) if kept else None
                function = Cells(work, output, there, device, maps, engine)
                outcome = run_cells(function, store, engine_for(workers, ray), finished)
                _sum_up(outcome, output, bool(kept))
                return
            with progress_bar(None) as advance:
                outcome = Runner(work, store, kept, device, maps, engine).run(
                    advance, finished, _Waiting()
                )
        except StoreError:
            say(left())
            raise
        _sum_up(outcome, output, bool(kept))


def _check(output: Path, methods: list[str], seeds: int, device: str, backbones: list[str]) -> None:
    """Refuse what cannot be, before anything heavy is imported."""
    from offnominal.backbones.names import check_name
    from offnominal.benchmark.grid import of_method
    from offnominal.cli.mistakes import check_device
    from offnominal.detectors.registry import light_class

    options.check_no_url(output)
    if output.exists() and not output.is_dir():
        raise OptionError(f"-o {output}: is a file; name a folder for the results")
    if seeds < 1:
        raise OptionError(f"--seeds {seeds}: give 1 or more")
    check_device(device)
    for name in methods:
        light_class(name)
    for text in backbones:
        _, told = of_method(text)
        if "=" not in told and not Path(told).exists() and not Path(told).suffix:
            check_name(told)


def benchmark_options(args: list[str]) -> MethodOptions:
    """The options of all the methods that a command line names."""
    preset = next(reversed(named(args, "--preset")), None)
    known = _preset(None if preset == "list" else preset)
    methods = _split(named(args, "--method", many=True)) or [*known.methods]
    found: dict[str, Option] = {}
    for method in methods:
        for option in method_options(method, without=("device", "engine", "weights", "backbone")):
            found.setdefault(option.name, option)
    return ", ".join(methods), list(found.values())


def _preset(name: str | None) -> "Preset":
    """The question that a name stands for; without one, a plain grid."""
    from offnominal.benchmark.presets import PRESETS, Preset

    if name is None:
        return Preset("grid", "Results")
    if name not in PRESETS:
        raise OptionError(f"--preset {name}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _announce(datasets: "list[Dataset]", work: "Work", store: "Store", every: bool) -> None:
    """Say what will be run, and what is odd about it."""
    for dataset in datasets:
        for note in dataset.notes:
            say(f"{dataset.name}: {note}")
    for text in work.impossible:
        say(f"left out: {text}")
    missing = [cell for cell in work.cells if not store.has(cell)]
    say(f"{len(work.cells)} cells, {len(missing)} to run")
    for cell in work.cells if every else ():
        typer.echo(f"{'to run' if cell in missing else 'there':<8}{cell.name}")


def _names(given: str | None, datasets: "list[Dataset]") -> dict[str, str] | None:
    """What each category's parts are called."""
    if given is None:
        return None
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
    if not text.isdigit():
        raise OptionError(f"--shots {text}: give numbers, or full")
    return int(text)


def _labelled(text: str) -> int:
    if not text.isdigit():
        raise OptionError(f"--labelled {text}: give numbers, 0 for none")
    return int(text)


class _Waiting:
    """Says once of each cell that another process is at it."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, cell: "Cell") -> None:
        if cell.name not in self._told:
            self._told.add(cell.name)
            say(f"{cell.name}: another process is at it; waiting for that one to end")


def _tell(cell: "Cell", figures: dict[str, float]) -> None:
    wanted = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
    known = [f"{words} {100 * figures[key]:.1f}" for key, words in wanted.items()
             if not math.isnan(figures.get(key, math.nan))]  # fmt: skip
    say(f"{cell.name}: {', '.join(known) or 'no figure is defined'}")


def _sum_up(outcome: "Outcome", output: Path, cached: bool) -> None:
    features = f"features of {outcome.computed:,} views computed, of {outcome.from_cache:,} found"
    facts = [
        (True, f"{outcome.finished} cells run"),
        (outcome.before, f"{outcome.before} were there"),
        (cached and outcome.finished, features),
    ]
    say("; ".join(words for told, words in facts if told))
    if outcome.untrained:
        reasons = "; ".join(sorted(outcome.untrained))
        say(f"weights not pretrained ({reasons}): these figures say nothing about the methods")
    for text in outcome.notes:
        say(text)
    for text in sorted(outcome.unreadable):
        say(f"left out: {text}")
    for text in outcome.failed:
        say(f"failed: {text}")
    typer.echo(f"Make the page with: offnominal report {output}")
    if outcome.failed or outcome.unreadable:
        raise typer.Exit(USAGE if outcome.failed else UNREADABLE)
