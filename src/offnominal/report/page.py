"""A self-contained HTML page of results: what was found, where, and how the threshold was met."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from offnominal._version import __version__
from offnominal.errors import OptionError
from offnominal.report.strip import Outcome, Scores, strip_plot

__all__ = ["Card", "Outcome", "Scores", "write_page"]

Picture = npt.NDArray[np.uint8]

_LARGEST = 480  # longest side of an embedded picture, in pixels
_TRUTH = (255, 214, 10)  # colour of the truth's outline, told from both metal and lacquer

#: Column headings and, for the page's key, what a figure means in plain words.
_FIGURES = {
    "image_auroc": (
        "Image AUROC",
        "the chance that a defective image scores higher than a good one; 0.5 is guessing",
    ),
    "image_ap": ("Image AP", "precision averaged over all thresholds, counting images"),
    "image_f1_max": ("Image F1-max", "balance of caught and false alarms at the best threshold"),
    "pixel_auroc": ("Pixel AUROC", "the same chance, for a defective and a good pixel"),
    "pixel_ap": ("Pixel AP", "precision averaged over all thresholds, counting pixels"),
    "pixel_f1_max": ("Pixel F1-max", "balance of found and false pixels at the best threshold"),
    "aupro": (
        "AUPRO",
        "how much of each defect is covered while few good pixels are; small defects count as "
        "much as large ones",
    ),
}


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
    html = _template().render(
        title=title,
        version=__version__,
        headline=_headline(scores) if headline is None else headline,
        columns=[_FIGURES.get(key, (_plain(key), ""))[0] for key in columns],
        rows=[[_cell(row.get(key, "")) for key in columns] for row in summary],
        key=[_FIGURES[key] for key in columns if key in _FIGURES],
        looks=looks,
        outcomes=[
            (kind, sum(card.outcome == kind for card in cards)) for kind in get_args(Outcome)
        ],
        decisions=[
            (name, [line.partition(": ")[::2] for line in lines])
            for name, lines in (decisions or {}).items()
        ],
        pictures=[(caption, _embed(picture)) for caption, picture in pictures],
    )
    draft = path.with_name(f".{path.name}.partial")
    try:
        draft.write_text(html, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise OptionError(f"{path}: the page cannot be written ({error}); name another") from error
    return path


@lru_cache(maxsize=1)
def _template() -> Template:
    loader = PackageLoader("offnominal", "report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


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
    what = "a good part" if card.defect == "good" else _plain(card.defect).lower()
    subject = f"{card.category}, {what}"
    truth = ""
    if card.truth is not None and card.truth.any():
        told, truth = f"The true defect outlined: {subject}", _embed(_outlined(card))
    elif card.outcome in ("hit", "miss"):
        told = "No ground truth for this image"
    else:
        told = "A good part: nothing to outline"
    height, width = card.image.shape[:2]
    panels = [
        ("Image", f"Photograph: {subject}", _embed(card.image)),
        ("Truth", told, truth),
        ("Heat map", f"Anomaly map: {subject}", _embed(card.map_picture)),
        ("Overlay", f"Anomaly map over the photograph: {subject}", _embed(card.overlay)),
    ]
    return {
        "outcome": card.outcome,
        "defect": _plain(card.defect),
        "name": card.name,
        "score": f"{card.score:.3g}",
        "threshold": f"{card.threshold:.3g}",
        "p_value": "" if math.isnan(card.p_value) else f"{card.p_value:.2g}",
        "panels": panels,
        "aspect": f"{width} / {height}",
    }


def _outlined(card: Card) -> Picture:
    """The image with the outline of the truth a little outside its edge."""
    assert card.truth is not None
    width = max(1, round(max(card.truth.shape) / 200))
    mask = cv2.dilate(card.truth.astype(np.uint8), np.ones((5, 5), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    picture = card.image.copy()
    # A dark line under the bright one keeps it legible on any ground.
    cv2.drawContours(picture, contours, -1, (20, 20, 20), width + 2, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, _TRUTH, width, cv2.LINE_AA)
    return picture


def _embed(picture: Picture) -> str:
    """A picture as a data URI: WebP, no larger than it is shown on a dense screen."""
    image = Image.fromarray(picture)
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=78, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _plain(name: str) -> str:
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _cell(value: object) -> tuple[str, bool]:
    """Text of a table's cell, and whether it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value), False
    number = float(value)
    if math.isnan(number):
        return "not defined", True
    return (str(value), True) if isinstance(value, int | np.integer) else (f"{number:.3f}", True)
