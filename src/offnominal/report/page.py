"""A self-contained HTML page of results: what was found, where, and how the threshold was met."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from offnominal._version import __version__
from offnominal.atomic import write_atomically
from offnominal.errors import OptionError
from offnominal.report.html import Picture, embed, outlined, plain, template
from offnominal.report.strip import Outcome, Scores, strip_plot
from offnominal.report.words import METRICS

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
        Rows of the table of figures, one for each category; keys are columns. Names such as
        ``image_auroc`` get readable headings.
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
    for card in cards:
        _check(card)
    if scores is None:
        scores = [_gather(name, cards) for name in dict.fromkeys(card.category for card in cards)]
    by_name = {each.category: each for each in scores}
    names = dict.fromkeys([*by_name, *(card.category for card in cards)])
    looks = [
        {
            "name": name,
            "strip": strip_plot(by_name[name]) if name in by_name else None,
            "cards": [_show(card) for card in cards if card.category == name],
        }
        for name in names
    ]
    columns = list(dict.fromkeys(key for row in summary for key in row))
    html = template("page.html.j2").render(
        title=title,
        version=__version__,
        headline=_headline(scores) if headline is None else headline,
        columns=[METRICS[key].heading if key in METRICS else plain(key) for key in columns],
        rows=[[_cell(row.get(key, "")) for key in columns] for row in summary],
        key=[(METRICS[key].heading, METRICS[key].meaning) for key in columns if key in METRICS],
        looks=looks,
        outcomes=[
            (kind, sum(card.outcome == kind for card in cards)) for kind in get_args(Outcome)
        ],
        decisions=[
            (name, [line.partition(": ")[::2] for line in lines])
            for name, lines in (decisions or {}).items()
        ],
        pictures=[(caption, embed(picture)) for caption, picture in pictures],
    )
    write_atomically(path, html.encode())
    return path


def _check(card: Card) -> None:
    what = f"card {card.name or card.defect!r} of {card.category!r}"
    if card.outcome not in get_args(Outcome):
        raise OptionError(
            f"{what}: outcome is {card.outcome!r}; use one of {', '.join(get_args(Outcome))}"
        )
    for field in ("image", "map_picture", "overlay"):
        picture = getattr(card, field)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise OptionError(
                f"{what}: {field} is {picture.dtype} of shape {picture.shape}; "
                "give uint8 of shape (H, W, 3)"
            )
    if card.truth is not None and card.truth.shape != card.image.shape[:2]:
        raise OptionError(
            f"{what}: truth has shape {card.truth.shape} and the image {card.image.shape[:2]}"
        )


def _gather(category: str, cards: Sequence[Card]) -> Scores:
    mine = [card for card in cards if card.category == category]
    return Scores(
        category=category,
        good=[card.score for card in mine if card.outcome in ("good", "false alarm")],
        defective=[card.score for card in mine if card.outcome in ("hit", "miss")],
        threshold=mine[0].threshold,
    )


def _headline(scores: Sequence[Scores]) -> str:
    defective = sum(len(each.defective) for each in scores)
    good = sum(len(each.good) for each in scores)
    caught = sum(score >= each.threshold for each in scores for score in each.defective)
    rejected = sum(score >= each.threshold for each in scores for score in each.good)
    return (
        f"{caught} of {defective} defective images were caught, "
        f"and {rejected} of {good} good images were rejected."
    )


def _show(card: Card) -> dict[str, Any]:
    """Values of a card for the template."""
    what = "a good part" if card.defect == "good" else plain(card.defect).lower()
    subject = f"{card.category}, {what}"
    truth = ""
    if card.truth is not None and card.truth.any():
        told, truth = (
            f"The true defect outlined: {subject}",
            embed(outlined(card.image, card.truth)),
        )
    elif card.outcome in ("hit", "miss"):
        told = "No ground truth for this image"
    else:
        told = "A good part: nothing to outline"
    height, width = card.image.shape[:2]
    panels = [
        ("Image", f"Photograph: {subject}", embed(card.image)),
        ("Truth", told, truth),
        ("Heat map", f"Anomaly map: {subject}", embed(card.map_picture)),
        ("Overlay", f"Anomaly map over the photograph: {subject}", embed(card.overlay)),
    ]
    return {
        "outcome": card.outcome,
        "defect": plain(card.defect),
        "name": card.name,
        "score": f"{card.score:.3g}",
        "threshold": f"{card.threshold:.3g}",
        "p_value": "" if math.isnan(card.p_value) else f"{card.p_value:.2g}",
        "panels": panels,
        "aspect": f"{width} / {height}",
    }


def _cell(value: object) -> tuple[str, bool]:
    """Text of a table's cell, and whether it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value), False
    number = float(value)
    if math.isnan(number):
        return "not defined", True
    return (str(value), True) if isinstance(value, int | np.integer) else (f"{number:.3f}", True)
