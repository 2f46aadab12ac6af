"""The parts of a benchmark report, each as plain values for the template."""

import math
from collections.abc import Sequence
from typing import Any

from offnominal.benchmark.store import FinishedCell, Plan
from offnominal.report.curves import cell_figure, cell_words
from offnominal.report.drawing import svg
from offnominal.report.figures import is_numeric, plan_figure
from offnominal.report.labels import is_of_labels, labels_figure, labels_lines, labels_tables
from offnominal.report.results import Setup, label_setups, varying
from offnominal.report.sentences import best_line, learning_line
from offnominal.report.speed import TIMED, machines, speed_figure
from offnominal.report.tables import by_category, overview, present
from offnominal.report.words import heading, join, percent, setting_words

__all__ = ["best_cells", "curve_block", "kind_table", "plan_section", "shown_cells", "size_rows"]
__all__ += ["confusion_table", "which"]

_KINDS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_miss_at_1%": "Missed at 1 %",
    "misses": "Misses",
    "named": "Class told right",
}


def plan_section(plan: Plan, setups: Sequence[Setup], sources: list[str]) -> dict[str, Any]:
    """A plan's tables, figure and sentences, for each data set that it has cells of."""
    place = {name: number for number, name in enumerate(plan.cells)}
    mine = sorted(
        (setup for setup in setups if setup.names & place.keys()),
        key=lambda setup: min(place[name] for name in setup.names & place.keys()),
    )
    parts = []
    for dataset in dict.fromkeys(setup.dataset for setup in mine):
        own = [setup for setup in mine if setup.dataset == dataset]
        labels = label_setups(own, plan.axes)
        timed = plan.name == TIMED
        if is_of_labels(own):
            parts.append(_labels_part(plan, dataset, own, sources))
            continue
        figure = speed_figure(own) if timed else plan_figure(own, plan.axes)
        lines = _lines(own, labels, plan.axes)
        # Of a single category they would say what the table of means says.
        several = any(len({category for category, _ in setup.cells}) > 1 for setup in own)
        metrics = present(own) if several else []
        parts.append(
            {
                "dataset": dataset,
                "lines": lines,
                "figure": svg(figure, " ".join(lines) or plan.title) if figure else "",
                "machine": machines(own) if timed else "",
                "table": overview(f"{plan.title} {dataset}", own, plan.axes, sources),
                "tabs": "By category",
                "categories": [by_category(metric, own, labels, sources) for metric in metrics],
            }
        )
    finished = {name for setup in setups for name in setup.names}
    return {
        "name": plan.name,
        "title": plan.title,
        "parts": parts,
        "missing": [name for name in plan.cells if name not in finished],
        "cells": len(plan.cells),
    }


def _labels_part(
    plan: Plan, dataset: str, setups: Sequence[Setup], sources: list[str]
) -> dict[str, Any]:
    """The same of setups that tell what labelled defects are worth."""
    figure, lines = labels_figure(setups), labels_lines(setups)
    first, *others = labels_tables(setups, sources)
    return {
        "dataset": dataset,
        "lines": lines,
        "figure": svg(figure, " ".join(lines) or plan.title) if figure else "",
        "machine": "",
        "table": first,
        "tabs": "Other figures",
        "categories": others,
    }


def shown_cells(setups: Sequence[Setup]) -> dict[str, list[FinishedCell]]:
    """The cells whose curves and images are shown: of each method the one with most references.

    And with the most labelled defects, and their masks, tested on the kinds that it learned from.
    Of several such in a category the first seed's, and of those the one with the best image AUROC.
    By data set and method, in words.
    """
    several = len({setup.dataset for setup in setups}) > 1
    cells = [cell for setup in setups for cell in setup.cells.values()]
    cells.sort(key=lambda c: (-_references(c), *_labels(c), c.settings["seed"], -_auroc(c)))
    shown: dict[str, list[FinishedCell]] = {}
    for (dataset, method, _), cell in _firsts(cells, "dataset", "method", "category"):
        shown.setdefault(f"{dataset}, {method}" if several else method, []).append(cell)
    return shown


def best_cells(shown: dict[str, list[FinishedCell]]) -> list[FinishedCell]:
    """For each data set and category the shown cell with the best image AUROC.

    One whose weights were not pretrained is taken only where there is no other.
    """
    cells = [cell for group in shown.values() for cell in group]
    cells.sort(key=lambda cell: (bool(cell.untrained), -_auroc(cell)))
    return [cell for _, cell in _firsts(cells, "dataset", "category")]


def curve_block(group: str, cells: Sequence[FinishedCell]) -> dict[str, Any]:
    """Histograms and curves of a group of cells."""
    figures = []
    for cell in cells:
        words = cell_words(cell)
        figure = svg(cell_figure(cell), words)
        told = size_rows(cell), kind_table(cell), confusion_table(cell)
        figures.append((cell.settings["category"], words, figure, *told))
    return {"group": group, "what": which(cells), "figures": figures}


def size_rows(cell: FinishedCell) -> list[tuple[list[str], list[str]]]:
    """Recall of the defective regions by their size, a row for each size that occurs.

    Size and share of the image's area; number of regions, and for 1, 5 and 30 % false positives
    the share of their pixels that is covered and the share of regions with any pixel found.
    """
    rows = []
    keys = [f"{what}_at_{rate}" for rate in ("1%", "5%", "30%") for what in ("recall", "found")]
    for size in cell.metrics.get("regions", []):
        if size["regions"]:
            area = f"{100 * size['lower']:g} to {100 * size['upper']:g} % of the image"
            found = ["–" if size[key] is None else f"{100 * size[key]:.0f}" for key in keys]
            rows.append(([f"{size['name']}, {area}"], [str(size["regions"]), *found]))
    return rows


def kind_table(cell: FinishedCell) -> dict[str, Any] | None:
    """A row for each class of defect, of the columns that there are; None where there is none.

    Classes begin to tell something where there are two.
    """
    rows = cell.metrics.get("kinds") or []
    if len(rows) < 2:
        return None
    shown = [key for key in _KINDS if any(row.get(key) is not None for row in rows)]
    found = [
        ([heading(row["kind"])], [str(row["images"]), *(_percent(row.get(key)) for key in shown)])
        for row in rows
    ]
    return {"columns": ["Images", *(_KINDS[key] for key in shown)], "rows": found}


def confusion_table(cell: FinishedCell) -> dict[str, Any] | None:
    """Rows of what images were, columns of what was said of them; None where no class is told."""
    told = cell.metrics.get("confusion")
    if not told:
        return None
    pairs = zip(told["truth"], told["counts"], strict=True)
    rows = [([heading(name)], [f"{number:,}" for number in counts]) for name, counts in pairs]
    return {"columns": [heading(name) for name in told["said"]], "rows": rows}


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


def which(cells: Sequence[FinishedCell]) -> str:
    """What some cells are, where they agree, in words."""
    methods, shots, seeds = (
        list(dict.fromkeys(cell.settings[name] for cell in cells))
        for name in ("method", "shots", "seed")
    )
    images = join([setting_words("shots", number, alone=True) for number in shots])
    given = "" if shots == [0] else f" with {images}"
    if counts := sorted({c.settings["defects"] for c in cells if c.settings["set_aside"]}):
        given += f" and {join([setting_words('defects', each, alone=True) for each in counts])}"
    return f"{' or '.join(methods)}{given}, seed {join([str(seed) for seed in sorted(seeds)])}"


def _lines(setups: Sequence[Setup], labels: Sequence[str], axes: Sequence[str]) -> list[str]:
    """The sentences that answer a plan: how many images are enough, and what is best."""
    lines = []
    names = varying(setups, axes)
    if "shots" in names and is_numeric(setups, "shots"):
        rest = [name for name in names if name != "shots"]
        groups: dict[str, list[Setup]] = {}
        for setup in setups:
            words = [setting_words(name, setup.value(name), alone=True) for name in rest]
            groups.setdefault(", ".join(words), []).append(setup)
        for group, mine in groups.items():
            line = learning_line(mine)
            lines.append(f"{group}: {line}" if line and len(groups) > 1 else line)
    if names != ["shots"]:
        lines.append(best_line(setups, labels))
    return [line for line in lines if line]


def _firsts(
    cells: Sequence[FinishedCell], *names: str
) -> list[tuple[tuple[str, ...], FinishedCell]]:
    """The first cell of each value of some settings, sorted by them."""
    found: dict[tuple[str, ...], FinishedCell] = {}
    for cell in cells:
        found.setdefault(tuple(cell.settings[name] for name in names), cell)
    return sorted(found.items(), key=lambda each: each[0])


def _references(cell: FinishedCell) -> float:
    shots = cell.settings["shots"]
    return math.inf if shots is None else float(shots)


def _labels(cell: FinishedCell) -> tuple[int, bool, bool]:
    """Sorts the cell that learned most from labelled defects before others."""
    settings = cell.settings
    return -settings["defects"], settings["tested"] == "left out", not settings["marked"]


def _auroc(cell: FinishedCell) -> float:
    value = float(cell.metrics["figures"].get("image_auroc", 0.0))
    return 0.0 if math.isnan(value) else value
