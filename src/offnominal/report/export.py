"""The report's tables as CSV for other programs, and as LaTeX for papers."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offnominal.benchmark.store import FinishedCell
from offnominal.report.results import Setup
from offnominal.report.tables import Entry, Table

__all__ = ["latex", "write_cells", "write_results"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "†": r"$\dagger$",
    "\u00a0": "~",
}


def write_cells(path: Path, cells: Sequence[FinishedCell]) -> None:
    """One row a cell, with every figure and its interval as shares of 1.

    Parameters
    ----------
    path : Path
    cells : sequence of FinishedCell
    """
    rows: list[dict[str, Any]] = []
    for cell in cells:
        settings, run = cell.settings, cell.run
        row = {
            name: settings[name]
            for name in ("dataset", "category", "method", "shots", "seed", "sampling", "cached")
        }
        row["shots"] = "all" if row["shots"] is None else row["shots"]
        row["untrained"] = cell.untrained
        row |= {f"option_{name}": value for name, value in sorted(settings["options"].items())}
        row |= {name: run.get(name) for name in ("version", "device", "cpu", "threads", "finished")}
        timings = run.get("timings") or {}
        stages = ("fit", "predict", "per_image", "per_image_uncached")
        row |= {f"{name}_seconds": timings.get(name) for name in stages}
        row |= {"images": run.get("images"), "unscored": cell.unscored}
        for name, value in cell.metrics.get("failures_as_wrong", {}).items():
            row[f"{name}_failures_as_wrong"] = "" if math.isnan(value) else value
        for name, value in cell.metrics["figures"].items():
            row[name] = "" if math.isnan(value) else value
            low, high = (cell.metrics.get("intervals") or {}).get(name) or (None, None)
            if low is not None:
                row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"cell": cell.name})
    _write(path, rows)


def write_results(path: Path, setups: Sequence[Setup]) -> None:
    """One row for each setup, category and figure, and for the mean over categories.

    Figures are shares of 1; ``published`` and ``difference`` are in percent, as they were printed.
    ``untrained`` says why a figure means nothing, where weights were not pretrained; of such a row
    no published figure is given.

    Parameters
    ----------
    path : Path
    setups : sequence of Setup
    """
    rows: list[dict[str, Any]] = []
    for setup in setups:
        for metric, categories in setup.expected.items():
            for category in (*categories, None):
                summary = (
                    setup.mean(metric) if category is None else setup.in_category(metric, category)
                )
                if math.isnan(summary.mean):
                    continue
                row: dict[str, Any] = {
                    "dataset": setup.dataset,
                    "setup": setup.label,
                    "method": setup.method,
                    "shots": "all" if setup.shots is None else setup.shots,
                    "category": category or "mean",
                    "metric": metric,
                    "untrained": setup.untrained,
                    "mean": summary.mean,
                    "std": "" if math.isnan(summary.std) else summary.std,
                    "seeds": summary.seeds,
                    "complete": summary.whole,
                }
                wrong = setup.failures_as_wrong(metric, category)
                row["failures_as_wrong"] = wrong.mean if wrong else ""
                published = setup.published(metric, category) if summary.whole else None
                row["published"] = published.value if published else ""
                row["difference"] = (
                    round(100 * summary.mean - published.value, 2) if published else ""
                )
                row["source"] = published.source if published else ""
                rows.append(row)
    _write(path, rows)


def latex(tables: Sequence[Table], sources: Sequence[str]) -> str:
    """Tables for ``\\input`` in a paper, with the package booktabs.

    Parameters
    ----------
    tables : sequence of Table
    sources : sequence of str
        Sources of the published figures, numbered from 1 in the tables.
    """
    parts = [
        "% Written by offnominal report. Needs \\usepackage{booktabs}; figures in percent.",
        *(f"% [{number}] {_one_line(text)}" for number, text in enumerate(sources, 1)),
    ]
    for table in tables:
        caption = ". ".join(filter(None, (table.caption, " ".join(table.notes))))
        layout = "l" * len(table.heads) + "r" * len(table.columns)
        heads = " & ".join(escape(head) for head in (*table.heads, *table.columns))
        parts += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            rf"{heads} \\",
            r"\midrule",
        ]
        for names, entries in table.rows:
            if names == ["Mean"]:
                parts.append(r"\midrule")
            cells = [escape(name) for name in names] + [_entry(entry) for entry in entries]
            parts.append(" & ".join(cells) + r" \\")
        parts += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text with LaTeX's own characters made harmless."""
    return "".join(_LATEX.get(character, character) for character in text)


def _entry(entry: Entry) -> str:
    text = escape(entry.text)
    if entry.best:
        text = rf"\textbf{{{text}}}"
    if entry.partial:
        text += "*"
    if entry.wrong:
        text += rf" {{\small ({escape(entry.wrong)})}}"
    if entry.published:
        text += rf" {{\small [{entry.source}] {escape(entry.published)}}}"
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue(), encoding="utf-8")
