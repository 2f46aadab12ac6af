"""What a chat model must answer: one JSON object, to the letter of a schema."""

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCHEMA", "Answer", "Box", "MalformedError", "fill", "parse_answer"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the image's width and height."""

_EDGES = ("left", "top", "right", "bottom")

# Ranges stand in the descriptions and not as `minimum` and `maximum`: strict modes and grammars
# refuse numeric constraints or ignore them. What a model cannot be held to there is checked here.
# The order is that of the answer: first look and say, then judge.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "description": {
            "type": "string",
            "description": "what is wrong and where, or that nothing is, in one or two sentences",
        },
        "boxes": {
            "type": "array",
            "description": "one box around each anomaly, in fractions of the image's width and "
            "height from 0 to 1, counted from the left and from the top, left < right and "
            "top < bottom; empty if there is none",
            "items": {
                "type": "object",
                "properties": {edge: {"type": "number"} for edge in _EDGES},
                "required": list(_EDGES),
                "additionalProperties": False,
            },
        },
        "anomalous": {
            "type": "boolean",
            "description": "true if something is wrong",
        },
        "confidence": {
            "type": "number",
            "description": "probability from 0 to 1 that your value of anomalous is right",
        },
    },
    "required": ["description", "boxes", "anomalous", "confidence"],
    "additionalProperties": False,
}


class MalformedError(ValueError):
    """An answer is not what the schema asks for; the message says why, to a model or a person."""


@dataclass(frozen=True)
class Answer:
    """What a chat model said of an image.

    Attributes
    ----------
    description : str
    boxes : tuple of Box
    anomalous : bool
    confidence : float
        In [0, 1], that ``anomalous`` is right.
    """

    description: str
    boxes: tuple[Box, ...]
    anomalous: bool
    confidence: float

    @property
    def score(self) -> float:
        """How probable an anomaly is in the model's own words, in [0, 1]."""
        return self.confidence if self.anomalous else 1 - self.confidence


def parse_answer(text: str) -> Answer:
    """Read an answer; nothing is mended or guessed.

    Parameters
    ----------
    text : str
        One JSON object. White space around it and one Markdown code fence are typography and
        allowed; words are not.

    Raises
    ------
    MalformedError
        If it is anything but what :data:`SCHEMA` asks for.
    """
    try:
        found = json.loads(
            _unfenced(text), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except RecursionError as error:
        raise MalformedError("the answer is nested without end") from error
    except ValueError as error:
        raise MalformedError(
            f"the answer is not one JSON object and nothing else ({error})"
        ) from error
    _check_fields(found, SCHEMA["required"], "the answer")
    if not isinstance(found["description"], str):
        raise MalformedError("description is no text")
    if any("\ud800" <= sign <= "\udfff" for sign in found["description"]):
        raise MalformedError("description holds half a character")  # no file could be written of it
    if not isinstance(found["anomalous"], bool):
        raise MalformedError("anomalous is neither true nor false")
    if not isinstance(found["boxes"], list):
        raise MalformedError("boxes is no array")
    confidence = _fraction(found["confidence"], "confidence")
    boxes = tuple(_box(each, number) for number, each in enumerate(found["boxes"], start=1))
    return Answer(found["description"], boxes, found["anomalous"], confidence)


def fill(answer: Answer, height: int, width: int) -> NDArray[np.float32]:
    """The answer's score inside its boxes and 0 elsewhere, float32 (height, width).

    Every pixel that a box touches is inside, so that no box vanishes.
    """
    filled = np.zeros((height, width), np.float32)
    for left, top, right, bottom in answer.boxes:
        filled[_pixels(top, bottom, height), _pixels(left, right, width)] = answer.score
    return filled


def _pixels(start: float, stop: float, count: int) -> slice:
    first = math.floor(start * count)
    return slice(first, max(first + 1, math.ceil(stop * count)))


def _unfenced(text: str) -> str:
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        first, _, rest = text[:-3].partition("\n")
        if first in ("```", "```json"):
            return rest
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless it says something twice: which of the two is meant would be a guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field stands there twice")
    return found


def _check_fields(found: object, wanted: list[str], what: str) -> None:
    if not isinstance(found, dict):
        raise MalformedError(f"{what} is no JSON object")
    absent = [name for name in wanted if name not in found]
    if absent:
        raise MalformedError(f"{what} lacks {', '.join(absent)}")
    if len(found) > len(wanted):
        raise MalformedError(f"{what} has fields beyond {', '.join(wanted)}")


def _box(found: Any, number: int) -> Box:
    what = f"box {number}"
    _check_fields(found, list(_EDGES), what)
    left, top, right, bottom = (_fraction(found[edge], f"{what}'s {edge}") for edge in _EDGES)
    if left >= right or top >= bottom:
        raise MalformedError(f"{what} has no area; left < right and top < bottom are needed")
    return left, top, right, bottom


def _fraction(value: object, what: str) -> float:
    # True is an int in Python, and none in JSON.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise MalformedError(f"{what} is no number from 0 to 1")
    return float(value)
