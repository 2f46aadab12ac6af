"""A scatter of two versions' scores, as an SVG's coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass

from babel.numbers import format_decimal

from offnominal.station.language import speaking
from offnominal.station.learning.comparing import Pair

__all__ = ["Point", "Scatter", "scatter"]

_SIDE, _EDGE = 420.0, 44.0
_TICKS = 4


@dataclass(frozen=True)
class Point:
    """A part: where it lies, and which one it is."""

    x: float
    y: float
    inspection: int
    flips: bool


@dataclass(frozen=True)
class Scatter:
    """All that the template draws; pixels of a square of ``side``."""

    side: float
    edge: float
    points: list[Point]
    across: float
    """Where the first version's threshold stands."""
    up: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def scatter(pairs: Sequence[Pair], first: float, second: float) -> Scatter:
    """The first version's scores to the right, the second one's upwards.

    Parameters
    ----------
    pairs : sequence of Pair
    first, second : float
        Their thresholds.
    """
    known = [one for one in pairs if one.before is not None and one.after is not None]
    xs = [one.before or 0.0 for one in known] + [first]
    ys = [one.after or 0.0 for one in known] + [second]
    right, top = _range(xs), _range(ys)

    def place(value: float, ends: tuple[float, float]) -> float:
        return (value - ends[0]) / (ends[1] - ends[0]) * (_SIDE - 2 * _EDGE)

    # Those that flip last, on top.
    points = [
        Point(
            round(_EDGE + place(one.before or 0.0, right), 1),
            round(_SIDE - _EDGE - place(one.after or 0.0, top), 1),
            one.inspection,
            one.flips,
        )
        for one in sorted(known, key=lambda one: one.flips)
    ]
    return Scatter(
        _SIDE,
        _EDGE,
        points,
        round(_EDGE + place(first, right), 1),
        round(_SIDE - _EDGE - place(second, top), 1),
        [(round(_EDGE + place(value, right), 1), _label(value)) for value in _ticks(right)],
        [(round(_SIDE - _EDGE - place(value, top), 1), _label(value)) for value in _ticks(top)],
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return low - room, high + room


def _ticks(ends: tuple[float, float]) -> list[float]:
    step = (ends[1] - ends[0]) / _TICKS
    return [ends[0] + step * (number + 0.5) for number in range(_TICKS)]


def _label(value: float) -> str:
    return format_decimal(float(f"{value:.2g}"), "#,##0.####", locale=speaking.get())
