"""A page of single results: what was found, where, and how the threshold was met."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from offnominal.errors import OptionError
from offnominal.report.page import Outcome, Picture, card, embed, outlined, write
from offnominal.report.words import METRICS, count, heading

__all__ = ["Card", "Outcome", "Scores", "write_page"]


@dataclass(frozen=True)
class Card:
    """One image's result, as it is shown.

    Attributes
    ----------
    category, defect : str
        What the image shows; `defect` is ``good`` for a good part.
    outcome : str
        ``hit`` (defective, rejected), ``miss`` (defective, passed), ``false alarm`` (good,
        rejected) or ``good`` (good, passed).
    score, threshold : float
        The image's score, and the score above which images are rejected.
    p_value : float
        Share of good images expected to score as high; nan where it is not known.
    image, map_picture, overlay : uint8 array of shape (H, W, 3)
        RGB: the image, its anomaly map in colours, and both together.
    truth : bool array of shape (H, W), or None
        Ground truth, or None where there is none.
    name : str
        The image's file name, or empty.
    """

    category: str
    defect: str
    outcome: Outcome
    score: float
    threshold: float
    p_value: float
    image: Picture
    truth: npt.NDArray[np.bool_] | None
    map_picture: Picture
    overlay: Picture
    name: str = ""


@dataclass(frozen=True)
class Scores:
    """All the scores of one category.

    Attributes
    ----------
    category : str
    good, defective : sequence of float
        Scores of the good and of the defective images.
    threshold : float
        Images that score more than this are rejected.
    """

    category: str
    good: Sequence[float]
    defective: Sequence[float]
    threshold: float

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Caught, defective, rejected and good images."""
        caught = sum(score >= self.threshold for score in self.defective)
        rejected = sum(score >= self.threshold for score in self.good)
        return caught, len(self.defective), rejected, len(self.good)


def write_page(
    path: Path,
    title: str,
    summary: Sequence[Mapping[str, object]],
    cards: Sequence[Card],
    *,
    scores: Sequence[Scores] | None = None,
    headline: str | None = None,
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
        Rows of the table of figures, one for each category; keys are columns, and the first of them
        names the row. Names such as ``image_auroc`` get readable headings.
    cards : sequence of Card
        Results to show, grouped by category in order of appearance.
    scores : sequence of Scores, optional
        All the scores of each category, for the plots and the headline; taken from the cards if
        None.
    headline : str, optional
        One or two plain sentences under the title; counted from `scores` if None.
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
        If a card's arrays do not fit together, an outcome is unknown, or the file cannot be
        written.
    """
    path = Path(path)
    for each in cards:
        _check(each)
    if scores is None:
        scores = [_gather(name, cards) for name in dict.fromkeys(each.category for each in cards)]
    if headline is None:
        sums = [sum(numbers) for numbers in zip(*(s.counts for s in scores), strict=True)]
        headline = _words(sums or [0] * 4, "were")
    by_name = {each.category: each for each in scores}
    shown = [_show(each) for each in cards]
    looks = [
        {
            "name": name,
            "strip": _strip(by_name[name]) if name in by_name else None,
            "cards": [each for each in shown if each["category"] == name],
        }
        for name in dict.fromkeys([*by_name, *(each.category for each in cards)])
    ]
    columns = list(dict.fromkeys(key for row in summary for key in row))
    texts = [[_text(row.get(key, "")) for key in columns] for row in summary]
    return write(
        path,
        "cards.html.j2",
        title,
        headline,
        columns=[heading(key) for key in columns],
        rows=[(row[:1], row[1:]) for row in texts],
        key=[METRICS[key][:2] for key in columns if key in METRICS],
        looks=looks,
        cards=shown,
        decisions=[
            (name, [line.partition(": ")[::2] for line in lines])
            for name, lines in (decisions or {}).items()
        ],
        pictures=[(caption, embed(picture)) for caption, picture in pictures],
    )


def _check(card: Card) -> None:
    wrong = ""
    if card.outcome not in get_args(Outcome):
        wrong = f"outcome is {card.outcome!r}; use one of {', '.join(get_args(Outcome))}"
    for field in ("image", "map_picture", "overlay"):
        picture = getattr(card, field)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            given = f"{picture.dtype} of shape {picture.shape}"
            wrong = f"{field} is {given}; give uint8 of shape (H, W, 3)"
    if card.truth is not None and card.truth.shape != card.image.shape[:2]:
        wrong = f"truth has shape {card.truth.shape} and the image {card.image.shape[:2]}"
    if wrong:
        raise OptionError(f"card {card.name or card.defect!r} of {card.category!r}: {wrong}")


def _gather(category: str, cards: Sequence[Card]) -> Scores:
    mine = [card for card in cards if card.category == category]
    good = [card.score for card in mine if card.outcome in ("good", "false alarm")]
    defective = [card.score for card in mine if card.outcome in ("hit", "miss")]
    return Scores(category, good, defective, mine[0].threshold)


def _words(counts: Sequence[int], verb: str) -> str:
    caught, defective, rejected, good = counts
    return (
        f"{caught} of {defective} defective images {verb} caught, and {rejected} of {good} good "
        f"images {verb} rejected."
    )


def _show(each: Card) -> dict[str, Any]:
    truth = None
    if each.truth is not None and each.truth.any():
        truth = outlined(each.image, each.truth)
    pictures = (each.image, truth, each.map_picture, each.overlay)
    values = (each.outcome, each.score, each.threshold, each.p_value, each.name)
    return card(each.category, each.defect, *values, pictures)


def _text(value: object) -> str:
    """Text of a table's cell."""
    if isinstance(value, float | np.floating):
        return "not defined" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def _strip(scores: Scores) -> dict[str, Any]:
    """The plot of scores against the threshold: x in percent of its width, y in pixels."""
    values = [*scores.good, *scores.defective, scores.threshold]
    low = min(values)
    span = (max(values) - low) or abs(low) or 1.0

    def across(score: float) -> float:
        return round(2 + 96 * (score - low) / span, 2)

    rows = []
    kinds = (("Good", scores.good, "good", "false-alarm"),
             ("Defective", scores.defective, "miss", "hit"))  # fmt: skip
    for row, (label, each, below, above) in enumerate(kinds):
        # Dots are spread by the golden ratio, evenly and the same in every run.
        dots = [
            (
                across(score),
                round(27 + 44 * row + 22 * (place * 0.618034 % 1), 1),
                above if score >= scores.threshold else below,
            )
            for place, score in enumerate(sorted(each))
        ]
        rows.append({"label": label, "count": count(len(each), "image"), "dots": dots})
    # Between three and seven round numbers.
    magnitude = 10.0 ** math.floor(math.log10(span / 3))
    step = max(m for m in (1, 2, 5) if m * magnitude <= span / 3) * magnitude
    numbers = range(math.ceil(low / step), math.floor((low + span) / step) + 1)
    return {
        "rows": rows,
        "threshold": (across(scores.threshold), f"{scores.threshold:.3g}"),
        "ticks": [(across(number * step), f"{number * step:.6g}") for number in numbers],
        "words": f"At the threshold {scores.threshold:.3g}, {_words(scores.counts, 'are')}",
    }
