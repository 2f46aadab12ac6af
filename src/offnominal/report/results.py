"""Finished cells gathered into setups: what is left when category and seed are averaged over."""

import json
import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from offnominal.benchmark.published import Published, find_published
from offnominal.benchmark.store import FinishedCell
from offnominal.errors import DatasetError
from offnominal.report.words import DAGGER, METRICS, setting_words

__all__ = ["Setup", "Summary", "best_setup", "gather", "label_setups", "varying"]

_SETTINGS = ("dataset", "method", "shots", "sampling")
_NEEDED = (*_SETTINGS, "options", "category", "seed", "cached", "samples", "data")


@dataclass(frozen=True)
class Summary:
    """A figure over seeds.

    Attributes
    ----------
    mean : float
        nan if the figure is not defined.
    std : float
        Sample standard deviation over the seeds (divided by n - 1); nan for one seed.
    seeds : int
        Seeds that the mean is over.
    whole : bool
        Whether every category was finished, so that the mean may be compared with others.
    """

    mean: float
    std: float
    seeds: int
    whole: bool = True


@dataclass
class Setup:
    """Cells that differ in nothing but category and seed.

    Attributes
    ----------
    settings : dict
        ``dataset``, ``method``, ``shots``, ``sampling``, ``options`` and ``untrained``.
    cells : dict of (str, int) to FinishedCell
        By category and seed.
    expected : dict of str to tuple of str
        For each figure the categories for which any setup of the data set has it, sorted.
    label : str
        What tells the setup from the others, in words.
    names : set of str
        Names of all its cells, those included for which another stands.
    counted : {"figures", "failures_as_wrong"}
        Which of a cell's figures count where it has them.
    """

    settings: dict[str, Any]
    cells: dict[tuple[str, int], FinishedCell] = field(default_factory=dict)
    expected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    label: str = ""
    names: set[str] = field(default_factory=set)
    counted: str = "figures"

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.settings["dataset"])

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.settings["method"])

    @property
    def shots(self) -> int | None:
        """Number of references; None is all."""
        shots: int | None = self.settings["shots"]
        return shots

    @property
    def untrained(self) -> str:
        """Why its figures say nothing of the method; empty if nothing is known against them."""
        return str(self.settings["untrained"])

    @cached_property
    def unscored(self) -> tuple[int, int]:
        """Images that got no score, and images that were to get one, over all cells."""
        failed = sum(cell.unscored for cell in self.cells.values())
        return failed, failed + sum(c.metrics.get("images", 0) for c in self.cells.values())

    @cached_property
    def stated(self) -> dict[str, Any]:
        """The settings, with the resolution that a default stood for."""
        options = dict(self.settings["options"])
        backbone = next(iter(self.cells.values())).run.get("backbone") or {}
        options["resolution"] = options.get("resolution") or backbone.get("resolution")
        return self.settings | {"options": options}

    @cached_property
    def categories(self) -> list[str]:
        """Categories with a finished cell, sorted."""
        return sorted({category for category, _ in self.cells})

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds with a finished cell, sorted."""
        return sorted({seed for _, seed in self.cells})

    def value(self, axis: str) -> Any:
        """A setting or an option, by name; None if the setup has no such option."""
        return self.settings[axis] if axis in _SETTINGS else self.settings["options"].get(axis)

    def in_category(self, metric: str, category: str) -> Summary:
        """A figure of one category over the seeds."""
        return _summarise([self._figure(metric, category, seed) for seed in self.seeds])

    def failures_as_wrong(self, metric: str, category: str | None = None) -> Summary | None:
        """A category's figure, or the mean, with images that got no score counted as wrong.

        None where every image got one, and for figures of pixels.
        """
        cells = [c for (name, _), c in self.cells.items() if category in (None, name)]
        if not any(metric in c.metrics.get("failures_as_wrong", {}) for c in cells):
            return None
        other = Setup(self.settings, self.cells, self.expected, counted="failures_as_wrong")
        return other.mean(metric) if category is None else other.in_category(metric, category)

    def compared(self, metric: str, category: str | None = None) -> Summary:
        """The figure that is compared with other setups': an answer refused is no answer saved."""
        own = self.mean(metric) if category is None else self.in_category(metric, category)
        return self.failures_as_wrong(metric, category) or own

    def published(self, metric: str, category: str | None = None) -> Published | None:
        """What the authors printed for the same; None too if our weights were not pretrained."""
        if self.untrained:
            return None
        return find_published(self.stated, metric, self.expected.get(metric, ()), category)

    def mean(self, metric: str) -> Summary:
        """The mean over categories, and its spread over seeds.

        For each seed the figures of the categories are averaged first, as the papers do. Seeds
        that lack a category are left out; if all of them do, the categories that they have in
        common are averaged, and ``whole`` is False.
        """
        wanted = set(self.expected.get(metric, ()))
        found = {
            seed: {c for c in wanted if not math.isnan(self._figure(metric, c, seed))}
            for seed in self.seeds
        }
        found = {seed: has for seed, has in found.items() if has}
        if not found:
            return Summary(math.nan, math.nan, 0, False)
        complete = [seed for seed, has in found.items() if has == wanted]
        common = set.intersection(*found.values())
        seeds = complete or (list(found) if common else list(found)[:1])
        chosen = wanted if complete else common or found[seeds[0]]
        summary = _summarise(
            [
                statistics.fmean(self._figure(metric, c, seed) for c in sorted(chosen))
                for seed in seeds
            ]
        )
        return Summary(summary.mean, summary.std, summary.seeds, bool(complete))

    def _figure(self, metric: str, category: str, seed: int) -> float:
        cell = self.cells.get((category, seed))
        if cell is None:
            return math.nan
        figures = cell.metrics["figures"] | cell.metrics.get(self.counted, {})
        return float(figures.get(metric, math.nan))


def gather(cells: Sequence[FinishedCell]) -> list[Setup]:
    """Cells as setups, sorted by data set, method, options and shots, each with its label.

    Cells that differ only in whether features came from a cache have equal figures, and are one
    cell here; the one that was timed without a cache stands for both.

    Raises
    ------
    DatasetError
        If the settings of a cell lack something.
    """
    setups: dict[str, Setup] = {}
    for cell in cells:
        lacks = [name for name in _NEEDED if name not in cell.settings]
        if lacks:
            raise DatasetError(
                f"{cell.folder / 'settings.json'}: lacks {', '.join(lacks)}; delete the cell's "
                "folder, and run the benchmark again"
            )
        settings = {name: cell.settings[name] for name in (*_SETTINGS, "options")}
        settings["untrained"] = cell.untrained
        setup = setups.setdefault(json.dumps(settings, sort_keys=True), Setup(settings))
        setup.names.add(cell.name)
        place = cell.settings["category"], cell.settings["seed"]
        if place not in setup.cells or not cell.settings["cached"]:
            setup.cells[place] = cell
    found = sorted(setups.values(), key=sort_key)
    names = {setup.dataset for setup in found}
    expected = {name: _expected([s for s in found if s.dataset == name]) for name in names}
    for setup in found:
        setup.expected = expected[setup.dataset]
    for setup, label in zip(found, label_setups(found), strict=True):
        setup.label = label
    return found


def sort_key(setup: Setup) -> tuple[Any, ...]:
    """Order of setups: data set, method, options, then shots from few to all."""
    shots = math.inf if setup.shots is None else setup.shots
    options = json.dumps(setup.settings["options"], sort_keys=True)
    return setup.dataset, setup.method, options, setup.settings["sampling"], shots


def varying(setups: Sequence[Setup], first: Collection[str] = ()) -> list[str]:
    """The settings that tell setups apart, those named `first` before the others.

    A setting that follows from those before it is left out: a backbone's own resolution says
    nothing that the backbone does not.
    """
    options = sorted({name for setup in setups for name in setup.settings["options"]})
    chosen = [axis for axis in first if len({_key(setup, axis) for setup in setups}) > 1]
    # Digests of weight files come last: they tell only what no name does.
    for axis in [*_SETTINGS, *(o for o in options if o != "weights"), "weights"]:
        known: dict[str, str] = {}
        for setup in setups:
            place = json.dumps([setup.value(each) for each in chosen], sort_keys=True)
            value = json.dumps(setup.value(axis), sort_keys=True)
            if known.setdefault(place, value) != value:
                chosen.append(axis)
                break
    return chosen


def label_setups(setups: Sequence[Setup], first: Collection[str] = ()) -> list[str]:
    """Words that tell setups apart, such as ``anomalydino, 8 images``.

    Those whose figures say nothing of the method, since weights were not pretrained, have a dagger.
    """
    axes = varying(setups, first) or ["method"]
    return [
        ", ".join(setting_words(a, s.value(a), alone=True) for a in axes)
        + DAGGER * bool(s.untrained)
        for s in setups
    ]


def best_setup(setups: Sequence[Setup], metric: str = "image_auroc") -> Setup | None:
    """The setup with the best mean among those that can be compared; None if there is none.

    Every category must be finished, and the weights pretrained.
    """
    ranked = [
        (summary.mean if METRICS[metric].higher else -summary.mean, -order, setup)
        for order, setup in enumerate(setups)
        if (summary := setup.compared(metric)).whole
        and not math.isnan(summary.mean)
        and not setup.untrained
    ]
    return max(ranked, key=lambda each: each[:2])[2] if ranked else None


def _key(setup: Setup, axis: str) -> str:
    return json.dumps(setup.value(axis), sort_keys=True)


def _expected(setups: Sequence[Setup]) -> dict[str, tuple[str, ...]]:
    """For each figure the categories for which at least one cell has it."""
    found: dict[str, set[str]] = {}
    for setup in setups:
        for (category, _), cell in setup.cells.items():
            for metric, value in cell.metrics["figures"].items():
                if not math.isnan(value):
                    found.setdefault(metric, set()).add(category)
    return {metric: tuple(sorted(names)) for metric, names in found.items()}


def _summarise(values: Sequence[float]) -> Summary:
    defined = [value for value in values if not math.isnan(value)]
    std = statistics.stdev(defined) if len(defined) > 1 else math.nan
    return Summary(statistics.fmean(defined) if defined else math.nan, std, len(defined))
