"""The page engine: one self-contained HTML file from a template, values and pictures."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageFilter

from offnominal._version import __version__
from offnominal.atomic import write_atomically
from offnominal.paths import MARK
from offnominal.pictures import DARK, stroked
from offnominal.report.words import heading
from offnominal.text import apart, printable

__all__ = ["Card", "Outcome", "Picture", "embed", "show", "write"]

Picture = npt.NDArray[np.uint8]
Outcome = Literal["hit", "miss", "false alarm", "good"]

_TRUTH = (255, 214, 10)  # colour of the truth's outline, told from both metal and lacquer


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
    p_value : float or None
        Share of good images expected to score as high; None or nan where it is not known.
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
    p_value: float | None
    image: Picture
    truth: npt.NDArray[np.bool_] | None
    map_picture: Picture
    overlay: Picture
    name: str = ""


def write(
    path: Path, template: str, title: str, headline: str | Sequence[str], **values: Any
) -> Path:
    """Write a page that opens from disk without a network.

    Parameters
    ----------
    path : Path
        Replaced in one step; its folder must exist.
    template : str
        A template of this folder that extends ``base.html.j2``.
    title : str
    headline : str or sequence of str
        What the page says, in a paragraph or several under its title.
    **values
        What the template prints. It is escaped unless marked safe. ``warning``, if there is one,
        stands between title and headline.

    Raises
    ------
    OptionError
        If the file cannot be written.
    """
    paragraphs = [headline] if isinstance(headline, str) else list(headline)
    common = {"title": title, "headline": paragraphs, "version": __version__, "warning": ""}
    common["mark"] = MARK
    html = _templates().get_template(template).render(common | values)
    write_atomically(path, html.encode("utf-8", "backslashreplace"))
    return path


def show(
    card: Card, largest: int = 480, quality: int = 78, *, foremost: bool = True
) -> dict[str, Any]:
    """A card for the template, its pictures at most `largest` pixels wide and high.

    Those that are `foremost` are printed.
    """
    truth = None
    if card.truth is not None and card.truth.any():
        truth = _outlined(card.image, card.truth)
    pictures = {
        "Image": card.image,
        "Truth": truth,
        "Heat map": card.map_picture,
        "Overlay": card.overlay,
    }
    unknown = card.p_value is None or math.isnan(card.p_value)
    height, width = card.image.shape[:2]
    score, threshold = apart(card.score, card.threshold)
    return {
        "category": card.category,
        "defect": heading(card.defect),
        "outcome": card.outcome,
        "score": score,
        "threshold": threshold,
        "p_value": "" if unknown else f"{card.p_value:.2g}",
        "ratio": card.score / card.threshold if card.threshold > 0 else 0.0,
        "name": card.name,
        "pictures": [
            (caption, "" if picture is None else embed(picture, largest, quality))
            for caption, picture in pictures.items()
        ],
        "aspect": f"{width} / {height}",
        "first": foremost,
    }


def embed(picture: Picture, largest: int = 480, quality: int = 78) -> str:
    """A picture as a data URI: WebP, its longest side at most `largest` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _outlined(image: Picture, truth: npt.NDArray[np.bool_]) -> Picture:
    """The image with the outline of the truth a little outside its edge."""
    width = max(1, round(max(truth.shape) / 200))
    large = Image.fromarray(truth).convert("L").filter(ImageFilter.MaxFilter(5))
    # A dark line under the bright one keeps it legible on any ground.
    return stroked(image, np.asarray(large) > 0, [(width + 2, DARK), (width, _TRUTH)])


def _shown(value: Any) -> Any:
    """A name that turns the direction of what follows, or has no encoding, shows itself as text."""
    return printable(value) if type(value) is str else value  # what is markup is ours


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("offnominal", "report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
