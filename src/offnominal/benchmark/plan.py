"""From what was asked for to cells: every data set, category, method, setting, shots and seed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offnominal.benchmark.cell import Cell, Tested
from offnominal.benchmark.draw import draw_defects, kind_left_out, parts
from offnominal.benchmark.grid import chosen_for, of_method, variants
from offnominal.datasets import Dataset, Sample, draw_shots
from offnominal.datasets.contents import Contents, read_contents
from offnominal.datasets.shots import Sampling
from offnominal.detectors.batch.base import BatchDetector
from offnominal.detectors.registry import METHODS, detector_class
from offnominal.errors import OptionError

__all__ = ["Request", "Work", "make_plan", "varied"]

Draws = list[tuple[int | None, int]]


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes
    ----------
    methods : sequence of str
    shots : sequence of int or None
        None: every training image.
    seeds : int
        Seeds 0 to ``seeds`` - 1; methods and cells that draw nothing have seed 0 only.
    sampling : {"first", "random"}
    backbones : sequence of str
        Names, files of weights that say what they are, or ``NAME=FILE``; empty: the default. With
        ``METHOD:`` before it one is for that method alone, in the place of the general ones.
    sets : mapping of str to sequence
        Values of detector options, by name or by ``METHOD:NAME``. One that a method does not have
        is left out for it.
    cached : bool
        Whether features may come from the cache.
    class_names : mapping of str to str or None
        What the parts of each category are called, for methods that read; None: ``class_name`` of
        the method, as ``sets`` gives it.
    labelled : sequence of int
        Numbers of labelled defects, taken from those of the test, to learn from; empty: none, and
        the test is on all of it.
    marks : sequence of bool
        Whether the masks of these are known.
    leave_out : bool
        Let each draw learn nothing of one kind of defect, the next kind for the next seed, and test
        on that one apart.
    part_of : callable
        Tells which part each of some images shows, by numbers; pictures of one are not divided.
    """

    methods: Sequence[str] = ("anomalydino",)
    shots: Sequence[int | None] = (1,)
    seeds: int = 3
    sampling: Sampling = "random"
    backbones: Sequence[str] = ()
    sets: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    cached: bool = True
    class_names: Mapping[str, str] | None = None
    labelled: Sequence[int] = ()
    marks: Sequence[bool] = (False, True)
    leave_out: bool = True
    part_of: Callable[[Sequence[Sample]], Mapping[Path, int]] = parts


@dataclass
class Work:
    """What is to be done.

    Attributes
    ----------
    cells : list of Cell
        Each once, those of a group together.
    datasets : dict of str to Dataset
    files : dict of str to str
        Files that options name, by their digest, which stands for them in the cells.
    impossible : list of str
        Cells that cannot be had, and why, in words.
    contents : dict of (str, str) to Contents
        What the files of each data set's categories held when the plan was made.
    part_of : dict of (str, str) to dict
        Which part each defective image shows, where defects are learned from.
    """

    cells: list[Cell]
    datasets: dict[str, Dataset]
    files: dict[str, str]
    impossible: list[str]
    contents: dict[tuple[str, str], Contents] = field(default_factory=dict)
    part_of: dict[tuple[str, str], Mapping[Path, int]] = field(default_factory=dict)


def make_plan(
    datasets: Sequence[Dataset],
    request: Request,
    progress: Callable[[str, int], None] | None = None,
) -> Work:
    """List the cells of a request; every file of the data sets is read, to know what they are of.

    ``progress`` hears of the category and how many of its files have been read.

    Raises
    ------
    OptionError
        If nothing can be run, two data sets have one name, or an option is wrong.
    """
    work = Work([], {dataset.name: dataset for dataset in datasets}, {}, [])
    if len(work.datasets) < len(datasets):
        names = [dataset.name for dataset in datasets]
        raise OptionError(f"--data: two data sets are called {max(names, key=names.count)}")
    if request.labelled and (min(request.labelled) < 0 or max(request.labelled) < 1):
        listed = " ".join(map(str, request.labelled))
        raise OptionError(f"--labelled {listed}: give numbers, 0 for none, and one above it")
    for text in request.backbones:
        of_method(text, request.methods, f"--backbone {text}")
    wanted = []
    for method in request.methods:
        found = variants(method, request.backbones, request.sets, work.files, work.impossible)
        draws = _draws(method, request, work.impossible)
        wanted += [(method, options, draws) for options in found]
    groups: dict[str, dict[str, Cell]] = {}
    for dataset in datasets:
        for category in dataset.categories:
            for cell in _cells(dataset, category, wanted, request, work, progress):
                groups.setdefault(cell.group, {})[cell.name] = cell
    work.cells = [cell for group in groups.values() for cell in group.values()]
    work.impossible = list(dict.fromkeys(work.impossible))
    if not work.cells:
        raise OptionError("nothing can be run: " + "; ".join(work.impossible))
    return work


def varied(request: Request) -> tuple[str, ...]:
    """The settings that a request has several values of, first the one to draw a figure over."""
    several = [of_method(name)[1] for name, values in request.sets.items() if len(values) > 1]
    backbones = max(len(chosen_for(method, request.backbones)) for method in request.methods)
    counts = {"method": len(request.methods), "backbone": backbones, "shots": len(request.shots)}
    several += [name for name, count in counts.items() if count > 1]
    # Where some methods take no images, there is no line over their number to draw.
    first = "shots" if all(map(takes_images, request.methods)) else "method"
    if request.labelled:
        first, several = "defects", ["defects", "marked", "tested", *several]
    return tuple(sorted(dict.fromkeys(several), key=lambda name: name != first))


def takes_images(method: str) -> bool:
    """Whether a method can be fitted to good images."""
    kind = detector_class(method)
    return kind.accepts_references and not issubclass(kind, BatchDetector)


def _draws(method: str, request: Request, impossible: list[str]) -> Draws:
    """Shots and seeds for a method; where nothing is drawn at random there is one seed only."""
    if request.seeds < 1:
        raise OptionError(f"--seeds {request.seeds}: give 1 or more")
    # A draw of defects is one of what is tested on as well.
    seeds = range(request.seeds)
    if not takes_images(method):
        return [(0, seed) for seed in (seeds if request.labelled else (0,))]
    draws: Draws = []
    for shots in dict.fromkeys(request.shots):
        if shots is not None and shots < 0:
            raise OptionError(f"--shots {shots}: give 0 (none), a number, or full")
        if shots == 0 and detector_class(method).needs_references:
            impossible.append(f"{method} needs references: 0 shots are left out for it")
        else:
            draws += [(shots, seed) for seed in (seeds if shots or request.labelled else (0,))]
    return draws


def _labels(method: str, request: Request, impossible: list[str]) -> list[tuple[int, bool]]:
    """Numbers of labelled defects, and whether their masks are known, that a method can use."""
    needed = METHODS[method].defects == "required"
    marks = list(dict.fromkeys(request.marks))
    use = getattr(detector_class(method), "use_of_marks", "used")
    if use == "ignored":  # would give the same figures twice
        marks = [False]
    elif use == "needed":
        marks = [known for known in marks if known]
    if not marks:
        impossible.append(f"{method} needs the masks of labelled defects: it is left out")
    found = []
    for number in dict.fromkeys(request.labelled):
        if number and not takes_images(method):
            impossible.append(
                f"{method} learns from no image: labelled defects are left out for it"
            )
        elif needed and not number:
            impossible.append(f"{method} needs labelled defects: 0 are left out for it")
        else:
            found += [(number, known) for known in (marks if number else [False])]
    return found


def _cells(
    dataset: Dataset,
    category: str,
    wanted: Sequence[tuple[str, dict[str, Any], Draws]],
    request: Request,
    work: Work,
    progress: Callable[[str, int], None] | None,
) -> Iterator[Cell]:
    """The cells of a category; ``work`` gets why some cannot be had, and what its files hold."""
    impossible = work.impossible
    place, train = f"{dataset.name}, {category}", dataset.train(category)
    test = dataset.test(category)
    if not test:
        impossible.append(f"{place}: has no test image")
        return
    files = [sample for sample in dataset.samples if sample.category == category]
    contents = read_contents(
        files,
        dataset.root,
        (lambda done: progress(f"{category}: read", done)) if progress else None,
    )
    work.contents[dataset.name, category] = contents
    if request.labelled:
        bad = [sample for sample in test if sample.label]
        work.part_of[dataset.name, category] = request.part_of(bad)
    for method, options, draws in wanted:
        named = options
        if request.class_names is not None and "class_name" in options:
            # As the papers have it, a category without a name is called as its folder is.
            named = options | {"class_name": request.class_names.get(category, category)}
        for shots, seed in draws:
            if shots != 0 and (refused := _refused(train, shots, seed, request.sampling)):
                impossible.append(f"{place}{refused}")
                continue
            cell = Cell(
                dataset.name,
                category,
                contents.digest,
                method,
                shots,
                seed,
                request.sampling,
                named,
                request.cached,
            )
            yield from _labelled(cell, test, request, work) if request.labelled else [cell]


def _labelled(cell: Cell, test: list[Sample], request: Request, work: Work) -> Iterator[Cell]:
    """The same with every number of labelled defects, and what each is tested on."""
    left_out = kind_left_out(test, cell.seed) if request.leave_out else None
    cell = replace(cell, set_aside=max(request.labelled), left_out=left_out)
    try:
        part_of = work.part_of[cell.dataset, cell.category]
        drawn = draw_defects(test, part_of, cell, work.datasets[cell.dataset].root)
    except OptionError as error:
        work.impossible.append(f"{cell.dataset}, {cell.category}, seed {cell.seed}: {error}")
        return
    tests: list[Tested] = ["all"] if left_out is None else ["known", "left out"]
    for defects, marked in _labels(cell.method, request, work.impossible):
        for tested in tests:
            own = replace(cell, defects=defects, marked=marked)
            yield replace(own, draw=drawn.digest, tested=tested)


def _refused(train: list[Sample], shots: int | None, seed: int, sampling: Sampling) -> str:
    """Why references cannot be drawn, or nothing."""
    if not train:
        return ": has no good training image to take as a reference"
    try:
        draw_shots(train, shots, seed, sampling)
    except OptionError as error:
        return f", {shots} shots, seed {seed}: {error}"
    return ""
