"""Finished cells gathered into setups: what is left when category and seed are averaged over."""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from offnominal.benchmark.published import Published, find_published
from offnominal.benchmark.store import FinishedCell
from offnominal.report.words import METRICS, setting_words
from offnominal.text import printable

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Setup", "Summary", "best_setup", "gather", "label_setups", "varying"]

_LABELS = ("defects", "marked", "tested", "set_aside")
_SETTINGS = ("dataset", "method", "shots", "sampling", *_LABELS)
_WRONG = ", failures as wrong"


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
        ``dataset``, ``method``, ``shots``, ``sampling``, ``defects``, ``marked``, ``tested``,
        ``set_aside``, ``options`` and ``untrained``.
    cells : dict of (str, int) to FinishedCell
        By category and seed.
    names : set of str
        Names of all its cells, those included for which another stands.
    expected : dict of str to list of str
        For each figure the categories for which any setup of the data set has it, sorted.
    label : str
        What tells the setup from the others, in words.
    dataset, method : str
    shots : int or None
        Number of references; None is all.
    untrained : str
        Why its figures say nothing of the method; empty if nothing is known against them.
    """

    settings: dict[str, Any]
    cells: dict[tuple[str, int], FinishedCell] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    expected: dict[str, list[str]] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        self.dataset: str = self.settings["dataset"]
        self.method: str = self.settings["method"]
        self.shots: int | None = self.settings["shots"]
        self.untrained: str = self.settings["untrained"]

    @property
    def unscored(self) -> tuple[int, int]:
        """Images that got no score, and images that were to get one, over all cells."""
        failed = sum(cell.unscored for cell in self.cells.values())
        return failed, failed + sum(c.metrics.get("images", 0) for c in self.cells.values())

    def value(self, axis: str) -> Any:
        """A setting or an option, by name; None if the setup has no such option."""
        return (self.settings["options"] | self.settings).get(axis)

    def mean(self, metric: str, category: str | None = None) -> Summary:
        """A figure of one category over the seeds, or the mean over all categories.

        For each seed the figures of the categories are averaged first, as the papers do. Seeds
        that lack a category are left out; if all of them do, the categories that they have are
        averaged, and ``whole`` is False.
        """
        return self._over_seeds(self._table(metric), metric, category)

    def failures_as_wrong(self, metric: str, category: str | None = None) -> Summary | None:
        """The same with images that got no score counted as wrong.

        None where every image got one, and for figures of pixels.
        """
        wrong = self._table(metric + _WRONG)
        if (wrong if category is None else wrong.reindex(columns=[category])).isna().all(axis=None):
            return None
        return self._over_seeds(wrong.combine_first(self._table(metric)), metric, category)

    def compared(self, metric: str, category: str | None = None) -> Summary:
        """The figure that is compared with other setups': an answer refused is no answer saved.

        Of weights that are not pretrained it is never ``whole``.
        """
        own = self.failures_as_wrong(metric, category) or self.mean(metric, category)
        return own._replace(whole=own.whole and not self.untrained)

    def published(self, metric: str, category: str | None = None) -> Published | None:
        """What the authors printed for the same; None too if our weights were not pretrained.

        Nor is there any where some of the defects are not tested on.
        """
        if self.untrained or self.settings["set_aside"] or not self.mean(metric, category).whole:
            return None
        # The resolution that a default stood for is as good as one that was given.
        options = dict(self.settings["options"])
        backbone = next(iter(self.cells.values())).run.get("backbone") or {}
        options["resolution"] = options.get("resolution") or backbone.get("resolution")
        stated = self.settings | {"options": options}
        return find_published(stated, metric, self.expected.get(metric, ()), category)

    @cached_property
    def figures(self) -> "DataFrame":
        """A row a seed; for each figure and category a column."""
        import pandas as pd

        rows = [
            cell.metrics["figures"]
            | {name + _WRONG: v for name, v in cell.metrics.get("failures_as_wrong", {}).items()}
            for cell in self.cells.values()
        ]
        places = pd.MultiIndex.from_tuples(self.cells, names=["category", "seed"])
        return pd.DataFrame(rows, places, dtype=float).unstack("category")

    def _table(self, name: str) -> "DataFrame":
        """The columns of a figure, by category."""
        return self.figures[name] if name in self.figures else self.figures.iloc[:0, :0]

    def _over_seeds(self, table: "DataFrame", metric: str, category: str | None) -> Summary:
        wanted = self.expected.get(metric, []) if category is None else [category]
        values = table.reindex(columns=wanted).to_numpy(float)
        undefined = np.isnan(values)
        complete, some = ~undefined.any(axis=1), ~undefined.all(axis=1)
        whole = bool(wanted) and bool(complete.any())
        means = np.nanmean(values[complete if whole else some], axis=1)
        if not len(means):
            return Summary(math.nan, math.nan, 0, False)
        std = float(means.std(ddof=1)) if len(means) > 1 else math.nan
        return Summary(float(means.mean()), std, len(means), whole)


def gather(cells: Sequence[FinishedCell]) -> list[Setup]:
    """Cells as setups, sorted by data set, method, options and shots, each with its label.

    Cells that differ only in whether features came from a cache have equal figures, and are one
    cell here; the one that was timed without a cache stands for both.
    Of cells of other files, where a data set was changed, the one that was run last stands for all.
    """
    import pandas as pd

    setups: dict[str, Setup] = {}
    for cell in cells:
        settings = {name: cell.settings[name] for name in (*_SETTINGS, "options")}
        settings["untrained"] = cell.untrained
        setup = setups.setdefault(json.dumps(settings, sort_keys=True), Setup(settings))
        setup.names.add(cell.name)
        # pandas keeps names in Arrow, which has no place for bytes that are no UTF-8.
        place = printable(cell.settings["category"]), cell.settings["seed"]
        if place not in setup.cells or _stands_before(cell, setup.cells[place]):
            setup.cells[place] = cell
    found = sorted(setups.values(), key=_order)
    for setup, label in zip(found, label_setups(found), strict=True):
        setup.label = label
        known = pd.concat([s.figures for s in found if s.dataset == setup.dataset])
        for metric, category in known.dropna(axis=1, how="all").sort_index(axis=1):
            if not metric.endswith(_WRONG):
                setup.expected.setdefault(metric, []).append(category)
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
    sign = 1 if METRICS[metric].higher else -1
    known = [(s, summary.mean) for s in setups if (summary := s.compared(metric)).whole]
    return max(known, key=lambda each: sign * each[1])[0] if known else None


def _stands_before(cell: FinishedCell, other: FinishedCell) -> bool:
    if cell.settings["samples"] == other.settings["samples"]:
        return not cell.settings["cached"]
    return str(cell.run.get("finished", "")) > str(other.run.get("finished", ""))


def _order(setup: Setup) -> tuple[Any, ...]:
    """Data set, method, options, then labels, and shots from few to all."""
    shots = math.inf if setup.shots is None else setup.shots
    options = json.dumps(setup.settings["options"], sort_keys=True)
    labels = tuple(setup.settings[name] for name in _LABELS)
    return setup.dataset, setup.method, options, setup.settings["sampling"], *labels, shots
