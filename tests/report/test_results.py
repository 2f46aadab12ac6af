"""Means over categories and seeds, labels, and the sentences made of them."""

import math
from pathlib import Path
from typing import Any

import pytest

from offnominal.benchmark.store import FinishedCell
from offnominal.report.results import Setup, best_setup, gather, label_setups, varying
from offnominal.report.sections import size_rows
from offnominal.report.sentences import best_line, learning_line
from offnominal.report.tables import by_category, overview


def cell(
    category: str, seed: int, auroc: float, shots: int | None = 4, **changes: Any
) -> FinishedCell:
    settings = {
        "dataset": "mvtec",
        "category": category,
        "samples": "1",
        "method": "anomalydino",
        "shots": shots,
        "seed": seed,
        "sampling": "first",
        "options": {"backbone": "dinov2_vits14", "resolution": 448},
        "cached": True,
        "data": {},
        "defects": 0,
        "marked": False,
        "tested": "all",
        "set_aside": 0,
    }
    name = f"{category}-{seed}-{shots}-{changes}"
    metrics = {"figures": {"image_auroc": auroc, "image_miss_at_1%": 1 - auroc}}
    return FinishedCell(Path(name), settings | changes, {}, metrics)


def test_categories_are_averaged_before_seeds() -> None:
    figures = {("a", 0): 0.9, ("b", 0): 0.7, ("a", 1): 0.8, ("b", 1): 0.6, ("a", 2): 1, ("b", 2): 1}
    [setup] = gather([cell(c, s, value) for (c, s), value in figures.items()])
    summary = setup.mean("image_auroc")
    assert summary.mean == pytest.approx((0.8 + 0.7 + 1.0) / 3)
    # Sample deviation of the seeds' means, not of the six figures.
    assert summary.std == pytest.approx(
        math.sqrt((0.0333**2 + 0.1333**2 + 0.1667**2) / 2), abs=1e-4
    )
    assert (summary.seeds, summary.whole) == (3, True)
    one = setup.mean("image_auroc", "b")
    assert (one.mean, one.std) == (pytest.approx(2.3 / 3), pytest.approx(0.2082, abs=1e-4))


def test_a_seed_that_lacks_a_category_is_left_out_of_the_mean() -> None:
    cells = [cell("a", 0, 0.9), cell("b", 0, 0.7), cell("a", 1, 0.99)]
    [setup] = gather(cells)
    summary = setup.mean("image_auroc")
    assert (summary.mean, summary.seeds, summary.whole) == (pytest.approx(0.8), 1, True)
    assert math.isnan(summary.std)


def test_a_mean_over_fewer_categories_is_marked_and_never_the_best() -> None:
    cells = [cell("a", 0, 0.9), cell("b", 0, 0.7), cell("a", 0, 0.99, shots=8)]
    few, more = gather(cells)
    assert more.mean("image_auroc").mean == 0.99
    assert not more.mean("image_auroc").whole
    assert best_setup([few, more]) is few
    table = overview("", [few, more], ["shots"], [])
    assert [entries[0].partial for _, entries in table.rows] == [False, True]
    assert not any(entry.best for _, entries in table.rows for entry in entries)


def test_a_figure_that_a_category_never_has_is_not_missed() -> None:
    cells = [cell("a", 0, 0.9), cell("b", 0, math.nan)]
    [setup] = gather(cells)
    assert setup.mean("image_auroc").mean == 0.9
    assert setup.mean("image_auroc").whole


def test_timed_cells_stand_for_cached_ones() -> None:
    warm, cold = cell("a", 0, 0.9), cell("a", 0, 0.9, cached=False)
    for order in ([warm, cold], [cold, warm]):
        [setup] = gather(order)
        assert setup.cells["a", 0] is cold
        assert setup.names == {warm.name, cold.name}


def test_of_files_that_changed_the_last_cell_stands() -> None:
    old, new = cell("a", 0, 0.9), cell("a", 0, 0.8, samples="2", cached=True)
    old.run["finished"], new.run["finished"] = "2026-01-01", "2026-01-02"
    for order in ([old, new], [new, old]):
        [setup] = gather(order)
        assert setup.mean("image_auroc").mean == 0.8


def test_labels_name_what_differs_and_nothing_else() -> None:
    setups = gather([cell("a", 0, 0.9, shots) for shots in (1, 8, None, 0)])
    assert label_setups(setups) == ["no images", "1 image", "8 images", "all images"]
    options = [
        {"backbone": name, "resolution": size, "mask": "auto", "weights": digest}
        for name, size, digest in (("dinov2_vits14", 448, "1f"), ("resnet50", 256, "2e"))
    ]
    setups = gather([cell("a", 0, 0.9, options=each) for each in options])
    # Resolution and weights follow from the backbone.
    assert varying(setups) == ["backbone"]
    assert label_setups(setups) == ["dinov2_vits14", "resnet50"]


def curve(*points: tuple[int | None, float]) -> list[Setup]:
    return gather([cell("a", 0, auroc, shots) for shots, auroc in points])


def test_learning_line_counts_what_lies_above_guessing() -> None:
    # 0.935 is 97.4 % of 0.96 as a ratio, but 94.6 % of the way from guessing.
    assert learning_line(curve((1, 0.7), (8, 0.935), (64, 0.96))) == (
        "8 images reach 94 % of what 64 reach: more images still help."
    )
    assert learning_line(curve((1, 0.7), (8, 0.951), (64, 0.96))) == (
        "8 images reach 98 % of what 64 reach."
    )
    assert learning_line(curve((1, 0.959), (8, 0.955), (None, 0.96))) == (
        "1 image reaches 99 % of what all reach."
    )
    assert learning_line(curve((1, 0.97), (8, 0.96))) == "1 image reaches no less than 8."
    assert learning_line(curve((1, 0.5), (8, 0.53))) == (
        "Even 8 images do little better than guessing (53.0 %)."
    )
    assert learning_line(curve((8, 0.96))) == ""


def test_best_line_tells_whether_the_lead_is_more_than_chance() -> None:
    values = {("x", 0): 0.90, ("x", 1): 0.94, ("y", 0): 0.91, ("y", 1): 0.91}
    setups = gather(
        [cell("a", seed, v, options={"mask": name}) for (name, seed), v in values.items()]
    )
    assert best_line(setups, ["x", "y"]) == (
        "Best image AUROC: 92.0 ± 2.8 % (x); y: 1.0 points less, no more than the spread over "
        "seeds."
    )


def test_best_is_lowest_where_lower_is_better() -> None:
    setups = gather([cell("a", 0, 0.9, 1), cell("a", 0, 0.8, 2)])
    table = by_category("image_miss_at_1%", setups, ["1", "2"], [])
    [(_, one), (_, mean)] = table.rows
    assert [entry.best for entry in one] == [True, False]
    assert [entry.text for entry in mean] == ["10.0", "20.0"]


def test_defects_are_told_by_size_where_there_are_any() -> None:
    size = {"name": "tiny", "lower": 0.0, "upper": 0.0001, "regions": 4}
    shares = {"recall_at_1%": 0.25, "found_at_1%": 0.5, "recall_at_5%": 0.5, "found_at_5%": 1.0}
    last = {"recall_at_30%": 1.0, "found_at_30%": None}
    empty = size | {"name": "large", "regions": 0} | dict.fromkeys([*shares, *last])
    cell = FinishedCell(Path("cell"), {}, {}, {"regions": [size | shares | last, empty]})
    assert size_rows(cell) == [
        (["tiny, 0 to 0.01 % of the image"], ["4", "25", "50", "50", "100", "100", "–"])
    ]
    assert size_rows(FinishedCell(Path("cell"), {}, {}, {})) == []
