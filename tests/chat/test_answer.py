"""Answers: read to the letter of the schema, or refused; never mended."""

import json
from typing import Any

import numpy as np
import pytest
from tests.chat_server import FINE, GOOD

from offnominal.chat.answer import Answer, Box, fill, parse_answer, schema

BOX = GOOD["boxes"][0]


def without(name: str) -> str:
    return json.dumps({key: value for key, value in GOOD.items() if key != name})


def changed(**changes: object) -> str:
    return json.dumps(GOOD | changes)


def test_a_good_answer() -> None:
    found = parse_answer(json.dumps(GOOD))
    assert found.model_dump() == GOOD
    assert found.score == 0.875
    assert parse_answer(json.dumps(FINE)).score == 0.25


@pytest.mark.parametrize("around", ["{}", "\n  {}\n", "```json\n{}\n```", "```\n{}\n```\n"])
def test_typography_is_no_content(around: str) -> None:
    text = around.replace("{}", json.dumps(GOOD, indent=1))
    assert parse_answer(text) == parse_answer(json.dumps(GOOD))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not one JSON object"),
        ("Yes, it is scratched.", "not one JSON object"),
        ("Here it is: " + json.dumps(GOOD), "not one JSON object"),
        (json.dumps(GOOD) + " I hope this helps.", "not one JSON object"),
        ("```json\n" + json.dumps(GOOD) + "\n``` Done.", "not one JSON object"),
        (json.dumps(GOOD)[:-9], "not one JSON object"),
        (json.dumps(GOOD) * 2, "not one JSON object"),
        ("{" + json.dumps(GOOD)[1:-1] + ', "anomalous": false}', "twice"),
        ("[" * 200_000, "not one JSON object"),
        ("1" * 5000, "not one JSON object"),
        ("[]", "not one JSON object"),
        (without("anomalous"), "anomalous: Field required"),
        (without("boxes"), "boxes: Field required"),
        (changed(reason="none"), "reason: Extra"),
        (changed(anomalous="yes"), "anomalous: "),
        (changed(anomalous=1), "anomalous: "),
        (changed(description=None), "description: "),
        (changed(description="\ud83d"), "not one JSON object"),
        (changed(confidence=1.01), "confidence: .*less than or equal to 1"),
        (changed(confidence=-0.1), "confidence: "),
        (changed(confidence="0.9"), "confidence: "),
        (changed(confidence=True), "confidence: "),
        (changed(confidence=float("nan")), "confidence: "),
        (changed(confidence=float("inf")), "confidence: "),
        (changed(boxes=BOX), "boxes: "),
        (changed(boxes=[[0.1, 0.1, 0.2, 0.2]]), "boxes 0: "),
        (changed(boxes=[BOX, BOX | {"right": 640}]), "boxes 1 right: "),
        (changed(boxes=[BOX | {"right": 0.25}]), "boxes 0: no area"),
        (changed(boxes=[BOX | {"top": 0.8}]), "boxes 0: no area"),
        (changed(boxes=[BOX | {"label": "scratch"}]), "boxes 0 label: Extra"),
    ],
)
def test_anything_else_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_answer(text)


def test_the_schema_suits_strict_modes() -> None:
    """Every property required, none beside them, no reference, and no constraint on a value."""
    allowed = {"type", "title", "description", "properties", "required", "additionalProperties"}

    def check(part: dict[str, Any]) -> None:
        assert set(part) <= allowed | {"items"}
        if part["type"] == "object":
            assert part["additionalProperties"] is False
            assert part["required"] == list(part["properties"])
        for each in [*part.get("properties", {}).values(), part.get("items")]:
            if each is not None:
                check(each)

    check(schema())
    assert list(schema()["properties"]) == list(GOOD)


def test_boxes_are_filled_to_the_pixels_that_they_touch() -> None:
    filled = fill(parse_answer(json.dumps(GOOD)), 8, 12)
    wanted = np.zeros((8, 12), np.float32)
    wanted[4:6, 3:6] = 0.875
    np.testing.assert_array_equal(filled, wanted)
    assert filled.dtype == np.float32


@pytest.mark.parametrize("start", [0.0, 0.3, 0.5, 1 - 1e-16, 1 - 1e-9])
def test_no_box_vanishes(start: float) -> None:
    end = float(np.nextafter(start, 2))
    box = Box(left=start, top=start, right=end, bottom=end)
    answer = Answer(description="", boxes=[box], anomalous=True, confidence=1.0)
    for height, width in ((1, 1), (7, 5), (100, 640), (3000, 4000)):
        assert fill(answer, height, width).sum() == 1


def test_the_whole_image() -> None:
    box = Box(left=0.0, top=0.0, right=1.0, bottom=1.0)
    answer = Answer(description="", boxes=[box], anomalous=False, confidence=0.25)
    assert (fill(answer, 5, 3) == 0.75).all()
