"""Finished cells gathered into setups: what is left when category and seed are averaged over."""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from offnominal.benchmark.published import Published, find_published
from offnominal.benchmark.store import FinishedCell
from offnominal.errors import DatasetError
from offnominal.report.words import METRICS, setting_words

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["Setup", "Summary", "best_setup", "gather", "label_setups", "varying"]

_SETTINGS = ("dataset", "method", "shots", "sampling")
_NEEDED = (*_SETTINGS, "options", "category", "seed", "cached", "samples", "data")


class Summary(NamedTuple):
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


@dataclass(eq=False)
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
    dataset, method : str
    shots : int or None
        Number of references; None is all.
    untrained : str
        Why its figures say nothing of the method; empty if nothing is known against them.
    """

    settings: dict[str, Any]
    cells: dict[tuple[str, int], FinishedCell] = field(default_factory=dict)
    expected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    label: str = ""
    names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.dataset: str = self.settings["dataset"]
        self.method: str = self.settings["method"]
        self.shots: int | None = self.settings["shots"]
        self.untrained: str = self.settings["untrained"]

    @cached_property
    def categories(self) -> list[str]:
        """Categories with a finished cell, sorted."""
        return sorted({category for category, _ in self.cells})

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds with a finished cell, sorted."""
        return sorted({seed for _, seed in self.cells})

    @cached_property
    def unscored(self) -> tuple[int, int]:
        """Images that got no score, and images that were to get one, over all cells."""
        failed = sum(cell.unscored for cell in self.cells.values())
        return failed, failed + sum(c.metrics.get("images", 0) for c in self.cells.values())

    def value(self, axis: str) -> Any:
        """A setting or an option, by name; None if the setup has no such option."""
        options: dict[str, Any] = self.settings["options"]
        return self.settings[axis] if axis in self.settings else options.get(axis)

    def mean(self, metric: str, category: str | None = None) -> Summary:
        """A figure of one category over the seeds, or the mean over all categories.

        For each seed the figures of the categories are averaged first, as the papers do. Seeds
        that lack a category are left out; if all of them do, the categories that they have in
        common are averaged, and ``whole`` is False.
        """
        return self._summary(self._figures, metric, category)

    def failures_as_wrong(self, metric: str, category: str | None = None) -> Summary | None:
        """The same with images that got no score counted as wrong.

        None where every image got one, and for figures of pixels.
        """
        cells = [c for (name, _), c in self.cells.items() if category in (None, name)]
        if not any(metric in c.metrics.get("failures_as_wrong", {}) for c in cells):
            return None
        return self._summary(self._failures, metric, category)

    def compared(self, metric: str, category: str | None = None) -> Summary:
        """The figure that is compared with other setups': an answer refused is no answer saved.

        Of weights that are not pretrained it is never ``whole``.
        """
        own = self.failures_as_wrong(metric, category) or self.mean(metric, category)
        return own._replace(whole=own.whole and not self.untrained)

    def published(self, metric: str, category: str | None = None) -> Published | None:
        """What the authors printed for the same; None too if our weights were not pretrained."""
        if self.untrained or not self.mean(metric, category).whole:
            return None
        # The resolution that a default stood for is as good as one that was given.
        options = dict(self.settings["options"])
        backbone = next(iter(self.cells.values())).run.get("backbone") or {}
        options["resolution"] = options.get("resolution") or backbone.get("resolution")
        stated = self.settings | {"options": options}
        return find_published(stated, metric, self.expected.get(metric, ()), category)

    @cached_property
    def _figures(self) -> "DataFrame":
        return _frame(self.cells, "figures")

    @cached_property
    def _failures(self) -> "DataFrame":
        return _frame(self.cells, "failures_as_wrong")

    def _summary(self, figures: "DataFrame", metric: str, category: str | None) -> Summary:
        wanted = list(self.expected.get(metric, ())) if category is None else [category]
        if metric not in figures or not wanted:
            return Summary(math.nan, math.nan, 0, False)
        table = figures[metric].reindex(columns=wanted)
        complete = table.dropna()
        if category is not None or len(complete):
            return _over_seeds(complete.mean(axis=1))
        some = table.dropna(how="all")
        common = some.dropna(axis=1)
        if common.empty:
            common = some[:1].dropna(axis=1)
        return _over_seeds(common.mean(axis=1))._replace(whole=False)


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
    found = sorted(setups.values(), key=_order)
    expected: dict[str, dict[str, set[str]]] = {}
    for setup in found:
        for (category, _), cell in setup.cells.items():
            for metric, value in cell.metrics["figures"].items():
                if not math.isnan(value):
                    metrics = expected.setdefault(setup.dataset, {})
                    metrics.setdefault(metric, set()).add(category)
    for setup, label in zip(found, label_setups(found), strict=True):
        metrics = expected.get(setup.dataset, {})
        setup.expected = {metric: tuple(sorted(names)) for metric, names in metrics.items()}
        setup.label = label
    return found


def varying(setups: Sequence[Setup], first: Collection[str] = ()) -> list[str]:
    """The settings that tell setups apart, those named `first` before the others.

    A setting that follows from those before it is left out: a backbone's own resolution says
    nothing that the backbone does not.
    """
    options = sorted({name for setup in setups for name in setup.settings["options"]})

    def kinds(axes: Sequence[str]) -> int:
        return len({json.dumps([s.value(a) for a in axes], sort_keys=True) for s in setups})

    chosen = [axis for axis in first if kinds([axis]) > 1]
    # Digests of weight files come last: they tell only what no name does.
    for axis in [*_SETTINGS, *(o for o in options if o != "weights"), "weights", "untrained"]:
        if kinds([*chosen, axis]) > kinds(chosen):
            chosen.append(axis)
    return chosen


def label_setups(setups: Sequence[Setup], first: Collection[str] = ()) -> list[str]:
    """Words that tell setups apart, such as ``anomalydino, 8 images``."""
    axes = varying(setups, first) or ["method"]
    return [", ".join(setting_words(a, s.value(a), alone=True) for a in axes) for s in setups]


def best_setup(setups: Sequence[Setup], metric: str = "image_auroc") -> Setup | None:
    """The setup with the best mean among those that can be compared; None if there is none."""
    ranked = [
        (summary.mean if METRICS[metric].higher else -summary.mean, -order, setup)
        for order, setup in enumerate(setups)
        if (summary := setup.compared(metric)).whole
    ]
    return max(ranked, key=lambda each: each[:2])[2] if ranked else None


def _order(setup: Setup) -> tuple[Any, ...]:
    """Data set, method, options, then shots from few to all."""
    shots = math.inf if setup.shots is None else setup.shots
    options = json.dumps(setup.settings["options"], sort_keys=True)
    return setup.dataset, setup.method, options, setup.settings["sampling"], shots


def _frame(cells: dict[tuple[str, int], FinishedCell], over: str) -> "DataFrame":
    """A row a seed, a column a figure and category; those of `over` in place of plain ones."""
    import pandas as pd

    rows = [cell.metrics["figures"] | cell.metrics.get(over, {}) for cell in cells.values()]
    places = pd.MultiIndex.from_tuples(cells, names=["category", "seed"])
    return pd.DataFrame(rows, places, dtype=float).unstack("category")


def _over_seeds(values: "Series") -> Summary:
    return Summary(float(values.mean()), float(values.std()), len(values), len(values) > 0)
