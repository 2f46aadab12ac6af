"""The parts of a benchmark report, each as plain values for the template."""

from collections.abc import Sequence
from typing import Any

from offnominal.benchmark.store import FinishedCell, Plan
from offnominal.report.curves import cell_figure, cell_words
from offnominal.report.drawing import svg
from offnominal.report.figures import is_numeric, plan_figure
from offnominal.report.gallery import Choice, Shown
from offnominal.report.html import plain
from offnominal.report.results import Setup, label_setups, varying
from offnominal.report.sentences import best_line, learning_line
from offnominal.report.speed import TIMED, machines, timed_figure
from offnominal.report.tables import Sources, by_category, overview, present
from offnominal.report.words import DAGGER, METRICS, count, join, setting_words

__all__ = [
    "curve_blocks",
    "galleries",
    "metric_key",
    "plan_section",
    "shown_cells",
    "size_rows",
    "warning",
]


def plan_section(plan: Plan, setups: Sequence[Setup], sources: Sources) -> dict[str, Any]:
    """A plan's tables, figure and sentences, for each data set that it has cells of.

    Parameters
    ----------
    plan : Plan
    setups : sequence of Setup
        All that were finished.
    sources : Sources
        Gets the sources of the published figures.
    """
    names = set(plan.cells)
    place = {name: number for number, name in enumerate(plan.cells)}
    mine = sorted(
        (setup for setup in setups if setup.names & names),
        key=lambda setup: min(place[name] for name in setup.names & names),
    )
    parts = []
    for dataset in dict.fromkeys(setup.dataset for setup in mine):
        own = [setup for setup in mine if setup.dataset == dataset]
        labels = label_setups(own, plan.axes)
        name = f"{plan.name}-{dataset}" if len({s.dataset for s in mine}) > 1 else plan.name
        table = overview(name, f"{plan.title} {dataset}", own, plan.axes, sources)
        figure = timed_figure(own) if plan.name == TIMED else plan_figure(own, plan.axes)
        lines = _lines(own, labels, plan.axes)
        # Of a single category they would say what the table of means says.
        metrics = present(own) if any(len(setup.categories) > 1 for setup in own) else []
        parts.append(
            {
                "dataset": dataset,
                "lines": lines,
                "figure": svg(figure, " ".join(lines) or plan.title) if figure else "",
                "key": _figure_key(plan, own),
                "table": table,
                "categories": [
                    by_category(f"{name}-{metric}", metric, own, labels, sources)
                    for metric in metrics
                ],
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


def warning(setups: Sequence[Setup]) -> dict[str, str]:
    """What the top of the page says where weights were not pretrained; empty otherwise.

    Returns
    -------
    dict of str to str
        ``which`` setups, ``why``.
    """
    marked = [setup for setup in setups if setup.untrained]
    if not marked:
        return {}
    which = f"{len(marked):,} of {count(len(setups), 'setup')}"
    if len(marked) == len(setups):
        which = "all setups"
    return {"which": which, "why": "; ".join(dict.fromkeys(setup.untrained for setup in marked))}


def shown_cells(setups: Sequence[Setup]) -> dict[str, list[FinishedCell]]:
    """The cells whose curves and images are shown: of each method the one with most references.

    Where several setups of a method share the most references, the one with the best image AUROC
    in the category is taken; of its seeds the first.

    Returns
    -------
    dict of str to list of FinishedCell
        By data set and method, in words; the cells by category.
    """
    groups: dict[str, list[Setup]] = {}
    several = len({setup.dataset for setup in setups}) > 1
    for setup in setups:
        key = f"{setup.dataset}, {setup.method}" if several else setup.method
        key += DAGGER * bool(setup.untrained)
        groups.setdefault(key, []).append(setup)
    found = {}
    for key, mine in groups.items():
        names = sorted({category for setup in mine for category in setup.categories})
        found[key] = [_most_references(mine, category) for category in names]
    return found


def curve_blocks(shown: dict[str, list[FinishedCell]]) -> list[dict[str, Any]]:
    """Histograms and curves of the shown cells, in groups to choose from."""
    blocks = []
    for group, cells in shown.items():
        figures = []
        for cell in cells:
            words = cell_words(cell)
            figure = svg(cell_figure(cell), words)
            figures.append((cell.settings["category"], words, figure, size_rows(cell)))
        blocks.append({"group": group, "what": _which(cells), "figures": figures})
    return blocks


def size_rows(cell: FinishedCell) -> list[list[str]]:
    """Recall of the defective regions by their size, a row for each size that occurs.

    Returns
    -------
    list of list of str
        Size and share of the image's area, number of regions, and for 1, 5 and 30 % false positives
        the share of their pixels that is covered and the share of regions with any pixel found.
    """
    rows = []
    for size in cell.metrics.get("regions", []):
        if not size["regions"]:
            continue
        area = f"{100 * size['lower']:g} to {100 * size['upper']:g} % of the image"
        found = [
            "–" if size[key] is None else f"{100 * size[key]:.0f}"
            for rate in ("1%", "5%", "30%")
            for key in (f"recall_at_{rate}", f"found_at_{rate}")
        ]
        rows.append([f"{size['name']}, {area}", str(size["regions"]), *found])
    return rows


def galleries(shown: dict[str, list[FinishedCell]]) -> list[FinishedCell]:
    """For each data set and category the shown cell with the best image AUROC.

    One whose weights were not pretrained is taken only where there is no other.
    """

    def rank(cell: FinishedCell) -> tuple[bool, float]:
        return not cell.untrained, _auroc(cell)

    best: dict[tuple[str, str], FinishedCell] = {}
    for cell in (cell for cells in shown.values() for cell in cells):
        place = cell.settings["dataset"], cell.settings["category"]
        if place not in best or rank(cell) > rank(best[place]):
            best[place] = cell
    return [cell for _, cell in sorted(best.items())]


def card_values(card: Shown, several: bool) -> dict[str, Any]:
    """A card of the gallery for the template; of `several` data sets, each card names its own."""
    choice = card.choice
    dataset = f"{choice.cell.settings['dataset']}, " if several else ""
    return {
        "category": dataset + choice.value("category"),
        "defect": plain(choice.value("defect")),
        "outcome": choice.outcome,
        "score": choice.value("score"),
        "limit": choice.limit,
        "ratio": choice.value("score") / choice.limit if choice.limit > 0 else 0.0,
        "first": choice.rank == 0,
        "name": choice.value("image"),
        "p_value": choice.value("p_value"),
        "untrained": bool(choice.cell.untrained),
        "card": card,
    }


def gallery_words(choices: Sequence[Choice]) -> str:
    """Which cells the gallery shows, and by which threshold."""
    cells = list({choice.cell.name: choice.cell for choice in choices}.values())
    told = f"Each category shows {_which(cells)}."
    if any(not choice.own for choice in choices):
        told += (
            " Where a detector has no threshold of its own, the one with the best F1 on the test "
            "images stands in; it has seen the answers."
        )
    return told


def _lines(setups: Sequence[Setup], labels: Sequence[str], axes: Sequence[str]) -> list[str]:
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
            several = len(groups) > 1 and line
            lines.append(f"{group}: {line}" if several else line)
    if names != ["shots"]:
        lines.append(best_line(setups, labels))
    return [line for line in lines if line]


def _figure_key(plan: Plan, setups: Sequence[Setup]) -> str:
    """What bands, bars and dots of a plan's figure mean."""
    names = varying(setups, plan.axes)
    if plan.name == TIMED:
        return f"On {machines(setups)}."
    if not names:
        return ""
    if is_numeric(setups, names[0]):
        several = any(len(setup.seeds) > 1 for setup in setups)
        return "Bands: standard deviation over seeds." if several else ""
    told = []
    if any(len(setup.categories) > 1 for setup in setups):
        told.append("Grey: single categories.")
    if any(len(setup.seeds) > 1 for setup in setups):
        told.append("Bars: standard deviation over seeds.")
    if not all(setup.untrained for setup in setups):
        told.append("Dotted: the best mean.")
    return " ".join(told)


def _most_references(setups: Sequence[Setup], category: str) -> FinishedCell:
    def rank(cell: FinishedCell) -> tuple[float, float]:
        shots = cell.settings["shots"]
        return (float("inf") if shots is None else shots), _auroc(cell)

    first = [
        setup.cells[category, min(s for c, s in setup.cells if c == category)]
        for setup in setups
        if category in setup.categories
    ]
    return max(first, key=rank)


def _auroc(cell: FinishedCell) -> float:
    value = float(cell.metrics["figures"].get("image_auroc", 0.0))
    return value if value == value else 0.0


def _which(cells: Sequence[FinishedCell]) -> str:
    """What some cells are, where they agree, in words."""
    methods = list(dict.fromkeys(cell.settings["method"] for cell in cells))
    shots = list(dict.fromkeys(cell.settings["shots"] for cell in cells))
    seeds = sorted({cell.settings["seed"] for cell in cells})
    images = join([setting_words("shots", number, alone=True) for number in shots])
    given = "" if shots == [0] else f" with {images}"
    mark = DAGGER if any(cell.untrained for cell in cells) else ""
    return f"{' or '.join(methods)}{given}, seed {join([str(seed) for seed in seeds])}{mark}"


def metric_key(setups: Sequence[Setup]) -> list[tuple[str, str]]:
    """Headings and meanings of the figures in the tables."""
    return [(METRICS[m].heading, METRICS[m].meaning) for m in present(setups)]
