"""From what was asked for to cells: every data set, category, method, setting, shots and seed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offnominal.benchmark.cell import Cell
from offnominal.benchmark.grid import chosen_for, of_method, variants
from offnominal.benchmark.store import relative
from offnominal.datasets import Dataset, draw_shots
from offnominal.datasets.shots import Sampling
from offnominal.detectors.registry import METHODS
from offnominal.errors import OptionError

__all__ = ["Request", "Work", "make_plan", "samples_digest", "varied"]


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
    """

    methods: Sequence[str] = ("anomalydino",)
    shots: Sequence[int | None] = (1,)
    seeds: int = 3
    sampling: Sampling = "random"
    backbones: Sequence[str] = ()
    sets: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    cached: bool = True
    class_names: Mapping[str, str] | None = None


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
    """

    cells: list[Cell]
    datasets: dict[str, Dataset]
    files: dict[str, str]
    impossible: list[str]


def make_plan(datasets: Sequence[Dataset], request: Request) -> Work:
    """List the cells of a request.

    Raises
    ------
    OptionError
        If nothing can be run, two data sets have one name, or an option is wrong.
    """
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise OptionError(f"--data: two data sets are called {max(names, key=names.count)}")
    for text in request.backbones:
        of_method(text, request.methods, f"--backbone {text}")
    files: dict[str, str] = {}
    impossible: list[str] = []
    wanted = []
    for method in request.methods:
        found = variants(method, request.backbones, request.sets, files, impossible)
        draws = _draws(method, request, impossible)
        wanted += [(method, options, draws) for options in found]
    groups: dict[str, dict[str, Cell]] = {}
    for dataset in datasets:
        for category in dataset.categories:
            if not dataset.test(category):
                impossible.append(f"{dataset.name}, {category}: has no test image")
                continue
            samples = samples_digest(dataset, category)
            for method, options, draws in wanted:
                named = options
                if request.class_names is not None and "class_name" in options:
                    # As the papers have it, a category without a name is called as its folder is.
                    named = options | {"class_name": request.class_names.get(category, category)}
                for shots, seed in draws:
                    refused = _refused(dataset, category, shots, seed, request.sampling)
                    if refused:
                        impossible.append(refused)
                        continue
                    cell = Cell(
                        dataset.name,
                        category,
                        samples,
                        method,
                        shots,
                        seed,
                        request.sampling,
                        named,
                        request.cached,
                    )
                    groups.setdefault(cell.group, {})[cell.name] = cell
    said = list(dict.fromkeys(impossible))
    if not groups:
        raise OptionError("nothing can be run: " + "; ".join(said))
    cells = [cell for group in groups.values() for cell in group.values()]
    return Work(cells, dict(zip(names, datasets, strict=True)), files, said)


def varied(request: Request) -> tuple[str, ...]:
    """The settings that a request has several values of, first the one to draw a figure over."""
    several = [of_method(name)[1] for name, values in request.sets.items() if len(values) > 1]
    backbones = max(len(chosen_for(method, request.backbones)) for method in request.methods)
    counts = {"method": len(request.methods), "backbone": backbones, "shots": len(request.shots)}
    several += [name for name, count in counts.items() if count > 1]
    # Where some methods take no images, there is no line over their number to draw.
    blind = any(METHODS[method].references == "none" for method in request.methods)
    first = "method" if blind else "shots"
    return tuple(sorted(dict.fromkeys(several), key=lambda name: name != first))


def _draws(method: str, request: Request, impossible: list[str]) -> list[tuple[int | None, int]]:
    """Shots and seeds for a method; where nothing is drawn at random there is one seed only."""
    if request.seeds < 1:
        raise OptionError(f"--seeds {request.seeds}: give 1 or more")
    references = METHODS[method].references
    if references == "none":
        return [(0, 0)]
    draws: list[tuple[int | None, int]] = []
    for shots in dict.fromkeys(request.shots):
        if shots is not None and shots < 0:
            raise OptionError(f"--shots {shots}: give 0 (none), a number, or full")
        if shots == 0 and references == "required":
            impossible.append(f"{method} needs references: 0 shots are left out for it")
            continue
        draws += [(shots, seed) for seed in range(request.seeds if shots else 1)]
    return draws


def _refused(
    dataset: Dataset, category: str, shots: int | None, seed: int, sampling: Sampling
) -> str:
    """Why references cannot be drawn, or nothing."""
    if shots == 0:
        return ""
    train = dataset.train(category)
    if not train:
        return f"{dataset.name}, {category}: has no good training image to take as a reference"
    try:
        draw_shots(train, shots, seed, sampling)
    except OptionError as error:
        return f"{dataset.name}, {category}, {shots} shots, seed {seed}: {error}"
    return ""


def samples_digest(dataset: Dataset, category: str) -> str:
    """Which files a category has and what they are said to be, wherever the root lies."""
    lines = sorted(
        f"{relative(s.image, dataset.root)}\t{s.label}\t{s.split}\t{s.mask is not None}\n"
        for s in dataset.samples
        if s.category == category
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
