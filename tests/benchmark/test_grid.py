"""Parsing of ``--set``, and combinations."""

import pytest

from offnominal.benchmark.grid import combinations, parse_sets, variants
from offnominal.detectors.registry import METHODS as LISTED
from offnominal.detectors.registry import detector_class
from offnominal.errors import OptionError

METHODS = ["anomalydino"]


def test_values_take_the_kind_of_the_option() -> None:
    parsed = parse_sets(
        [
            "rotations=none,agnostic,0+90+180",
            "aggregate=top1,max",
            "resolution=224,448",
            "smoothing=4,0",
            "neighbours=1,3",
            "mask_references=true,false",
            "layers=2+3,3,default",
            "normalize=none,l2",
            "mask_threshold=10,2.5",
        ],
        METHODS,
    )
    assert parsed == {
        "rotations": ["none", "agnostic", "0,90,180"],
        "aggregate": ["top1", "max"],
        "resolution": [224, 448],
        "smoothing": [4.0, 0.0],
        "neighbours": [1, 3],
        "mask_references": [True, False],
        "layers": [(2, 3), (3,), None],
        "normalize": ["none", "l2"],
        "mask_threshold": [10, 2.5],
    }
    assert all(isinstance(value, float) for value in parsed["smoothing"])


def test_a_name_may_be_shortened_while_it_is_unique() -> None:
    assert parse_sets(["rotation=none"], METHODS) == {"rotations": ["none"]}
    assert parse_sets(["mask=off"], METHODS) == {"mask": ["off"]}
    assert parse_sets(["mask-references=true"], METHODS) == {"mask_references": [True]}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("rotations", "NAME=VALUE"),
        ("rotations=", "NAME=VALUE"),
        ("colour=red", "no option 'colour'"),
        ("m=off", "no option 'm'"),
        ("neighbours=few", "give a number"),
        ("smoothing=much", "give a number"),
        ("layers=a", "give a number"),
        ("device=cpu", "no option"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, word: str) -> None:
    with pytest.raises(OptionError, match=word):
        parse_sets([text], METHODS)


def test_combinations() -> None:
    assert combinations({}) == [{}]
    assert combinations({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_methods_that_take_another_backbone_are_told_it_or_say_why_not() -> None:
    with_one = {m for m in LISTED if "backbone" in detector_class(m).option_defaults()}
    for method in with_one - {"ensemble"}:  # which takes several
        impossible: list[str] = []
        found = variants(method, ["mobilenetv2_100"], {}, {}, impossible)
        assert [one["backbone"] for one in found] == ["mobilenetv2_100"] * len(found)
        assert len(found) + len(impossible) == 1
