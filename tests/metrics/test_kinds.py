"""Figures of each class of defect, and which class was taken for which."""

import math

import pytest

from offnominal.errors import OptionError
from offnominal.metrics import confusion, image_metrics, kind_figures

LABELS = [0, 0, 0, 1, 1, 1, 1]
DEFECTS = ["good", "good", "good", "dent", "scratch", "dent", "scratch"]
SCORES = [0.1, 0.2, 0.6, 0.9, 0.8, 0.5, 0.3]
DECISIONS = [False, False, True, True, True, True, False]
SAID = [None, None, "dent", "dent", "dent", None, None]


def test_each_class_against_all_the_good_images() -> None:
    dent, scratch = kind_figures(LABELS, DEFECTS, SCORES, DECISIONS, SAID)
    assert (dent["kind"], dent["images"], scratch["images"]) == ("dent", 2, 2)
    whole = image_metrics([0, 0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9, 0.5])
    assert dent["image_auroc"] == whole["image_auroc"]
    assert (dent["misses"], scratch["misses"]) == (0.0, 0.5)
    assert (dent["named"], scratch["named"]) == (0.5, 0.0)
    [row, _] = kind_figures(LABELS, DEFECTS, SCORES, [None] * 7)
    assert math.isnan(row["misses"])
    assert math.isnan(row["named"])
    assert kind_figures([0], ["good"], [1.0], [False]) == []


def test_which_class_was_taken_for_which() -> None:
    table = confusion(LABELS, DEFECTS, DECISIONS, SAID)
    assert table == {
        "truth": ["good", "dent", "scratch"],
        "said": ["good", "dent", "scratch", "(no class)"],
        "counts": [[2, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]],
    }
    assert sum(map(sum, table["counts"])) == len(LABELS)


def test_without_classes_there_is_no_table() -> None:
    assert confusion(LABELS, DEFECTS, DECISIONS, [None] * 7) is None
    # What knows no class but "defect" tells none apart.
    only = [None, None, "defect", "defect", "defect", "defect", None]
    assert confusion(LABELS, DEFECTS, DECISIONS, only) is None
    rows = kind_figures(LABELS, DEFECTS, SCORES, DECISIONS, only)
    assert all(math.isnan(row["named"]) for row in rows)
    assert confusion(LABELS, DEFECTS, [None] * 7, SAID) is None
    with pytest.raises(OptionError, match="columns of 6, 7 images"):
        confusion(LABELS, DEFECTS, DECISIONS, SAID[1:])
