"""Figures that authors printed: the file, and when one belongs beside a result."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from offnominal.backbones import OPEN_CLIP
from offnominal.backbones.catalogue import CATALOGUE, CLIP_TAGS
from offnominal.benchmark.published import dataset_key, find_published
from offnominal.report.words import METRICS

DATA = json.loads(files("offnominal.benchmark").joinpath("published.json").read_text("utf-8"))
MVTEC = DATA["categories"]["mvtec"]
DINO = {"backbone": "dinov2_vits14", "resolution": 448, "rotations": "agnostic"}


def cell(**changes: Any) -> dict[str, Any]:
    settings = {"dataset": "mvtec", "method": "anomalydino", "shots": 1, "options": DINO}
    return settings | changes


def test_every_record_is_whole_and_plausible() -> None:
    seen = set()
    for record in DATA["figures"]:
        assert {"method", "dataset", "shots", "metric", "value", "source"} <= set(record), record
        assert record["source"] in DATA["sources"], record
        assert record["metric"] in METRICS, record
        assert 0 <= record["value"] <= 100, record
        assert record["shots"] in ("0", "batched", "full") or record["shots"].isdigit(), record
        assert record["dataset"] == dataset_key(record["dataset"]), record
        options = json.dumps(record.get("options", {}), sort_keys=True)
        backbone = record.get("options", {}).get("backbone")
        known = CATALOGUE.keys() | {OPEN_CLIP + name for name in CLIP_TAGS}
        assert backbone is None or backbone in known, record
        place = tuple(record.get(k) for k in ("method", "dataset", "shots", "metric", "category"))
        assert (*place, options) not in seen, record
        seen.add((*place, options))
    assert {record["source"] for record in DATA["figures"]} == set(DATA["sources"])


def test_published_figures_agree_with_the_start(shared: Any) -> None:
    start = json.loads((shared / "published.json").read_text())
    for data in ("mvtec", "visa"):
        for shots, value in start["anomalydino"][data]["image_auroc"].items():
            batched = shots == "batched_zero_shot"
            settings = cell(
                dataset=data,
                method="anomalydino-batched" if batched else "anomalydino",
                shots=0 if batched else int(shots),
                options=DINO | {"resolution": 672},
            )
            found = find_published(settings, "image_auroc", DATA["categories"][data])
            assert found is not None
            assert found.value == value
    own = {"backbone": "open_clip:ViT-B-16-plus-240"}
    for data in ("mvtec", "visa"):
        for shots, value in start["winclip"][data]["image_auroc"].items():
            settings = cell(dataset=data, method="winclip", shots=int(shots), options=own)
            found = find_published(settings, "image_auroc", DATA["categories"][data])
            assert found is not None
            assert found.value == value


def test_categories_average_to_the_mean_that_was_printed() -> None:
    for source, metric, shots in (
        ("patchcore", "image_auroc", "full"),
        ("patchcore", "pixel_auroc", "full"),
        ("accurate-winclip", "image_auroc", "8"),
        ("maeday", "image_auroc", "0"),
    ):
        mine = [
            record
            for record in DATA["figures"]
            if (record["source"], record["dataset"]) == (source, "mvtec")
            and (record["metric"], record["shots"]) == (metric, shots)
        ]
        by_category = {r["category"]: r["value"] for r in mine if "category" in r}
        [mean] = [record["value"] for record in mine if "category" not in record]
        assert sorted(by_category) == sorted(MVTEC)
        assert sum(by_category.values()) / 15 == pytest.approx(mean, abs=0.1), source


def test_names_of_data_sets() -> None:
    assert dataset_key("MVTec AD") == "mvtec"
    assert dataset_key("mvtec_anomaly_detection") == "mvtec"
    assert dataset_key("VisA_pytorch") == "visa"
    assert dataset_key("mvtec-ad-2") != "mvtec"
    assert dataset_key("mvtec_loco") != "mvtec"


def test_only_the_same_cell_has_a_published_figure() -> None:
    found = find_published(cell(), "image_auroc", MVTEC)
    assert found is not None
    assert (found.value, found.std) == (96.5, 0.4)
    assert "WACV 2025" in found.source
    larger = find_published(cell(options=DINO | {"resolution": 672}), "image_auroc", MVTEC)
    assert larger is not None
    assert larger.value == 96.6
    for other in (
        cell(shots=3),
        cell(method="patchcore"),
        cell(dataset="visa"),
        cell(options=DINO | {"rotations": "none"}),
        cell(options=DINO | {"backbone": "dinov2_vitb14"}),
        cell(options=DINO | {"resolution": 224}),
    ):
        assert find_published(other, "image_auroc", MVTEC) is None, other
    assert find_published(cell(), "image_miss_at_1%", MVTEC) is None


def test_defaults_count_as_what_they_stand_for() -> None:
    bare = cell(options={"backbone": None, "weights": None, "resolution": None})
    found = find_published(bare, "image_auroc", MVTEC)
    assert found is not None
    assert found.value == 96.5
    unknown = cell(options={"backbone": None, "weights": "0123", "resolution": 448})
    assert find_published(unknown, "image_auroc", MVTEC) is None


def test_a_mean_over_some_categories_has_no_counterpart() -> None:
    assert find_published(cell(), "image_auroc", MVTEC[:14]) is None
    assert find_published(cell(), "image_auroc", [*MVTEC[:14], "other"]) is None
    assert find_published(cell(), "image_auroc", [name.upper() for name in MVTEC]) is not None
    tiles = cell(dataset="mtd", method="patchcore", shots=None, options={})
    found = find_published(tiles, "image_auroc", ["magnetic_tile"])
    assert found is not None
    assert "split" in found.note


def test_one_category_alone_may_have_one() -> None:
    full = cell(method="patchcore", shots=None, options={"backbone": "wide_resnet50_2"})
    found = find_published(full, "image_auroc", ["screw"], "screw")
    assert found is not None
    assert found.value == 98.8
    assert find_published(full, "image_auroc", ["screw"]) is None


def test_the_page_on_zero_shot_methods_prints_these_figures() -> None:
    page = Path(__file__).parents[2] / "docs" / "which-zero-shot.md"
    text = page.read_text("utf-8")
    on_page = {"COVID-19": "covid", "CVC-ClinicDB": "clinicdb", "CVC-ColonDB": "colondb"}
    figures = {
        (record["method"], record["dataset"], record["metric"]): record["value"]
        for record in DATA["figures"]
        if record["shots"] == "0" and not record.get("category")
    }
    printed = 0
    for title, metrics in (
        ("**Images", ("image_auroc", "image_ap")),
        ("**Pixels", ("pixel_auroc", "aupro")),
    ):
        table = text[text.index(title) :].split("\n\n")[1].splitlines()
        methods = [name.strip().lower() for name in table[0].split("|")[2:-1]]
        for line in table[2:]:
            name, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
            dataset = dataset_key(on_page.get(name, name))
            for method, shown in zip(methods, cells, strict=True):
                found = [figures.get((method, dataset, metric)) for metric in metrics]
                expected = "" if None in found else " / ".join(f"{value:.1f}" for value in found)
                assert shown == expected, (name, method)
                printed += bool(shown)
    assert printed == 84
