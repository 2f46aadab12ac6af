"""What labelled defects are worth: figures of methods over their number, with masks and without."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offnominal.report.drawing import INK, SERIES, SHEET, SOFT, WIDTH, percent_ticks, style
from offnominal.report.results import Setup, varying
from offnominal.report.tables import Entry, Table, entries_of, present
from offnominal.report.words import METRICS, heading, join, percent, setting_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["foremost_counts", "is_of_labels", "labels_figure", "labels_lines", "labels_tables"]

_OWN = ("defects", "marked", "tested")
_SHOWN = ("image_auroc", "aupro", "image_miss_at_1%")
_LEFT_OUT = "left out"
_WORSE = 0.01  # a share; less says nothing in three draws

Contenders = dict[str, list[Setup]]


def is_of_labels(setups: Sequence[Setup]) -> bool:
    """Whether some of them tell what labelled defects are worth."""
    return any(setup.settings["set_aside"] for setup in setups)


def foremost_counts(setups: Sequence[Setup]) -> list[Setup]:
    """One setup for each method and its options, of those that differ in labels alone.

    That with the most defects: a figure of all would repeat what is the same for all of them.
    """
    found: dict[Any, Setup] = {}
    for setup in sorted(setups, key=lambda one: -one.settings["defects"]):
        settings = {k: v for k, v in setup.settings.items() if k not in _OWN}
        found.setdefault(repr(settings), setup)
    return [setup for setup in setups if setup in found.values()]


def labels_figure(setups: Sequence[Setup]) -> "Figure | None":
    """A row for each method, a column for each figure, lines over the number of labelled defects.

    None where there is no line to draw. The setups are of one data set.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    metrics = [name for name in _SHOWN if name in setups[0].expected]
    counts = sorted({setup.settings["defects"] for setup in setups})
    if not metrics or len(counts) < 2:
        return None
    rows = _contenders(setups)
    keys = _keys(setups)
    with style():
        height = 0.75 + 1.3 * len(rows)
        figure = Figure(figsize=(WIDTH * max(2, len(metrics)) / 3 + 0.6, height))
        panels = figure.subplots(len(rows), len(metrics), squeeze=False, sharex=True, sharey="col")
        for place, (name, mine) in enumerate(rows.items()):
            others = [each for other, each in rows.items() if other != name]
            for panel, metric in zip(panels[place], metrics, strict=True):
                _panel(panel, metric, mine, others, counts, keys)
                if not place:
                    panel.set_title(f"{heading(metric)}, %")
                if place == len(rows) - 1:
                    panel.set_xlabel("labelled defects")
            told: Any = {"color": INK, "fontweight": "bold", "labelpad": 8}
            panels[place, 0].set_ylabel(name.replace(", ", "\n"), **told)
        handles = [Line2D([], [], label=_words(*key), **_look(*key)) for key in keys]
        handles.append(Line2D([], [], color=SOFT, lw=0.9, alpha=0.5, label="other methods"))
        handles.append(
            Line2D([], [], color=INK, lw=0.8, ls=":", label="best without any, known kinds")
        )
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def labels_tables(setups: Sequence[Setup], sources: list[str]) -> list[Table]:
    """One table a figure: a row for each method, its masks and its test, a column for each count.

    The best of a column is the best of those with the same test.
    """
    counts = sorted({setup.settings["defects"] for setup in setups})
    keys, rows = _keys(setups), _contenders(setups)
    heads = ["Method", heading("marked"), heading("tested")]
    tables = []
    for metric in present(setups):
        cells: dict[tuple[str, tuple[str, bool], int], Entry] = {}
        for count in counts:
            for tested in dict.fromkeys(tested for tested, _ in keys):
                found = [
                    (name, key, setup)
                    for name, mine in rows.items()
                    for key in keys
                    if key[0] == tested and (setup := _line(mine, *key).get(count))
                ]
                entries = entries_of(metric, [setup for *_, setup in found], sources)
                for (name, key, _), entry in zip(found, entries, strict=True):
                    cells[name, key, count] = entry
        lines = []
        for name in rows:
            for tested, marked in keys:
                own = [cells.get((name, (tested, marked), c), Entry("–")) for c in counts]
                if any(entry.text != "–" for entry in own):
                    words = [setting_words("marked", marked), setting_words("tested", tested)]
                    lines.append(([name, *words], own))
        columns = [setting_words("defects", count, alone=True) for count in counts]
        tables.append(Table(heading(metric), heads, columns, lines))
    return tables


def labels_lines(setups: Sequence[Setup], metric: str = "image_auroc") -> list[str]:
    """The best method for each number of defects, and which of them harm on another kind."""
    rows, keys = _contenders(setups), _keys(setups)
    counts = sorted({setup.settings["defects"] for setup in setups})
    lines = []
    for tested in dict.fromkeys(tested for tested, _ in keys):
        told = []
        for count in counts:
            known = [
                (figure.mean, name, key[1])
                for name, mine in rows.items()
                for key in keys
                if key[0] == tested
                and (setup := _line(mine, *key).get(count))
                and (figure := setup.compared(metric)).whole
            ]
            if known:
                value, name, marked = max(known, key=lambda each: each[0])
                how = f"{name}, with masks" if marked and count else name
                told.append(f"{percent(value)} % with {count} ({how})")
        if told:
            what = setting_words("tested", tested)
            lines.append(f"Best {heading(metric)} on defects of {what}: {', '.join(told)}.")
    if worse := _worse(rows, counts[-1], metric):
        lines.append(
            f"Worse on the kind left out, with {counts[-1]} defects of other kinds, than the same "
            f"without any, or than the best without any: {join(worse)}."
        )
    return lines


def _worse(rows: Contenders, count: int, metric: str) -> list[str]:
    """Contenders that find a kind they never saw worse than they do without any defect.

    Those that need defects are compared with the best that saw none.
    """

    def best(mine: Sequence[Setup], number: int) -> float | None:
        lines = [_line(mine, _LEFT_OUT, marked) for marked in (False, True)]
        found = [line[number].compared(metric) for line in lines if number in line]
        return max((one.mean for one in found if one.whole), default=None)

    bases = {name: base for name, mine in rows.items() if (base := best(mine, 0)) is not None}
    top = max(bases.values(), default=0.0)
    return [
        name
        for name, mine in rows.items()
        if (value := best(mine, count)) is not None and value < bases.get(name, top) - _WORSE
    ]


def _contenders(setups: Sequence[Setup]) -> Contenders:
    """Setups by what tells them apart beside labels, in words."""
    axes = [axis for axis in varying(setups, ("method",)) if axis not in _OWN] or ["method"]
    found: Contenders = {}
    for setup in setups:
        name = ", ".join(setting_words(axis, setup.value(axis), alone=True) for axis in axes)
        found.setdefault(name, []).append(setup)
    return found


def _keys(setups: Sequence[Setup]) -> list[tuple[str, bool]]:
    """Tests, and whether masks are known, that there are lines of."""
    order = ("all", "known", _LEFT_OUT)
    some = [one for one in setups if one.settings["defects"]] or setups
    found = {(one.settings["tested"], one.settings["marked"]) for one in some}
    return sorted(found, key=lambda key: (order.index(key[0]), key[1]))


def _line(mine: Sequence[Setup], tested: str, marked: bool) -> dict[int, Setup]:
    """Setups by the number of defects; none without any is marked, so it stands in both lines."""
    own = [one for one in mine if one.settings["tested"] == tested]
    line = {
        count: one
        for one in own
        if (count := one.settings["defects"]) and one.settings["marked"] == marked
    }
    without = {one.settings["defects"]: one for one in own if not one.settings["defects"]}
    alone = not marked and all(one.settings["defects"] == 0 for one in own)
    return without | line if line or alone else {}


def _words(tested: str, marked: bool) -> str:
    return f"{setting_words('tested', tested)}, {setting_words('marked', marked, alone=True)}"


def _look(tested: str, marked: bool) -> dict[str, Any]:
    colour = SERIES[1 if tested == _LEFT_OUT else 0]
    face = colour if marked else SHEET
    return {"color": colour, "marker": "o", "ms": 4, "mfc": face, "ls": "-" if marked else "--"}


def _panel(
    axes: "Axes",
    metric: str,
    mine: Sequence[Setup],
    others: Sequence[Sequence[Setup]],
    counts: Sequence[int],
    keys: Sequence[tuple[str, bool]],
) -> None:
    """One method's figure: its lines, those of the others behind them, and the best without any."""
    at = {count: place for place, count in enumerate(counts)}
    seen = [key for key in keys if key[0] != _LEFT_OUT]

    def drawn(setups: Sequence[Setup], key: tuple[str, bool]) -> tuple[list[int], list[float]]:
        line = sorted(_line(setups, *key).items())
        return [at[count] for count, _ in line], [one.compared(metric).mean for _, one in line]

    for setups in others:
        for key in seen:
            axes.plot(*drawn(setups, key), color=SOFT, lw=0.8, alpha=0.22, zorder=1)
    without = [
        one.compared(metric).mean
        for setups in (mine, *others)
        for key in seen
        if (one := _line(setups, *key).get(0)) and one.compared(metric).whole
    ]
    if without:
        best = max(without) if METRICS[metric].higher else min(without)
        axes.axhline(best, color=INK, lw=0.8, ls=":", zorder=1.5)
    for key in keys:
        axes.plot(*drawn(mine, key), **_look(*key), lw=1.5, zorder=3)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.grid(axis="x", visible=False)
    percent_ticks(axes.yaxis)
