"""Which images the gallery shows, and that its small heat maps are the large ones made small."""

import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.report.runs import write_plans

from offnominal.benchmark.store import FinishedCell, read_runs
from offnominal.images import read_image
from offnominal.report import gallery
from offnominal.report.gallery import _heat, choose, foremost, make_cards
from offnominal.scoring import anomaly_map


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plans(tmp_path_factory.mktemp("gallery"))


@pytest.fixture
def cell(runs: Path) -> FinishedCell:
    cells, _ = read_runs(runs)
    return next(cell for cell in cells if cell.settings["shots"] == 1)


@pytest.mark.slow
def test_worst_first_and_hits_near_the_median(cell: FinishedCell) -> None:
    scores = np.array(cell.scores["score"])
    labels, rejected = np.array(cell.scores["label"]), np.array(cell.scores["is_anomalous"])
    choices = choose(cell)
    misses = [c.index for c in choices if c.outcome == "miss"]
    expected = [i for i in np.argsort(scores) if labels[i] == 1 and not rejected[i]]
    assert misses == expected[:4]
    alarms = [c.index for c in choices if c.outcome == "false alarm"]
    expected = [i for i in np.argsort(-scores) if labels[i] == 0 and rejected[i]]
    assert alarms == expected[:4]
    assert alarms
    hits = [c for c in choices if c.outcome == "hit"]
    kinds = [choice.value("defect") for choice in hits]
    assert max(map(kinds.count, kinds)) == 2
    for kind in set(kinds):
        mine = [i for i in range(len(scores)) if cell.scores["defect"][i] == kind and rejected[i]]
        middle = np.median(scores[mine])
        first = next(c for c in hits if c.value("defect") == kind and c.rank == 0)
        assert abs(scores[first.index] - middle) == min(abs(scores[mine] - middle))


def test_without_a_threshold_the_best_f1_stands_in(cell: FinishedCell) -> None:
    bare = dataclasses.replace(cell)
    nothing: list[None] = [None] * len(cell.scores["score"])
    vars(bare)["scores"] = cell.scores | {"threshold": nothing, "is_anomalous": nothing}
    choices = choose(bare)
    assert {choice.limit for choice in choices} == {
        cell.metrics["figures"]["image_f1_max_threshold"]
    }


def test_small_heat_is_the_large_map_made_small(cell: FinishedCell) -> None:
    choice = next(choice for choice in choose(cell) if choice.outcome == "hit")
    full, small = (900, 1200), (168, 224)
    whole = anomaly_map(cell.patch_scores()[choice.index], full, 4.0)
    expected = cv2.resize(whole, small[::-1], interpolation=cv2.INTER_AREA)
    heat = _heat(choice, full, small)
    assert heat.shape == small
    assert float(np.abs(heat - expected).max()) < 0.01 * float(np.ptp(expected))


def test_tiles_reach_beyond_the_image(cell: FinishedCell) -> None:
    options = cell.settings["options"] | {"tile": 64, "smoothing": 0.0}
    tiled = dataclasses.replace(cell, settings=cell.settings | {"options": options})
    choice = dataclasses.replace(choose(cell)[0], cell=tiled)
    # A grid of 12 patches of 8 px covers 96 px; an image of 90 px sees only part of it.
    grid = cell.patch_scores()[choice.index]
    expected = anomaly_map(grid, (90, 90), 0.0, (0, 0, 96, 96))
    assert np.array_equal(_heat(choice, (90, 90), (90, 90)), expected)


def test_kept_maps_are_shown_as_they_are(cell: FinishedCell, tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    (folder / "maps").mkdir(parents=True)
    choice = dataclasses.replace(choose(cell)[0], cell=dataclasses.replace(cell, folder=folder))
    kept = np.linspace(0, 1, 96 * 96, dtype=np.float16).reshape(96, 96)
    np.save(folder / "maps" / f"{choice.index:05d}.npy", kept)
    heat = _heat(choice, (96, 96), (96, 96))
    assert np.array_equal(heat, kept.astype(np.float32))


def test_damaged_patch_scores_and_lost_images_cost_their_cards_only(
    runs: Path, cell: FinishedCell, tmp_path: Path
) -> None:
    choices = choose(cell)
    folder = shutil.copytree(cell.folder, tmp_path / "cell")
    (folder / "patch_scores.npz").write_bytes(b"PK")
    broken = dataclasses.replace(cell, folder=folder)
    mixed = [choices[0], dataclasses.replace(choices[1], cell=broken)]
    lost = dataclasses.replace(cell, settings=cell.settings | {"data": {"root": "/nowhere"}})
    mixed.append(dataclasses.replace(choices[2], cell=lost))
    cards, gone = make_cards(mixed)
    assert [card["name"] for card in cards] == [choices[0].value("image")]
    assert len(gone) == 2
    assert any("patch_scores.npz" in text for text in gone)
    assert any("/nowhere" in text for text in gone)
    # Where the data lies now is a folder to look into first.
    cards, gone = make_cards(mixed[2:], data=runs.parent / cell.settings["dataset"])
    assert (len(cards), gone) == (1, [])


def test_a_full_page_keeps_the_foremost_of_every_kind(
    cell: FinishedCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = choose(cell)
    first = [choice for choice in choices if choice.rank == 0]
    assert 1 < len(first) < len(choices)
    assert foremost(choices) == choices
    monkeypatch.setattr(gallery, "_MOST", len(first))
    assert foremost(choices) == first


def test_pictures_keep_the_shape_of_the_image(cell: FinishedCell) -> None:
    choice = choose(cell)[0]
    [card], _ = make_cards([choice])
    assert card["aspect"] == "96 / 96"
    sources = dict(card["pictures"])
    assert all(
        sources[part].startswith("data:image/webp;base64,")
        for part in ("Image", "Heat map", "Overlay")
    )
    root = Path(cell.settings["data"]["root"])
    assert read_image(root / choice.value("image")).shape == (96, 96, 3)
