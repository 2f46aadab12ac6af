"""How fast the setups are, on which machine, and what the feature cache has to do with it."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offnominal.benchmark.store import FinishedCell, Plan
from offnominal.report.drawing import svg
from offnominal.report.figures import Speed, speed_figure
from offnominal.report.results import Setup, label_setups
from offnominal.report.words import count, join

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TIMED", "machines", "speed", "timed_figure"]

#: The plan whose figure is speed beside accuracy.
TIMED = "inference-time"

_MOST = 24  # rows, after which setups that differ in the number of images alone share one
_MOST_NAMED = 8  # in a sentence


def speed(setups: Sequence[Setup], plans: Sequence[Plan]) -> dict[str, Any]:
    """The figure of images per second, of those setups whose time is that of all the work.

    Returns
    -------
    dict
        ``figure`` as SVG, empty if there is nothing to compare; ``machine`` and ``notes`` in words;
        ``told``: whether the plan `TIMED` has shown it all.
    """
    timed = [setup for setup in setups if _seconds(setup) is not None]
    planned = {name for plan in plans if plan.name == TIMED for name in plan.cells}
    told = bool(timed) and all(setup.names & planned for setup in timed)
    shown = _fewer(timed)
    # One row compares nothing.
    figure = timed_figure(shown) if len(shown) > 1 and not told else None
    notes = []
    if figure and len(shown) < len(timed):
        notes.append("Of setups that differ in the number of images alone, the slowest is shown.")
    if figure and any(_spared(cell) for setup in shown for cell in setup.cells.values()):
        notes.append(
            "Where features came from the cache, the time that the network took when they were "
            "made is added, and that of looking them up taken off."
        )
    busy = [setup for setup in shown if any(c.run.get("busy") for c in setup.cells.values())]
    if figure and busy:
        which = "all" if len(busy) == len(shown) else f"{len(busy)} of {len(shown)}"
        notes.append(
            f"The machine had more to do than it has processors while {which} of these were run: "
            "their times are too long, and not all by the same amount."
        )
    if shared := _shared(setups):
        notes.append(shared)
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


def timed_figure(setups: Sequence[Setup]) -> "Figure | None":
    """Images per second and AUROC of setups; None where no time is known."""
    setups = [setup for setup in setups if _seconds(setup)]
    told = label_setups(setups) if len(setups) > 1 else [setup.label for setup in setups]
    machines = [_machine(setup) for setup in setups]
    several = len(set(machines)) > 1
    points = []
    for setup, label, machine in zip(setups, told, machines, strict=True):
        seconds, auroc = _seconds(setup), setup.compared("image_auroc")
        if seconds:
            group = machine if several else ""
            points.append(Speed(group, label, 1 / seconds, auroc.mean, setup.untrained))
    return speed_figure(points) if points else None


def machines(setups: Sequence[Setup]) -> str:
    """What some setups were run on, in words."""
    return join(list(dict.fromkeys(_machine(setup) for setup in setups)))


def _fewer(setups: Sequence[Setup]) -> list[Setup]:
    """Of setups that differ in the number of images alone the slowest, if there are too many."""
    if len(setups) <= _MOST:
        return list(setups)
    slowest: dict[str, Setup] = {}
    for setup in setups:
        key = str({name: value for name, value in setup.settings.items() if name != "shots"})
        if key not in slowest or (_seconds(setup) or 0) > (_seconds(slowest[key]) or 0):
            slowest[key] = setup
    return list(slowest.values())


def _seconds(setup: Setup) -> float | None:
    """Median time of an image over the cells whose time is that of all the work."""
    times = [seconds for cell in setup.cells.values() if (seconds := _of_cell(cell))]
    return statistics.median(times) if times else None


def _of_cell(cell: FinishedCell) -> float | None:
    timings, found = cell.run.get("timings") or {}, cell.run.get("features") or {}
    if timings.get("per_image_uncached"):
        return float(timings["per_image_uncached"])
    cold = not cell.settings["cached"] or (
        found.get("from_cache") == 0 and bool(found.get("computed"))
    )
    return float(timings["per_image"]) if cold and timings.get("per_image") else None


def _spared(cell: FinishedCell) -> bool:
    return bool((cell.run.get("features") or {}).get("from_cache"))


def _shared(setups: Sequence[Setup]) -> str:
    """Which setups needed no pass of a network of their own, and what the cache spared in all."""
    spent = spared = 0.0
    served = []
    for setup in setups:
        passes = 0
        for cell in setup.cells.values():
            timings = cell.run.get("timings") or {}
            spent += timings.get("network") or 0.0
            spared += timings.get("network_spared") or 0.0
            passes += not _spared(cell) or bool(cell.run["features"].get("computed"))
        if not passes:
            served.append(setup.label)
    if not spared:
        return ""
    told = ""
    if len(served) > _MOST_NAMED:
        told = f"{len(served)} of {len(setups)} setups found all their features in the cache. "
    elif served:
        told = f"All features were found in the cache for: {'; '.join(served)}. "
    return (
        f"{told}Networks were busy for {spent:,.0f} s; without the cache it had been "
        f"{spent + spared:,.0f} s."
    )


def _machine(setup: Setup) -> str:
    run = next(iter(setup.cells.values())).run
    device = str(run.get("device", "not known"))
    if device != "cpu":
        return device
    threads = count(run["threads"], "thread") if "threads" in run else "threads not known"
    return f"{run.get('cpu', 'CPU')}, {threads}"
