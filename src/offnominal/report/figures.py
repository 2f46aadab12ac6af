"""Figures that answer a plan's question: lines, dots, and speed against AUROC."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offnominal.benchmark.published import find_published
from offnominal.report.drawing import INK, SOFT, percent_axis, series, style
from offnominal.report.results import Setup, label_setups, varying
from offnominal.report.words import METRICS, axis_heading, setting_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["is_numeric", "plan_figure", "speed_figure"]

_WIDTH = 9.2  # inches, for two panels side by side


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
    with style():
        if is_numeric(setups, axis):
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
    return figure


def speed_figure(points: Sequence[tuple[str, str, float, float]]) -> "Figure":
    """Image AUROC against the time an image takes, on a logarithmic axis.

    Parameters
    ----------
    points : sequence of (group, label, seconds, AUROC)
        Groups share a colour.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    groups = list(dict.fromkeys(group for group, *_ in points))
    with style():
        figure = Figure(figsize=(7.4, 3.6))
        axes = figure.subplots()
        for number, group in enumerate(groups):
            mine = [(1000 * s, auroc) for g, _, s, auroc in points if g == group]
            colour, marker, _ = series(number)
            axes.plot(*zip(*mine, strict=True), marker, color=colour, ms=7, label=group)
        times = [1000 * seconds for _, _, seconds, _ in points]
        axes.set_xscale("log")
        axes.set_xlim(min(times) / 1.6, max(times) * 2.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        values = [auroc for *_, auroc in points]
        percent_axis(axes, min(values) - 0.01, max(values) + 0.01)
        if len(points) <= 14:
            _name_points(axes, points)
        axes.set(xlabel="time for one image, milliseconds", ylabel="image AUROC, %")
        if len(groups) > 1:
            axes.legend(loc="lower right")
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
        lines.setdefault(key, []).append(setup)
    low, high = math.inf, -math.inf
    for number, (label, mine) in enumerate(lines.items()):
        mine.sort(key=lambda setup: place[setup.value(axis)])
        means = [setup.mean(metric) for setup in mine]
        x = [place[setup.value(axis)] for setup in mine]
        y = [summary.mean for summary in means]
        spread = [0 if math.isnan(summary.std) else summary.std for summary in means]
        colour, marker, line = series(number)
        under = [a - b for a, b in zip(y, spread, strict=True)]
        over = [min(a + b, 1.0) for a, b in zip(y, spread, strict=True)]
        axes.fill_between(x, under, over, color=colour, alpha=0.16, lw=0)
        axes.plot(x, y, line, color=colour, marker=marker, label=label or None)
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
        if setup.mean(metric).whole
        and (figure := find_published(setup.stated, metric, setup.expected.get(metric, ())))
    ]
    if found:
        axes.plot(*zip(*found, strict=True), "D", mfc="none", mec=colour, ms=7, label="published")
    return [value for _, value in found]


def _dots(axes: "Axes", metric: str, setups: Sequence[Setup], labels: Sequence[str]) -> None:
    means = [setup.mean(metric) for setup in setups]
    for row, (setup, summary) in enumerate(zip(setups, means, strict=True)):
        each = [setup.in_category(metric, c).mean for c in setup.expected.get(metric, ())]
        if len(each) > 1:
            axes.plot(each, [row] * len(each), "o", ms=4, color=SOFT, alpha=0.35, mew=0)
        colour, marker, _ = series(0)
        deviation = 0 if math.isnan(summary.std) else summary.std
        axes.errorbar(summary.mean, row, xerr=deviation, fmt=marker, color=colour, ms=7, capsize=3)
    top = [summary.mean for summary in means if summary.whole and not math.isnan(summary.mean)]
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


def _name_points(axes: "Axes", points: Sequence[tuple[str, str, float, float]]) -> None:
    """Names to the right of the points, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    room = 0.062 * (high - low)
    last = -math.inf
    for _, label, seconds, auroc in sorted(points, key=lambda point: point[3]):
        height = max(auroc, last + room)
        last = height
        name = axes.annotate(
            label,
            (1000 * seconds, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
        name.set_in_layout(False)  # a long name must not press the plot together
