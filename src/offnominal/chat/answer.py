"""What a chat model must answer: one JSON object, to the letter of a schema."""

import json
import math
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

__all__ = ["Answer", "Box", "fill", "parse_answer", "schema"]

MOST_BOXES = 256
"""Boxes of an answer: each is drawn into a map of the image's size."""
MOST_WORDS = 20_000
"""Characters of a description: it is stored with every result."""

Fraction = Annotated[float, Field(ge=0, le=1)]


def _simplify(schema: dict[str, Any]) -> None:
    """Leave out what is for readers of the code, and bounds, which many servers refuse."""
    schema.pop("description")
    for field in schema["properties"].values():
        for name in ("title", "minimum", "maximum", "maxItems", "maxLength"):
            field.pop(name, None)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, json_schema_extra=_simplify)


class Box(_Strict):
    """Edges of a box, as fractions of the image's width and height."""

    left: Fraction
    top: Fraction
    right: Fraction
    bottom: Fraction

    @model_validator(mode="after")
    def _check_area(self) -> Self:
        if self.left >= self.right or self.top >= self.bottom:
            raise ValueError("no area: left < right and top < bottom are needed")
        return self


class Answer(_Strict):
    """What a chat model said of an image: in this order, first look and say, then judge."""

    description: str = Field(
        max_length=MOST_WORDS,
        description="what is wrong and where, or that nothing is, in one or two sentences",
    )
    boxes: list[Box] = Field(
        max_length=MOST_BOXES,
        description="one box around each anomaly, in fractions of the image's width and height "
        "from 0 to 1, counted from the left and from the top, left < right and top < bottom; "
        "empty if there is none",
    )
    anomalous: bool = Field(description="true if something is wrong")
    confidence: Fraction = Field(
        description="probability from 0 to 1 that your value of anomalous is right"
    )

    @property
    def score(self) -> float:
        """How probable an anomaly is in the model's own words, in [0, 1]."""
        return self.confidence if self.anomalous else 1 - self.confidence


def schema() -> dict[str, Any]:
    """The JSON schema of an answer, in what strict modes allow."""
    found = Answer.model_json_schema()
    # In its place, since not every server that takes a schema follows references.
    found["properties"]["boxes"]["items"] = found.pop("$defs")["Box"]
    return found


def parse_answer(text: str) -> Answer:
    """Read an answer; nothing is mended or guessed.

    Parameters
    ----------
    text : str
        One JSON object. White space around it and one Markdown code fence are typography and
        allowed; words are not.

    Raises
    ------
    ValueError
        If it is anything else; the message says why, to a model or a person.
    """
    text = text.strip()
    first, _, rest = text.removesuffix("```").partition("\n")
    if text.endswith("```") and first in ("```", "```json"):
        text = rest
    try:
        answer = Answer.model_validate_json(text)
    except ValidationError as error:
        raise ValueError("; ".join(map(_problem, error.errors()[:3]))) from None
    json.loads(text, object_pairs_hook=_check_unique)
    return answer


def _problem(error: Any) -> str:
    place = " ".join(map(str, error["loc"])) or "not one JSON object"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}"


def _check_unique(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):  # which of the two is meant would be a guess
        raise ValueError("a field stands there twice")


def fill(answer: Answer, height: int, width: int) -> NDArray[np.float32]:
    """The answer's score inside its boxes and 0 elsewhere, float32 (height, width).

    Every pixel that a box touches is inside, so that no box vanishes.
    """
    filled = np.zeros((height, width), np.float32)
    for box in answer.boxes:
        rows, columns = _pixels(box.top, box.bottom, height), _pixels(box.left, box.right, width)
        filled[rows, columns] = answer.score
    return filled


def _pixels(start: float, stop: float, count: int) -> slice:
    first = math.floor(start * count)
    return slice(first, max(first + 1, math.ceil(stop * count)))
