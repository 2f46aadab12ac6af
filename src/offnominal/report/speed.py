"""How fast the setups are, on which machine, and what the feature cache has to do with it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offnominal.report.drawing import INK, WIDTH, percent_ticks, series, style, svg
from offnominal.report.results import Setup, label_setups
from offnominal.report.timings import image_seconds
from offnominal.report.words import count, join
from offnominal.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TIMED", "machines", "speed", "speed_figure"]

#: The plan whose figure is speed beside accuracy.
TIMED = "inference-time"

_ADDED = (
    "Where features came from the cache, the time that the network took when they were made is "
    "added, and that of looking them up taken off."
)


def speed(setups: Sequence[Setup]) -> dict[str, Any]:
    """The figure of images per second, of those setups whose time is that of all the work.

    ``figure`` as SVG, empty if there is nothing to compare; ``machine`` and ``notes`` in words.
    """
    timed = [setup for setup in setups if image_seconds(setup)]
    # One row compares nothing.
    figure = speed_figure(timed) if len(timed) > 1 else None
    notes = []
    if figure:
        cells = [list(setup.cells.values()) for setup in timed]
        if any((c.run.get("features") or {}).get("from_cache") for own in cells for c in own):
            notes.append(_ADDED)
        if busy := sum(any(cell.run.get("busy") for cell in own) for own in cells):
            which = "all" if busy == len(timed) else f"{busy} of {len(timed)}"
            notes.append(
                f"The machine had more to do than it has processors while {which} of these were "
                "run: their times are too long, and not all by the same amount."
            )
    timings = [c.run.get("timings") or {} for setup in setups for c in setup.cells.values()]
    spent = sum(each.get("network") or 0.0 for each in timings)
    if spared := sum(each.get("network_spared") or 0.0 for each in timings):
        whole = f"{spent + spared:,.0f} s"
        notes.append(
            f"Networks were busy for {spent:,.0f} s; without the cache it had been {whole}."
        )
    if without := len(setups) - len(timed):
        what = "setup has" if without == 1 else "setups have"
        notes.append(
            f"{without} {what} no honest speed, because features came from the cache and their "
            "own time is not known or another machine's; run with --no-cache to time."
        )
    drawn = svg(figure, "Images per second and image AUROC.") if figure else ""
    return {"figure": drawn, "machine": machines(timed), "notes": notes}


def speed_figure(setups: Sequence[Setup]) -> "Figure | None":
    """Images per second and image AUROC, a row for each setup, the fastest on top.

    None where no time is known. Of several machines each row names its own.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    timed = sorted(
        ((seconds, setup) for setup in setups if (seconds := image_seconds(setup))),
        key=lambda each: each[0],
    )
    if not timed:
        return None
    own = [setup for _, setup in timed]
    labels = label_setups(own) if len(own) > 1 else [own[0].label]
    if len({_machine(setup) for setup in own}) > 1:
        labels = [f"{label} ({_machine(s)})" for label, s in zip(labels, own, strict=True)]
    colour, *_ = series(0)
    with style():
        figure = Figure(figsize=(WIDTH, 1.0 + 0.27 * len(timed)))
        rates, dots = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
        for row, (seconds, setup) in enumerate(timed):
            rate = 1 / seconds
            rates.plot(rate, row, "o", color=colour, ms=6.5)
            text = f"{rate:,.0f}" if rate >= 9.95 else f"{rate:#.2g}"
            place: Any = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
            rates.annotate(text, (rate, row), fontsize=8.5, color=INK, **place)
            dots.plot(setup.compared("image_auroc").mean, row, "o", color=colour, ms=6.5)
        rates.set_xscale("log")
        rates.set_xlim(1 / timed[-1][0] / 1.4, 1.8 / timed[0][0])
        rates.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        rates.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        rates.xaxis.set_minor_formatter(NullFormatter())
        rates.set_yticks(range(len(timed)), labels)
        rates.set_ylim(len(timed) - 0.4, -0.6)
        rates.tick_params(axis="y", labelcolor=INK)
        rates.set_title("Images per second")
        percent_ticks(dots.xaxis)
        dots.set_title("Image AUROC, %")
    return figure


def machines(setups: Sequence[Setup]) -> str:
    """What some setups were run on, in words."""
    return join(list(dict.fromkeys(map(_machine, setups))))


def _machine(setup: Setup) -> str:
    run = next(iter(setup.cells.values())).run
    device = str(run.get("device", "not known"))
    if device != "cpu":
        return printable(device)
    known = run.get("threads")
    threads = "threads not known" if known is None else count(known, "thread")
    return printable(f"{run.get('cpu', 'CPU')}, {threads}")
