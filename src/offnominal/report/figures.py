"""Figures that answer a plan's question: lines over numbers, dots over names."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offnominal.report.drawing import INK, SOFT, WIDTH, percent_ticks, series, style
from offnominal.report.results import Setup, label_setups, varying
from offnominal.report.words import heading, setting_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["is_numeric", "plan_figure"]


def is_numeric(setups: Sequence[Setup], axis: str) -> bool:
    """Whether a setting's values are numbers, so that a line may join them; all images are one."""
    values = {setup.value(axis) for setup in setups} - ({None} if axis == "shots" else set())
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) > 1 and len(numbers) == len(values)


def plan_figure(setups: Sequence[Setup], axes: Sequence[str]) -> "Figure | None":
    """Image AUROC, and AUPRO or pixel AUROC, against the first axis that varies.

    None where there is nothing to compare. The setups are of one data set.
    """
    from matplotlib.figure import Figure

    names = varying(setups, axes)
    metrics = [m for m in ("image_auroc", "aupro", "pixel_auroc") if m in setups[0].expected][:2]
    if not names or not metrics:
        return None
    joined = is_numeric(setups, names[0])
    width = WIDTH * len(metrics) / 2
    size = (width, 3.1) if joined else (width + 0.6, 0.9 + 0.3 * len(setups))
    with style():
        figure = Figure(figsize=size)
        panels = figure.subplots(1, len(metrics), squeeze=False, sharey=not joined)[0]
        for panel, metric in zip(panels, metrics, strict=True):
            panel.set_title(f"{heading(metric)}, %")
            if joined:
                _lines(panel, metric, setups, *names)
            else:
                _dots(panel, metric, setups, label_setups(setups, names))
        handles, labels = panels[0].get_legend_handles_labels()
        kept = dict(zip(labels, handles, strict=True))  # "published" once
        if joined and kept:
            columns = min(4, len(kept))
            figure.legend(kept.values(), kept.keys(), loc="outside lower left", ncols=columns)
    return figure


def _lines(axes: "Axes", metric: str, setups: Sequence[Setup], axis: str, *rest: str) -> None:
    # Evenly spaced, as doublings are meant to be; None, which is all images, comes last.
    values = {setup.value(axis) for setup in setups}
    ordered = sorted(values, key=lambda value: math.inf if value is None else value)
    place = {value: number for number, value in enumerate(ordered)}
    lines: dict[str, list[Setup]] = {}
    for setup in sorted(setups, key=lambda setup: place[setup.value(axis)]):
        key = ", ".join(setting_words(r, setup.value(r), alone=True) for r in rest)
        lines.setdefault(key, []).append(setup)
    for number, (label, mine) in enumerate(sorted(lines.items())):
        means = [setup.compared(metric) for setup in mine]
        x = [place[setup.value(axis)] for setup in mine]
        y = [each.mean for each in means]
        spread = [0 if math.isnan(each.std) else each.std for each in means]
        over = [min(mean + std, 1.0) for mean, std in zip(y, spread, strict=True)]
        under = [mean - std for mean, std in zip(y, spread, strict=True)]
        colour, marker, line = series(number)
        axes.fill_between(x, under, over, color=colour, alpha=0.16, lw=0)
        axes.plot(x, y, line, color=colour, marker=marker, label=label or None)
        printed = [(at, s.published(metric)) for at, s in zip(x, mine, strict=True)]
        if points := [(at, figure.value / 100) for at, figure in printed if figure]:
            axes.plot(*zip(*points, strict=True), "D", mfc="none", mec=colour, label="published")
    axes.set_xticks(range(len(place)), [setting_words(axis, value) for value in place])
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.0 + 0.02 * (1.0 - axes.get_ylim()[0])))
    percent_ticks(axes.yaxis)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(heading(axis).lower())


def _dots(axes: "Axes", metric: str, setups: Sequence[Setup], labels: Sequence[str]) -> None:
    colour, marker, _ = series(0)
    best = []
    for row, setup in enumerate(setups):
        summary = setup.compared(metric)
        each = [setup.mean(metric, c).mean for c in setup.expected.get(metric, ())]
        if len(each) > 1:
            axes.plot(each, [row] * len(each), "o", ms=4, color=SOFT, alpha=0.35, mew=0)
        deviation = None if math.isnan(summary.std) else summary.std
        axes.errorbar(summary.mean, row, xerr=deviation, fmt=marker, color=colour, ms=7, capsize=3)
        best += [summary.mean] if summary.whole else []
    if best:
        axes.axvline(max(best), color=INK, lw=0.8, ls=":")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", visible=False)
    percent_ticks(axes.xaxis)
    axes.tick_params(axis="y", labelcolor=INK)
