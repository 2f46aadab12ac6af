"""Figures that answer a plan's question: lines, dots, and speed beside AUROC."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from offnominal.report.drawing import INK, SHEET, SOFT, mark_untrained, percent_axis, series, style
from offnominal.report.results import Setup, label_setups, varying
from offnominal.report.words import DAGGER, METRICS, axis_heading, setting_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Speed", "is_numeric", "plan_figure", "speed_figure"]

_WIDTH = 9.2  # inches, for two panels side by side


class Speed(NamedTuple):
    """How fast and how good a setup is.

    Attributes
    ----------
    group : str
        Setups of a group share a colour.
    label : str
    rate : float
        Images per second.
    auroc : float
        On [0, 1].
    untrained : str
        Why the AUROC says nothing of the method; empty if nothing is known against it.
    """

    group: str
    label: str
    rate: float
    auroc: float
    untrained: str = ""


def is_numeric(setups: Sequence[Setup], axis: str) -> bool:
    """Whether a setting's values are numbers, so that a line may join them."""
    values = [setup.value(axis) for setup in setups]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    rest = [v for v in values if v not in numbers]
    return len(set(numbers)) > 1 and (not rest or (axis == "shots" and set(rest) == {None}))


def plan_figure(setups: Sequence[Setup], axes: Sequence[str]) -> "Figure | None":
    """Image AUROC, and AUPRO or pixel AUROC, against the first axis that varies.

    Parameters
    ----------
    setups : sequence of Setup
        Of one data set.
    axes : sequence of str
        The plan's axes; the first that varies is drawn.

    Returns
    -------
    Figure or None
        None where there is nothing to compare.
    """
    from matplotlib.figure import Figure

    names = varying(setups, axes)
    metrics = [m for m in ("image_auroc", "aupro", "pixel_auroc") if m in setups[0].expected][:2]
    if not names or not metrics:
        return None
    axis, rest = names[0], names[1:]
    joined = is_numeric(setups, axis) and _mostly_lines(setups, axis, rest)
    if not joined and is_numeric(setups, axis):
        names = [*rest, axis]
    with style():
        if joined:
            figure = Figure(figsize=(_WIDTH * len(metrics) / 2, 3.1))
            panels = figure.subplots(1, len(metrics), squeeze=False)[0]
            for panel, metric in zip(panels, metrics, strict=True):
                _lines(panel, metric, setups, axis, rest)
            _legend(figure, panels[0])
        else:
            height = 0.9 + 0.3 * len(setups)
            figure = Figure(figsize=(_WIDTH * len(metrics) / 2 + 0.6, height))
            panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
            for panel, metric in zip(panels, metrics, strict=True):
                _dots(panel, metric, setups, label_setups(setups, names))
        mark_untrained(figure, [setup.untrained for setup in setups])
    return figure


def _mostly_lines(setups: Sequence[Setup], axis: str, rest: Sequence[str]) -> bool:
    """Whether at least half of what else varies has several values of an axis to join."""
    lines: dict[str, set[str]] = {}
    for setup in setups:
        key = str([setup.value(name) for name in rest])
        lines.setdefault(key, set()).add(str(setup.value(axis)))
    return 2 * sum(len(values) > 1 for values in lines.values()) >= len(lines)


def speed_figure(points: Sequence[Speed]) -> "Figure":
    """Images per second and image AUROC beside them, a row for each setup, the fastest on top.

    Parameters
    ----------
    points : sequence of Speed
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    points = sorted(points, key=lambda point: -point.rate)
    groups = list(dict.fromkeys(point.group for point in points))
    with style():
        figure = Figure(figsize=(_WIDTH, 1.0 + 0.27 * len(points)))
        rates, dots = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
        for row, point in enumerate(points):
            colour = series(groups.index(point.group))[0]
            rates.plot(point.rate, row, "o", color=colour, ms=6.5)
            rates.annotate(
                f"{point.rate:,.0f}" if point.rate >= 9.95 else f"{point.rate:#.2g}",
                (point.rate, row),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=INK,
            )
            face = "none" if point.untrained else colour
            dots.plot(point.auroc, row, "o", color=colour, mfc=face, ms=6.5)
        rates.set_xscale("log")
        rates.set_xlim(points[-1].rate / 1.4, 1.8 * points[0].rate)
        rates.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        rates.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        rates.xaxis.set_minor_formatter(NullFormatter())
        rates.set_yticks(range(len(points)), [point.label for point in points])
        rates.set_ylim(len(points) - 0.4, -0.6)
        rates.tick_params(axis="y", labelcolor=INK)
        rates.set_title("Images per second")
        dots.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
        dots.set_title("Image AUROC, %")
        if len(groups) > 1:
            from matplotlib.lines import Line2D

            handles = [
                Line2D([], [], marker="o", ls="", color=series(number)[0], label=name)
                for number, name in enumerate(groups)
            ]
            figure.legend(handles=handles, loc="outside lower left")
        mark_untrained(figure, [point.untrained for point in points])
    return figure


def _lines(
    axes: "Axes", metric: str, setups: Sequence[Setup], axis: str, rest: Sequence[str]
) -> None:
    numbers = sorted({v for s in setups if (v := s.value(axis)) is not None})
    positive = [number for number in numbers if number > 0]
    # Doublings are evenly spaced; nought has no place on such an axis and stands before it.
    logarithmic = len(positive) > 1 and (axis == "shots" or max(positive) >= 8 * min(positive))
    place = {n: math.log2(n) if logarithmic and n > 0 else float(n) for n in numbers}
    step = 1.0 if logarithmic else (numbers[-1] - numbers[0]) / max(len(numbers) - 1, 1)
    if logarithmic and numbers[0] == 0:
        place[0] = place[positive[0]] - 1.5 * step
    if any(setup.value(axis) is None for setup in setups):
        place[None] = place[numbers[-1]] + 1.5 * step
    lines: dict[str, list[Setup]] = {}
    for setup in setups:
        key = ", ".join(setting_words(r, setup.value(r), alone=True) for r in rest)
        if setup.untrained:
            key = (key or "not pretrained") + DAGGER
        lines.setdefault(key, []).append(setup)
    low, high = math.inf, -math.inf
    for number, (label, mine) in enumerate(lines.items()):
        mine.sort(key=lambda setup: place[setup.value(axis)])
        means = [setup.compared(metric) for setup in mine]
        x = [place[setup.value(axis)] for setup in mine]
        y = [summary.mean for summary in means]
        spread = [0 if math.isnan(summary.std) else summary.std for summary in means]
        colour, marker, line = series(number)
        under = [a - b for a, b in zip(y, spread, strict=True)]
        over = [min(a + b, 1.0) for a, b in zip(y, spread, strict=True)]
        axes.fill_between(x, under, over, color=colour, alpha=0.16, lw=0)
        face = SHEET if mine[0].untrained else colour
        axes.plot(x, y, line, color=colour, marker=marker, label=label or None, mfc=face)
        seen = [value for value in (*under, *over) if not math.isnan(value)]
        seen += _published(axes, metric, mine, x, colour)
        low, high = min([low, *seen]), max([high, *seen])
    axes.set_xticks(
        list(place.values()), [setting_words(axis, v) if v != 0 else "none" for v in place]
    )
    if math.isfinite(low):
        percent_axis(axes, low, high)
    axes.grid(axis="x", visible=False)
    axes.set_title(f"{METRICS[metric].heading}, %")
    axes.set_xlabel("good images" if axis == "shots" else axis_heading(axis).lower())


def _published(
    axes: "Axes", metric: str, setups: Sequence[Setup], x: Sequence[float], colour: str
) -> list[float]:
    found = [
        (place, figure.value / 100)
        for place, setup in zip(x, setups, strict=True)
        if setup.mean(metric).whole and (figure := setup.published(metric))
    ]
    if found:
        axes.plot(*zip(*found, strict=True), "D", mfc="none", mec=colour, ms=7, label="published")
    return [value for _, value in found]


def _dots(axes: "Axes", metric: str, setups: Sequence[Setup], labels: Sequence[str]) -> None:
    means = [setup.compared(metric) for setup in setups]
    for row, (setup, summary) in enumerate(zip(setups, means, strict=True)):
        each = [setup.in_category(metric, c).mean for c in setup.expected.get(metric, ())]
        if len(each) > 1:
            axes.plot(each, [row] * len(each), "o", ms=4, color=SOFT, alpha=0.35, mew=0)
        colour, marker, _ = series(0)
        deviation = None if math.isnan(summary.std) else summary.std
        face = "none" if setup.untrained else colour
        axes.errorbar(
            summary.mean, row, xerr=deviation, fmt=marker, color=colour, ms=7, capsize=3, mfc=face
        )
    top = [
        summary.mean
        for setup, summary in zip(setups, means, strict=True)
        if summary.whole and not math.isnan(summary.mean) and not setup.untrained
    ]
    if top:
        axes.axvline(max(top), color=INK, lw=0.8, ls=":")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_title(f"{METRICS[metric].heading}, %")


def _legend(figure: "Figure", panel: "Axes") -> None:
    handles, labels = panel.get_legend_handles_labels()
    kept = dict(zip(labels, handles, strict=True))  # "published" once
    if kept:
        figure.legend(
            list(kept.values()), list(kept), loc="outside lower left", ncols=min(4, len(kept))
        )
