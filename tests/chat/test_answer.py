"""Answers: read to the letter of the schema, or refused; never mended."""

import json

import numpy as np
import pytest
from tests.chat_server import FINE, GOOD, check_strict

from offnominal.chat.answer import SCHEMA, Answer, MalformedError, fill, parse_answer

BOX = GOOD["boxes"][0]


def without(name: str) -> str:
    return json.dumps({key: value for key, value in GOOD.items() if key != name})


def changed(**changes: object) -> str:
    return json.dumps(GOOD | changes)


def test_a_good_answer() -> None:
    found = parse_answer(json.dumps(GOOD))
    assert found == Answer("a scratch in the middle", ((0.25, 0.5, 0.5, 0.75),), True, 0.875)
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
        ("[" * 200_000, "nested"),
        ("1" * 5000, "not one JSON object"),
        ("[]", "no JSON object"),
        ("true", "no JSON object"),
        (without("anomalous"), "lacks anomalous"),
        (without("boxes"), "lacks boxes"),
        (changed(reason="none"), "fields beyond"),
        (changed(anomalous="yes"), "anomalous is neither"),
        (changed(anomalous=1), "anomalous is neither"),
        (changed(description=None), "description is no text"),
        (changed(description="\ud83d"), "half a character"),
        (changed(confidence=1.01), "confidence is no number from 0 to 1"),
        (changed(confidence=-0.1), "confidence"),
        (changed(confidence=95), "confidence"),
        (changed(confidence="0.9"), "confidence"),
        (changed(confidence=True), "confidence"),
        (changed(confidence=float("nan")), "NaN is no JSON"),
        (changed(confidence=float("inf")), "Infinity is no JSON"),
        (changed(boxes=BOX), "boxes is no array"),
        (changed(boxes=[[0.1, 0.1, 0.2, 0.2]]), "box 1 is no JSON object"),
        (changed(boxes=[BOX, BOX | {"right": 640}]), "box 2's right"),
        (changed(boxes=[BOX | {"right": 0.25}]), "box 1 has no area"),
        (changed(boxes=[BOX | {"top": 0.8}]), "box 1 has no area"),
        (changed(boxes=[BOX | {"label": "scratch"}]), "box 1 has fields beyond"),
    ],
)
def test_anything_else_is_refused(text: str, problem: str) -> None:
    with pytest.raises(MalformedError, match=problem):
        parse_answer(text)


def test_the_schema_suits_strict_modes() -> None:
    check_strict(SCHEMA)
    assert list(SCHEMA["properties"]) == list(GOOD)


def test_boxes_are_filled_to_the_pixels_that_they_touch() -> None:
    filled = fill(parse_answer(json.dumps(GOOD)), 8, 12)
    wanted = np.zeros((8, 12), np.float32)
    wanted[4:6, 3:6] = 0.875
    np.testing.assert_array_equal(filled, wanted)
    assert filled.dtype == np.float32


@pytest.mark.parametrize("start", [0.0, 0.3, 0.5, 1 - 1e-16, 1 - 1e-9])
def test_no_box_vanishes(start: float) -> None:
    end = float(np.nextafter(start, 2))
    answer = Answer("", ((start, start, end, end),), True, 1.0)
    for height, width in ((1, 1), (7, 5), (100, 640), (3000, 4000)):
        assert fill(answer, height, width).sum() == 1


def test_the_whole_image() -> None:
    answer = Answer("", ((0.0, 0.0, 1.0, 1.0),), False, 0.25)
    assert (fill(answer, 5, 3) == 0.75).all()
