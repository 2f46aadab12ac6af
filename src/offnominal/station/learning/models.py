"""What a version's file says of itself, for pages: read without the network that it judges by."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from offnominal.calibration import Threshold
from offnominal.cli.card import Card
from offnominal.errors import OptionError
from offnominal.images import read_image
from offnominal.pictures import overlay, resized, save_picture
from offnominal.scoring import anomaly_map

__all__ = ["Reference", "draw_reference", "model_of", "promised", "references_of", "wanted"]

_NEXT = (0.05, 0.01)  # rates that people ask for
_SMALL = 480  # the longer side of a reference's picture, in pixels


@dataclass(frozen=True)
class Reference:
    """A picture that a model learned from.

    Attributes
    ----------
    number : int
    file, digest : str
        As the model has them.
    active : bool
        Whether it counts; forgotten ones do not.
    score : float or None
        As if it had never been learned; None where the method cannot tell.
    above : bool
        Whether that lies above the threshold.
    """

    number: int
    file: str
    digest: str
    active: bool
    score: float | None
    above: bool


@lru_cache(16)
def model_of(path: Path) -> Card:
    """A version's file; they never change, so that it is read once.

    Raises
    ------
    ModelFileError
        If it cannot be used.
    """
    return Card(path)


def references_of(model: Card) -> list[Reference]:
    """What it learned from, the highest score first: whatever is odd among it shows at once."""
    known = model.good.references
    scores = dict(zip(known.numbers, known.images, strict=True))
    limit = model.threshold.value if model.threshold else None
    found = [
        Reference(
            number=number,
            file=one.file,
            digest=one.digest,
            active=one.active,
            score=float(scores[number]) if number in scores else None,
            above=limit is not None and number in scores and scores[number] > limit,
        )
        for number, one in enumerate(model.references)
    ]
    return sorted(found, key=lambda one: (not one.active, -(one.score or 0), one.number))


def promised(threshold: Threshold) -> float | None:
    """The rate of good parts that may be rejected, where it is promised or nearly so."""
    return threshold.false_reject if threshold.kind in ("conformal", "approximate") else None


def wanted(threshold: Threshold) -> tuple[int, float] | None:
    """How many more good pictures would let it promise the next better rate, and that rate."""
    if threshold.kind == "manual":
        return None
    known = threshold.false_reject if promised(threshold) else 1.0
    for rate in _NEXT:
        needed = round(1 / rate) - 1
        if needed > threshold.count and rate < known:
            return needed - threshold.count, rate
    return None


def draw_reference(model: Card, number: int, picture: Path, file: Path) -> None:
    """A reference with the heat that it would have, had it never been learned; as JPEG.

    Where the method cannot tell, or it is the only one, the picture alone.

    Parameters
    ----------
    picture : Path
        The reference.
    file : Path
        Where to write.

    Raises
    ------
    OptionError
        If the picture is not the one that was learned.
    ImageError
        If it cannot be read.
    """
    details: Any = model
    image = read_image(picture, details.sixteen_bit)
    if list(image.shape[:2]) != list(model.references[number].size):
        raise OptionError(f"{picture.name}: is not the picture that was learned; its size differs")
    known, drawn = model.good.references, image
    if number in known.numbers and model.pixel_threshold is not None:
        scores = known.scores[known.numbers.index(number)]
        size = (image.shape[0], image.shape[1])
        heat = anomaly_map(scores.patches, size, details.smoothing, scores.window)
        limit = model.pixel_threshold.value
        drawn = overlay(image, heat, 0.5 * limit, 1.5 * limit, heat > limit)
    scale = min(1.0, _SMALL / max(drawn.shape[:2]))
    size_now = (max(1, round(drawn.shape[1] * scale)), max(1, round(drawn.shape[0] * scale)))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_picture(file, resized(drawn, size_now))
