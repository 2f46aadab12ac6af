"""How fast the setups are, on which machine, and what the feature cache has to do with it."""

import json
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offnominal.benchmark.store import FinishedCell, Plan
from offnominal.report.drawing import INK, percent_ticks, series, style, svg
from offnominal.report.figures import WIDTH
from offnominal.report.results import Setup, label_setups
from offnominal.report.words import count, join

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TIMED", "machines", "speed", "speed_figure"]

#: The plan whose figure is speed beside accuracy.
TIMED = "inference-time"

_MOST = 24  # rows, after which setups that differ in the number of images alone share one

_ADDED = (
    "Where features came from the cache, the time that the network took when they were made is "
    "added, and that of looking them up taken off."
)


def speed(setups: Sequence[Setup], plans: Sequence[Plan]) -> dict[str, Any]:
    """The figure of images per second, of those setups whose time is that of all the work.

    ``figure`` as SVG, empty if there is nothing to compare; ``machine`` and ``notes`` in words;
    ``told``: whether the plan `TIMED` has shown it all.
    """
    timed = [setup for setup in setups if _seconds(setup)]
    planned = {name for plan in plans if plan.name == TIMED for name in plan.cells}
    told = bool(timed) and all(setup.names & planned for setup in timed)
    shown = _fewer(timed) if len(timed) > _MOST else timed
    # One row compares nothing.
    figure = speed_figure(shown) if len(shown) > 1 and not told else None
    notes = []
    if figure:
        if len(shown) < len(timed):
            notes.append(
                "Of setups that differ in the number of images alone, the slowest is shown."
            )
        if any(_found(cell) for setup in shown for cell in setup.cells.values()):
            notes.append(_ADDED)
        busy = sum(any(c.run.get("busy") for c in s.cells.values()) for s in shown)
        if busy:
            which = "all" if busy == len(shown) else f"{busy} of {len(shown)}"
            notes.append(
                f"The machine had more to do than it has processors while {which} of these were "
                "run: their times are too long, and not all by the same amount."
            )
    notes += _spared(setups)
    if without := len(setups) - len(timed):
        what = "setup has" if without == 1 else "setups have"
        notes.append(
            f"{without} {what} no honest speed, because features came from the cache and their "
            "own time is not known or another machine's; run with --no-cache to time."
        )
    return {
        "figure": svg(figure, "Images per second and image AUROC.") if figure else "",
        "machine": machines(shown),
        "notes": notes,
        "told": told,
    }


def speed_figure(setups: Sequence[Setup]) -> "Figure | None":
    """Images per second and image AUROC, a row for each setup, the fastest on top.

    None where no time is known. Setups run on the same machine share a colour.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    timed = [setup for setup in setups if _seconds(setup)]
    if not timed:
        return None
    labels = label_setups(timed) if len(timed) > 1 else [timed[0].label]
    points = sorted(
        ((1 / (_seconds(s) or 1), label, s) for s, label in zip(timed, labels, strict=True)),
        key=lambda point: -point[0],
    )
    names = dict.fromkeys(_machine(setup) for *_, setup in points)
    colours = {name: series(number)[0] for number, name in enumerate(names)}
    with style():
        figure = Figure(figsize=(WIDTH, 1.0 + 0.27 * len(points)))
        rates, dots = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
        for row, (rate, _, setup) in enumerate(points):
            colour = colours[_machine(setup)]
            rates.plot(rate, row, "o", color=colour, ms=6.5)
            text = f"{rate:,.0f}" if rate >= 9.95 else f"{rate:#.2g}"
            place: Any = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
            rates.annotate(text, (rate, row), fontsize=8.5, color=INK, **place)
            dots.plot(setup.compared("image_auroc").mean, row, "o", color=colour, ms=6.5)
        rates.set_xscale("log")
        rates.set_xlim(points[-1][0] / 1.4, 1.8 * points[0][0])
        rates.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        rates.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        rates.xaxis.set_minor_formatter(NullFormatter())
        rates.set_yticks(range(len(points)), [label for _, label, _ in points])
        rates.set_ylim(len(points) - 0.4, -0.6)
        rates.tick_params(axis="y", labelcolor=INK)
        rates.set_title("Images per second")
        percent_ticks(dots.xaxis)
        dots.set_title("Image AUROC, %")
        if len(colours) > 1:
            look: Any = {"marker": "o", "ls": ""}
            handles = [Line2D([], [], color=c, label=name, **look) for name, c in colours.items()]
            figure.legend(handles=handles, loc="outside lower left")
    return figure


def machines(setups: Sequence[Setup]) -> str:
    """What some setups were run on, in words."""
    return join(list(dict.fromkeys(_machine(setup) for setup in setups)))


def _fewer(setups: Sequence[Setup]) -> list[Setup]:
    """Of setups that differ in the number of images alone, the slowest."""
    slowest: dict[str, Setup] = {}
    for setup in sorted(setups, key=lambda setup: _seconds(setup) or 0):
        slowest[json.dumps(setup.settings | {"shots": 0}, sort_keys=True)] = setup
    return [setup for setup in setups if setup in slowest.values()]


def _seconds(setup: Setup) -> float | None:
    """Median time of an image over the cells whose time is that of all the work."""
    times = [seconds for cell in setup.cells.values() if (seconds := _of_cell(cell))]
    return statistics.median(times) if times else None


def _of_cell(cell: FinishedCell) -> float | None:
    timings, features = cell.run.get("timings") or {}, cell.run.get("features") or {}
    computed = features.get("from_cache") == 0 and features.get("computed")
    whole = timings.get("per_image") if computed or not cell.settings["cached"] else None
    return timings.get("per_image_uncached") or whole or None


def _found(cell: FinishedCell) -> int:
    """How many views the cell found in the cache."""
    return (cell.run.get("features") or {}).get("from_cache") or 0


def _spared(setups: Sequence[Setup]) -> list[str]:
    """What the cache spared in all."""
    timings = [c.run.get("timings") or {} for setup in setups for c in setup.cells.values()]
    spent = sum(each.get("network") or 0.0 for each in timings)
    spared = sum(each.get("network_spared") or 0.0 for each in timings)
    whole = f"{spent + spared:,.0f} s"
    told = f"Networks were busy for {spent:,.0f} s; without the cache it had been {whole}."
    return [told] if spared else []


def _machine(setup: Setup) -> str:
    run = next(iter(setup.cells.values())).run
    device = str(run.get("device", "not known"))
    if device != "cpu":
        return device
    threads = count(run["threads"], "thread") if "threads" in run else "threads not known"
    return f"{run.get('cpu', 'CPU')}, {threads}"
