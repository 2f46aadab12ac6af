"""A page of single results: what was found, where, and how the threshold was met."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offnominal.report.page import Card, Outcome, Picture, embed, show, write
from offnominal.report.words import METRICS, count, heading
from offnominal.text import digits

__all__ = ["Card", "Outcome", "Scores", "write_page"]


@dataclass(frozen=True)
class Scores:
    """All the scores of one category.

    Attributes
    ----------
    category : str
    good, defective : sequence of float
        Scores of the good and of the defective images.
    threshold : float
        Images that score above this are rejected.
    """

    category: str
    good: Sequence[float]
    defective: Sequence[float]
    threshold: float

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Caught, defective, rejected and good images."""
        caught = sum(score > self.threshold for score in self.defective)
        rejected = sum(score > self.threshold for score in self.good)
        return caught, len(self.defective), rejected, len(self.good)


def write_page(
    path: Path,
    title: str,
    summary: Sequence[Mapping[str, object]],
    cards: Sequence[Card],
    *,
    scores: Sequence[Scores],
    decisions: Mapping[str, Sequence[str]] | None = None,
    pictures: Sequence[tuple[str, Picture]] = (),
) -> Path:
    """Write one HTML file that opens from disk without a network.

    Parameters
    ----------
    path : Path
        The file to write; its folder must exist. It is replaced in one step.
    title : str
        Heading of the page.
    summary : sequence of mappings
        Rows of the table of figures, one for each category; keys are columns, the same for all, and
        the first of them names the row. Names such as ``image_auroc`` get readable headings.
    cards : sequence of Card
        Results to show, under their categories.
    scores : sequence of Scores
        All the scores of each category, for the plots and the headline.
    decisions : mapping of str to sequence of str, optional
        For each category what the fit decided, as ``"subject: what: why"``.
    pictures : sequence of (str, uint8 array of shape (H, W, 3) or (H, W)), optional
        Captioned pictures for the fit report, such as foreground masks.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    OptionError
        If the file cannot be written.
    """
    shown = [show(each) for each in cards]
    looks = [
        {
            "name": each.category,
            "strip": _strip(each),
            "cards": mine,
            "left": len(each.good) + len(each.defective) - len(mine),
        }
        for each in scores
        for mine in [[card for card in shown if card["category"] == each.category]]
    ]
    columns = list(summary[0]) if summary else []
    texts = [[_text(value) for value in row.values()] for row in summary]
    return write(
        path,
        "cards.html.j2",
        title,
        _words([sum(numbers) for numbers in zip(*(s.counts for s in scores), strict=True)], "were"),
        columns=[heading(key) for key in columns],
        rows=[(row[:1], row[1:]) for row in texts],
        key=[METRICS[key][:2] for key in columns if key in METRICS],
        looks=looks,
        cards=shown,
        decisions=[
            (name, [line.partition(": ")[::2] for line in lines])
            for name, lines in (decisions or {}).items()
        ],
        pictures=[(caption, embed(picture, 1400)) for caption, picture in pictures],
    )


def _words(counts: Sequence[int], verb: str) -> str:
    caught, defective, rejected, good = counts
    return (
        f"{caught} of {defective} defective images {verb} caught, and {rejected} of {good} good "
        f"images {verb} rejected."
    )


def _text(value: object) -> str:
    """Text of a table's cell."""
    if isinstance(value, float):
        return "not defined" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def _strip(scores: Scores) -> dict[str, Any]:
    """The plot of scores against the threshold: x in percent of its width, y in pixels."""
    limit = scores.threshold
    values = [*scores.good, *scores.defective, limit]
    low = min(values)
    span = (max(values) - low) or abs(low) or 1.0

    def across(score: float) -> float:
        return round(2 + 96 * (score - low) / span, 2)

    rows = []
    kinds = [
        ("Good", scores.good, "good", "false-alarm"),
        ("Defective", scores.defective, "miss", "hit"),
    ]
    for row, (label, each, below, above) in enumerate(kinds):
        # Dots are spread by the golden ratio, evenly and the same in every run.
        heights = [27 + 44 * row + 22 * (place * 0.618034 % 1) for place in range(len(each))]
        dots = [
            (across(score), round(height, 1), above if score > limit else below)
            for score, height in zip(sorted(each), heights, strict=True)
        ]
        rows.append({"label": label, "count": count(len(each), "image"), "dots": dots})
    # Between three and seven round numbers.
    magnitude = 10.0 ** math.floor(math.log10(span / 3))
    step = max(m for m in (1, 2, 5) if m * magnitude <= span / 3) * magnitude
    numbers = range(math.ceil(low / step), math.floor((low + span) / step) + 1)
    return {
        "rows": rows,
        "threshold": (across(limit), digits(limit)),
        "ticks": [(across(number * step), f"{number * step:.6g}") for number in numbers],
        "words": f"At the threshold {digits(limit)}, {_words(scores.counts, 'are')}",
    }
