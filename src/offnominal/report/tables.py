"""Tables of a report: figures of setups, the best of them, and the published ones beside."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from offnominal.benchmark.published import Published
from offnominal.report.results import Setup, Summary, varying
from offnominal.report.words import (
    DAGGER,
    METRICS,
    axis_heading,
    difference,
    setting_words,
    spread,
    untrained_words,
)

__all__ = ["MAIN", "Entry", "Sources", "Table", "by_category", "overview", "present"]

#: Figures that every table shows, where they are defined.
MAIN = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "aupro", "image_miss_at_1%")


@dataclass
class Sources:
    """Sources of published figures, numbered from 1 in the order in which they are met."""

    texts: list[str] = field(default_factory=list)

    def number(self, published: Published) -> int:
        """The number of a figure's source, with its note."""
        text = published.source + (f"; {published.note}" if published.note else "")
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


@dataclass(frozen=True)
class Entry:
    """One figure in a table.

    Attributes
    ----------
    text : str
        Mean and deviation in percent; ``–`` where it is not defined.
    best : bool
        Whether it is the best of those that it may be compared with.
    partial : bool
        Whether categories are missing from the mean.
    published, difference : str
        The authors' figure and ours minus theirs, in percentage points; empty if there is none.
    source : int
        Number of the source; 0 if there is none.
    wrong : str
        The same with the images that got no score counted as wrong; empty if all got one.
    untrained : bool
        Whether it says nothing of the method, since weights were not pretrained.
    """

    text: str
    best: bool = False
    partial: bool = False
    published: str = ""
    difference: str = ""
    source: int = 0
    wrong: str = ""
    untrained: bool = False


@dataclass(frozen=True)
class Table:
    """A table as the page and the LaTeX file print it.

    Attributes
    ----------
    name : str
        For a file or an anchor.
    caption : str
    heads : list of str
        Headings of the columns that name a row.
    columns : list of str
        Headings of the columns with figures.
    rows : list of (list of str, list of Entry)
    notes : list of str
        What daggers and second figures in it mean, where there are any.
    """

    name: str
    caption: str
    heads: list[str]
    columns: list[str]
    rows: list[tuple[list[str], list[Entry]]]
    notes: list[str] = field(default_factory=list)

    @property
    def published(self) -> bool:
        """Whether a published figure stands beside one of ours."""
        return any(entry.published for _, entries in self.rows for entry in entries)


def present(setups: Sequence[Setup], metrics: Sequence[str] = MAIN) -> list[str]:
    """Those of some figures that at least one setup has."""
    return [metric for metric in metrics if any(metric in setup.expected for setup in setups)]


def overview(
    name: str, caption: str, setups: Sequence[Setup], axes: Sequence[str], sources: Sources
) -> Table:
    """One row a setup, one column a figure; the best of each column is marked.

    Parameters
    ----------
    name, caption : str
    setups : sequence of Setup
        Of one data set.
    axes : sequence of str
        Settings that come first among those that name a row.
    sources : Sources
        Gets the sources of the published figures.
    """
    metrics = present(setups)
    heads = varying(setups, axes) or ["method"]
    columns = {
        metric: _entries(metric, [(setup, setup.mean(metric)) for setup in setups], sources)
        for metric in metrics
    }
    headings = [METRICS[metric].heading for metric in metrics]
    rows = [
        (_names(setup, heads), [columns[m][row] for m in metrics])
        for row, setup in enumerate(setups)
    ]
    if any(setup.unscored[0] for setup in setups):
        headings.append("Without a score")
        for setup, (_, entries) in zip(setups, rows, strict=True):
            failed, asked = setup.unscored
            entries.append(Entry(f"{failed:,} of {asked:,}" if failed else "–"))
    names = [axis_heading(head) for head in heads]
    return Table(name, caption, names, headings, rows, _notes(setups, rows))


def by_category(
    name: str, metric: str, setups: Sequence[Setup], labels: Sequence[str], sources: Sources
) -> Table:
    """One row a category, one column a setup; the best of each row is marked.

    Parameters
    ----------
    name : str
    metric : str
    setups : sequence of Setup
        Of one data set.
    labels : sequence of str
        What to call the setups.
    sources : Sources
        Gets the sources of the published figures.
    """
    rows = []
    for category in setups[0].expected[metric]:
        found = [(setup, setup.in_category(metric, category)) for setup in setups]
        rows.append(([category], _entries(metric, found, sources, category)))
    means = _entries(metric, [(setup, setup.mean(metric)) for setup in setups], sources)
    rows.append((["Mean"], means))
    heading = METRICS[metric].heading
    return Table(name, heading, ["Category"], list(labels), rows, _notes(setups, rows))


def _names(setup: Setup, heads: Sequence[str]) -> list[str]:
    """What names a row; a dagger after the first of it where weights were not pretrained."""
    first, *rest = [setting_words(head, setup.value(head)) for head in heads]
    return [first + DAGGER * bool(setup.untrained), *rest]


def _notes(setups: Sequence[Setup], rows: Sequence[tuple[list[str], list[Entry]]]) -> list[str]:
    notes = [untrained_words(setup.untrained for setup in setups)]
    if any(entry.wrong for _, entries in rows for entry in entries):
        notes.append(
            "Figures are over the images that got a score; below them, or in brackets, the same "
            "with the others counted as wrong, which is what is compared."
        )
    return [note for note in notes if note]


def _entries(
    metric: str,
    found: Sequence[tuple[Setup, Summary]],
    sources: Sources,
    category: str | None = None,
) -> list[Entry]:
    compared = [
        math.nan if setup.untrained or not own.whole else round(own.mean, 3)
        for setup, _ in found
        for own in [setup.compared(metric, category)]
    ]
    comparable = [figure for figure in compared if not math.isnan(figure)]
    # One figure alone is not the best of anything.
    best = math.nan
    if len(comparable) > 1 and len(set(comparable)) > 1:
        best = max(comparable) if METRICS[metric].higher else min(comparable)
    entries = []
    for (setup, summary), figure in zip(found, compared, strict=True):
        published = None
        if summary.whole and not math.isnan(summary.mean):
            published = setup.published(metric, category)
        wrong = setup.failures_as_wrong(metric, category)
        entries.append(
            Entry(
                spread(summary.mean, summary.std),
                figure == best,
                not summary.whole and not math.isnan(summary.mean),
                *_beside(summary, published, sources),
                spread(wrong.mean, wrong.std) if wrong else "",
                bool(setup.untrained),
            )
        )
    return entries


def _beside(
    summary: Summary, published: Published | None, sources: Sources
) -> tuple[str, str, int]:
    if published is None:
        return "", "", 0
    deviation = "" if published.std is None else f" ± {published.std:.1f}"
    return (
        f"{published.value:.1f}{deviation}",
        difference(100 * summary.mean - published.value),
        sources.number(published),
    )
