"""Charts as SVG, drawn on the server: classes for colours, no styles and no scripts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Axis", "control_chart", "histogram", "nice", "sparks"]

_WIDE, _LEFT, _RIGHT, _TOP, _BOTTOM = 720.0, 74.0, 14.0, 12.0, 30.0
_LETTER, _SIGN = 11.5, 20.0  # most that a letter, and a Chinese sign, is wide: on the phone


@dataclass(frozen=True)
class Axis:
    """From values to places along a side, from `start` to `stop`; logarithmic where asked for."""

    low: float
    high: float
    start: float
    stop: float
    logarithm: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value, rounded as SVG needs it."""
        low, high, value = (self._on(one) for one in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.stop - self.start), 1)

    def _on(self, value: float) -> float:
        return math.log(max(value, 1e-300)) if self.logarithm else value


def nice(low: float, high: float, most: int = 5) -> list[float]:
    """Round values between two, at most so many."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / most
    step = 10 ** math.floor(math.log10(rough))
    step *= next(one for one in (1, 2, 5, 10) if one * step >= rough)
    first = math.ceil(low / step - 1e-9)
    found: list[float] = []
    while (value := first * step) <= high + 1e-9 * span and len(found) <= most:
        found.append(float(f"{value:.12g}"))
        first += 1
    return found


def control_chart(
    times: Sequence[float],
    values: Sequence[float],
    average: Sequence[float],
    limits: Sequence[tuple[float, float]],
    centre: float | None,
    outside: Sequence[bool],
    ticks: Sequence[tuple[float, str]],
    span: tuple[float, float],
    label: str,
) -> Markup:
    """Means as dots, their moving average as a line, its limits as a band.

    Parameters
    ----------
    times, values, average : sequences of float, n
        Average and limits are empty where nothing is known of what is usual.
    limits : sequence of (low, high), n
    centre : float or None
    outside : sequence of bool, n
        Points beyond the limits are drawn as diamonds.
    ticks : sequence of (time, words)
    span : (float, float)
        Of the times.
    label : str
        What it shows, for who does not see it.
    """
    height = 220.0
    all_values = [*values, *average, *(one for pair in limits for one in pair)]
    low, high = _roomy(min(all_values), max(all_values)) if all_values else (0.0, 1.0)
    across = Axis(*span, _LEFT, _WIDE - _RIGHT)
    up = Axis(low, high, height - _BOTTOM, _TOP)
    parts = [_frame(height, nice(low, high, 4), up, [(across(t), words) for t, words in ticks])]
    if limits:
        top = [f"{across(t)},{up(pair[1])}" for t, pair in zip(times, limits, strict=True)]
        under = [f"{across(t)},{up(pair[0])}" for t, pair in zip(times, limits, strict=True)]
        parts.append(f'<polygon class="chart-band" points="{" ".join(top + under[::-1])}"/>')
    if centre is not None:
        y = up(centre)
        parts.append(
            f'<line class="chart-centre" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{y}" y2="{y}"/>'
        )
    parts += [
        f'<circle class="chart-dot" cx="{across(t)}" cy="{up(value)}" r="2.2"/>'
        for t, value in zip(times, values, strict=True)
    ]
    if average:
        line = " ".join(f"{across(t)},{up(z)}" for t, z in zip(times, average, strict=True))
        parts.append(f'<polyline class="chart-line" points="{line}"/>')
    for t, z, out in zip(times, average, outside, strict=False):
        if out:
            x, y = across(t), up(z)
            places = f"{x},{y - 5} {x + 5},{y} {x},{y + 5} {x - 5},{y}"
            parts.append(f'<polygon class="chart-out" points="{places}"/>')
    return _svg(parts, height, label)


def histogram(
    upper: Sequence[tuple[str, Sequence[float]]],
    lower: Sequence[float],
    rug: Sequence[float],
    axis: Axis,
    bins: int,
    label: str,
) -> Markup:
    """Counts of scores: some kinds stacked upwards, another kind downwards, single ones as ticks.

    Each direction has its own scale, since defects are rare: what it is drawn for is where they
    lie.

    Parameters
    ----------
    upper : sequence of (class, values)
    lower : sequence of float
    rug : sequence of float
    axis : Axis
        Of the scores.
    bins : int
    label : str
    """
    height, middle = 300.0, 196.0
    parts = []
    stacked = [0] * bins
    counted = [(name, _counted(values, axis, bins)) for name, values in upper]
    tallest = max((sum(column) for column in zip(*(c for _, c in counted), strict=True)), default=0)
    wide = (axis.stop - axis.start) / bins
    for name, columns in counted:
        for place, count in enumerate(columns):
            if count:
                scale = (middle - _TOP) / max(tallest, 1)
                bottom = middle - stacked[place] * scale
                tall = max(count * scale, 1.5)
                x = axis.start + place * wide
                parts.append(_bar(name, x, bottom - tall, wide, tall))
                stacked[place] += count
    under = _counted(lower, axis, bins)
    for place, count in enumerate(under):
        if count:
            tall = max(count / max(under) * (height - _BOTTOM - middle - 12), 2)
            parts.append(_bar("chart-bad", axis.start + place * wide, middle + 9, wide, tall))
    parts += [
        f'<line class="chart-rug" x1="{axis(one)}" x2="{axis(one)}" y1="{middle + 1}" '
        f'y2="{middle + 8}"/>'
        for one in rug
    ]
    ticks = [(axis(one), f"{one:.4g}") for one in _ticks(axis)]
    parts.append(
        f'<line class="chart-axis" x1="{axis.start}" x2="{axis.stop}" y1="{middle}" y2="{middle}"/>'
    )
    parts += [_word(x, height - 10, words, "middle") for x, words in ticks]
    return _svg(parts, height, label)


def sparks(values: Sequence[float], label: str) -> Markup:
    """A few values as bars, small."""
    height, wide = 44.0, 720.0 / max(len(values), 1)
    top = max([*values, 1e-9])
    bars = [
        _bar("chart-good", place * wide, height - value / top * height, wide, value / top * height)
        for place, value in enumerate(values)
        if value
    ]
    return _svg(bars, height, label)


def _ticks(axis: Axis) -> list[float]:
    if not axis.logarithm or axis.high / axis.low < 4:
        return nice(axis.low, axis.high, 7)
    found: list[float] = []
    power = math.floor(math.log10(axis.low))
    while 10.0**power <= axis.high:
        found += [one * 10.0**power for one in (1, 2, 5)]
        power += 1
    return [one for one in found if axis.low <= one <= axis.high]


def _counted(values: Sequence[float], axis: Axis, bins: int) -> list[int]:
    found = [0] * bins
    for value in values:
        share = (axis(value) - axis.start) / (axis.stop - axis.start)
        found[min(max(int(share * bins), 0), bins - 1)] += 1
    return found


def _bar(name: str, x: float, y: float, wide: float, tall: float) -> str:
    gap = min(1.0, wide / 4)
    return (
        f'<rect class="{name}" x="{x + gap / 2:.1f}" y="{y:.1f}" width="{wide - gap:.1f}" '
        f'height="{tall:.1f}"/>'
    )


def _roomy(low: float, high: float) -> tuple[float, float]:
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _frame(
    height: float, steps: Sequence[float], up: Axis, ticks: Sequence[tuple[float, str]]
) -> str:
    lines = [
        f'<line class="chart-grid" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{up(one)}" '
        f'y2="{up(one)}"/>' + _word(_LEFT - 8, up(one) + 4, f"{one:.4g}", "end")
        for one in steps
    ]
    # What would be cut off at the right is left out; small screens show every other one.
    below = [
        _word(x, height - 8, words, "middle", "" if place % 2 == 0 else " chart-other")
        for place, (x, words) in enumerate(ticks)
        if x + _wide(words) / 2 <= _WIDE
    ]
    return "".join(lines + below)


def _wide(words: str) -> float:
    """How wide words are at most; Chinese and Japanese signs are as wide as they are tall."""
    return sum(_SIGN if ord(one) > 0x2E7F else _LETTER for one in words)


def _word(x: float, y: float, words: str, anchor: str, more: str = "") -> str:
    name = f"chart-word{more}"
    return f'<text class="{name}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(parts: Sequence[str], height: float, label: str) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {_WIDE:.0f} {height:.0f}" role="img"'
    return Markup(f'{head} aria-label="{escape(label)}">{"".join(parts)}</svg>')
