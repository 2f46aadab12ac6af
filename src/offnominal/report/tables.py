"""Tables of a report: figures of setups, the best of them, the published ones beside; files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offnominal import text as texts
from offnominal.benchmark.published import Published
from offnominal.benchmark.store import FinishedCell
from offnominal.report.results import Setup, varying
from offnominal.report.timings import fit_seconds, image_seconds, time_words
from offnominal.report.words import METRICS, difference, heading, setting_words, spread
from offnominal.text import printable

__all__ = ["Entry", "Table", "by_category", "entries_of", "latex", "overview", "present"]
__all__ += ["write_cells", "write_results"]

#: Figures that every table shows, where they are defined.
MAIN = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "aupro", "image_miss_at_1%")

_WRONG = (
    "Figures are over the images that got a score; below them, or in brackets, the same with the "
    "others counted as wrong, which is what is compared."
)

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "−": r"$-$",
        "–": "--",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        # After the end of a row they would mean something.
        **{character: f"{{{character}}}" for character in "[*"},
    }
)


@dataclass(frozen=True)
class Entry:
    """One figure in a table; what there is not is empty."""

    text: str  #: mean and deviation in percent; ``–`` where it is not defined
    best: bool = False  #: of those that it may be compared with
    partial: bool = False  #: categories are missing from the mean
    wrong: str = ""  #: the same with the images that got no score counted as wrong
    published: str = ""  #: the authors' figure
    difference: str = ""  #: ours minus theirs, in percentage points
    source: int = 0  #: number of the source, from 1


@dataclass(frozen=True)
class Table:
    """A table as the page and the LaTeX file print it."""

    caption: str
    heads: list[str]  #: of the columns that name a row
    columns: list[str]  #: headings of the columns with figures
    rows: list[tuple[list[str], list[Entry]]]

    @property
    def published(self) -> bool:
        """Whether a published figure stands beside one of ours."""
        return any(entry.published for _, entries in self.rows for entry in entries)

    @property
    def note(self) -> str:
        """What second figures in it mean, where there are any."""
        wrong = any(entry.wrong for _, entries in self.rows for entry in entries)
        return _WRONG if wrong else ""


def present(setups: Sequence[Setup]) -> list[str]:
    """Those of the main figures that at least one setup has."""
    return [metric for metric in MAIN if any(metric in setup.expected for setup in setups)]


def overview(
    caption: str, setups: Sequence[Setup], axes: Sequence[str], sources: list[str]
) -> Table:
    """Of setups of one data set one row each, one column a figure; the best of each is marked.

    `axes` come first among the settings that name a row; `sources` gets those of the published
    figures.
    """
    metrics = present(setups)
    heads = varying(setups, axes) or ["method"]
    columns = [entries_of(metric, setups, sources) for metric in metrics]
    headings = [heading(metric) for metric in metrics]
    counts = [setup.unscored for setup in setups]
    if any(failed for failed, _ in counts):
        headings.append("Without a score")
        columns.append([Entry(f"{a:,} of {b:,}" if a else "–") for a, b in counts])
    for title, taken in (("Fit time", fit_seconds), ("Image time", image_seconds)):
        times = [taken(setup) for setup in setups]
        if any(times):
            headings.append(title)
            columns.append([Entry(time_words(each)) for each in times])
    names = [[setting_words(head, setup.value(head)) for head in heads] for setup in setups]
    rows = [(name, [column[row] for column in columns]) for row, name in enumerate(names)]
    return Table(caption, [heading(head) for head in heads], headings, rows)


def by_category(
    metric: str, setups: Sequence[Setup], labels: Sequence[str], sources: list[str]
) -> Table:
    """One row a category, one column a setup of one data set; the best of each row is marked."""
    names = [*setups[0].expected[metric], None]
    rows = [([name or "Mean"], entries_of(metric, setups, sources, name)) for name in names]
    return Table(heading(metric), ["Category"], list(labels), rows)


def write_cells(path: Path, cells: Sequence[FinishedCell]) -> None:
    """One row a cell, with every figure and its interval as shares of 1."""
    rows: list[dict[str, Any]] = []
    for cell in cells:
        settings, run, timings = cell.settings, cell.run, cell.run.get("timings") or {}
        names = ("dataset", "category", "method", "shots", "seed", "sampling", "cached")
        row = {name: settings[name] for name in names} | {"untrained": cell.untrained}
        row["shots"] = _shots(settings["shots"])
        if settings["set_aside"]:
            row |= {name: settings[name] for name in ("defects", "marked", "left_out", "tested")}
        row |= {f"option_{name}": value for name, value in sorted(settings["options"].items())}
        row |= {name: run.get(name) for name in ("version", "device", "cpu", "threads", "finished")}
        stages = ("fit", "predict", "per_image", "per_image_uncached")
        row |= {f"{name}_seconds": timings.get(name) for name in stages}
        row |= {"images": run.get("images"), "unscored": cell.unscored}
        wrong = cell.metrics.get("failures_as_wrong", {})
        row |= {f"{name}_failures_as_wrong": value for name, value in wrong.items()}
        row |= cell.metrics["figures"]
        for name, (low, high) in (cell.metrics.get("intervals") or {}).items():
            row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"cell": cell.name})
    _write(path, rows)


def write_results(path: Path, setups: Sequence[Setup]) -> None:
    """One row for each setup, category and figure, and for the mean over categories.

    Figures are shares of 1; ``published`` and ``difference`` are in percent, as they were printed.
    ``untrained`` says why a figure means nothing, where weights were not pretrained; of such a row
    no published figure is given.
    """
    rows: list[dict[str, Any]] = []
    places = [(s, m, c) for s in setups for m, found in s.expected.items() for c in (*found, None)]
    for setup, metric, category in places:
        summary = setup.mean(metric, category)
        if math.isnan(summary.mean):
            continue
        wrong = setup.failures_as_wrong(metric, category)
        published = setup.published(metric, category)
        row = {
            "dataset": setup.dataset,
            "setup": setup.label,
            "method": setup.method,
            "shots": _shots(setup.shots),
            **_labels(setup),
            "category": category or "mean",
            "metric": metric,
            "untrained": setup.untrained,
            "mean": summary.mean,
            "std": summary.std,
            "seeds": summary.seeds,
            "complete": summary.whole,
            "failures_as_wrong": wrong and wrong.mean,
            "published": published and published.value,
            "difference": published and round(100 * summary.mean - published.value, 2),
            "source": published and published.source,
        }
        rows.append(row)
    _write(path, rows)


def latex(tables: Sequence[Table], sources: Sequence[str]) -> str:
    """Tables for ``\\input`` in a paper, with the package booktabs; sources in its head."""
    parts = [
        "% Written by offnominal report. Needs \\usepackage{booktabs}; figures in percent.",
        *(f"% [{n}] {printable(' '.join(words.split()))}" for n, words in enumerate(sources, 1)),
    ]
    for table in tables:
        caption = _escape(". ".join(filter(None, (table.caption, table.note))))
        layout = "l" * len(table.heads) + "r" * len(table.columns)
        head = [*map(_escape, (*table.heads, *table.columns))]
        parts += ["", r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
        parts += [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", _row(head), r"\midrule"]
        for names, entries in table.rows:
            parts += [r"\midrule"] if names == ["Mean"] else []
            parts.append(_row([*map(_escape, names), *map(_latex, entries)]))
        parts += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def entries_of(
    metric: str, setups: Sequence[Setup], sources: list[str], category: str | None = None
) -> list[Entry]:
    """A figure of setups that are compared with each other; `sources` as in :func:`overview`."""
    compared = [setup.compared(metric, category) for setup in setups]
    # As printed: equal figures are bold together.
    ranked = [round(each.mean, 3) if each.whole else math.nan for each in compared]
    known = {figure for figure in ranked if not math.isnan(figure)}
    # One figure alone is not the best of anything.
    best = (max if METRICS[metric].higher else min)(known) if len(known) > 1 else None
    found = []
    for setup, figure in zip(setups, ranked, strict=True):
        summary, wrong = setup.mean(metric, category), setup.failures_as_wrong(metric, category)
        published = setup.published(metric, category)
        entry = Entry(
            spread(summary.mean, summary.std),
            figure == best,
            partial=not summary.whole and not math.isnan(summary.mean),
            wrong=spread(wrong.mean, wrong.std) if wrong else "",
        )
        if published:
            std = math.nan if published.std is None else published.std
            entry = replace(
                entry,
                published=spread(published.value / 100, std / 100),
                difference=difference(100 * summary.mean - published.value),
                source=_cite(sources, published),
            )
        found.append(entry)
    return found


def _cite(sources: list[str], published: Published) -> int:
    """The number of a figure's source, which is added to those met before."""
    text = published.source + (f"; {published.note}" if published.note else "")
    if text not in sources:
        sources.append(text)
    return sources.index(text) + 1


def _labels(setup: Setup) -> dict[str, Any]:
    """What defects a setup learned from, where labels play a part."""
    names = ("defects", "marked", "tested") if setup.settings["set_aside"] else ()
    return {name: setup.settings[name] for name in names}


def _shots(shots: int | None) -> int | str:
    return "all" if shots is None else shots


def _escape(text: str) -> str:
    return printable(text).translate(_LATEX)


def _latex(entry: Entry) -> str:
    text = _escape(entry.text)
    if entry.best:
        text = rf"\textbf{{{text}}}"
    if entry.partial:
        text += "*"
    if entry.wrong:
        text += rf" {{\small ({_escape(entry.wrong)})}}"
    if entry.published:
        text += rf" {{\small [{entry.source}] {_escape(entry.published)}}}"
    return text


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pandas as pd

    cells = [{texts.cell(name): texts.cell(value) for name, value in row.items()} for row in rows]
    # Whole numbers that some rows lack stay whole numbers.
    text = pd.DataFrame(cells, dtype=object).to_csv(index=False, lineterminator="\n")
    path.write_bytes(text.encode())
