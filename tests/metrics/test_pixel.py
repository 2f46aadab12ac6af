"""Pixel metrics: hand-made cases, scikit-learn, the reference procedure's figures, every edge."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from offnominal.errors import OptionError
from offnominal.metrics import SIZE_CLASSES, PixelMetrics, pixel_metrics

MODES = ("exact", "binned")


def golden(shared: Path, case: str):
    folder = shared / "golden" / "metrics"
    expected = json.loads((folder / "expected.json").read_text())[case]["expected"]
    with np.load(folder / f"{case}.npz") as stored:
        maps = stored["maps"].astype(np.float32)
        masks = np.unpackbits(stored["masks"], axis=-1)[..., : maps.shape[-1]].astype(bool)
    names = ("pixel_auroc", "pixel_ap", "pixel_f1_max")
    figures = {name: expected[name] for name in names}
    figures["aupro"], figures["aupro_0.05"] = expected["aupro"]["0.3"], expected["aupro"]["0.05"]
    return maps, masks, figures


def filled(maps, masks, mode: str = "exact", **options) -> PixelMetrics:
    metrics = PixelMetrics(mode, **options)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.update(anomaly_map, mask)
    return metrics


@pytest.mark.parametrize("case", ["small", "hard"])
def test_exact_agrees_with_the_reference_procedure(shared: Path, case: str) -> None:
    maps, masks, expected = golden(shared, case)
    metrics = filled(maps, masks)
    result = metrics.compute()
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-6)
    assert metrics.error == 0
    assert pixel_metrics(maps, masks)["aupro"] == result["aupro"]
    assert pixel_metrics(maps, masks, limit=0.05)["aupro"] == result["aupro_0.05"]


@pytest.mark.parametrize("case", ["small", "hard"])
def test_binned_agrees_with_the_reference_procedure(
    shared: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, masks, expected = golden(shared, case)
    # They would fit whole otherwise.
    monkeypatch.setattr("offnominal.metrics.pixel._BUFFER", 2**19)
    metrics = filled(maps, masks, "binned")
    result = metrics.compute()
    assert metrics.error < 1e-4
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-4)
        assert result[name] == pytest.approx(value, abs=metrics.error + 1e-9)


def test_equal_to_scikit_learn_on_many_ties_and_mixed_sizes() -> None:
    rng = np.random.default_rng(0)
    shapes = [(30, 40), (25, 25), (7, 90)]
    for kind in (np.float32, np.float64, np.float16, np.int64):
        maps = [rng.integers(0, 12, shape).astype(kind) for shape in shapes]
        masks = [(each + rng.normal(0, 4, each.shape)) > 10 for each in maps]
        masks[2][:] = False
        flat = np.concatenate([each.ravel() for each in maps])
        truth = np.concatenate([each.ravel() for each in masks])
        result = pixel_metrics(maps, masks)
        assert result["pixel_auroc"] == pytest.approx(roc_auc_score(truth, flat), abs=1e-12)
        assert result["pixel_ap"] == pytest.approx(average_precision_score(truth, flat), abs=1e-12)
        precision, recall, thresholds = precision_recall_curve(truth, flat)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        assert result["pixel_f1_max"] == pytest.approx(f1.max(), abs=1e-12)
        assert result["pixel_f1_max_threshold"] == thresholds[np.argmax(f1)]


def test_maps_of_different_precision_are_compared_exactly() -> None:
    # In float32 the second map's values would be 1 too.
    single, double = np.ones((4, 4), np.float32), np.full((4, 4), 1 + 1e-12)
    masks = [np.zeros((4, 4), bool), np.ones((4, 4), bool)]
    for mode in MODES:
        assert filled([single, double], masks, mode).compute()["pixel_auroc"] == 1
        assert filled([single, 2 - double], masks, mode).compute()["pixel_auroc"] == 0
        assert filled([double, single], masks[::-1], mode).compute()["pixel_auroc"] == 1
        huge = np.full((4, 4), 1e300)  # outside float32
        assert filled([single, huge], masks, mode).compute()["pixel_auroc"] == 1
        assert filled([single, -huge], masks, mode).compute()["pixel_auroc"] == 0


def test_aupro_weighs_regions_alike_and_joins_diagonals() -> None:
    mask = np.zeros((10, 10), bool)
    mask[0, 0] = mask[1, 1] = True  # one region of 2, by its corner
    mask[4:8, 4:8] = True  # one of 16
    large_only = np.where(mask, 0.0, 0.5)
    large_only[4:8, 4:8] = 1.0
    # The large region is covered at no false positive and the small one only at the very end:
    # the curve stands at 1/2 throughout.
    assert pixel_metrics([large_only], [mask])["aupro"] == pytest.approx(0.5)
    # Half of the small region as well: 3/4. Apart, its pixels would give 2/3.
    half = large_only.copy()
    half[0, 0] = 1.0
    assert pixel_metrics([half], [mask])["aupro"] == pytest.approx(0.75)
    assert pixel_metrics([mask.astype(float)], [mask])["aupro"] == pytest.approx(1.0)


def test_aupro_is_interpolated_at_its_limit() -> None:
    # 10 good pixels, a region of 2: one above all, one tied with five good ones at 0.5.
    scores = np.array([[3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1.0]])
    mask = np.zeros((1, 12), bool)
    mask[0, :2] = True
    # The curve runs from (0, 1/2) straight to (0.5, 1): at 0.2 it is at 0.7.
    found = filled([scores], [mask], limits=(0.2, 0.5, 1.0)).compute()
    assert found["aupro_0.2"] == pytest.approx((0.5 + 0.7) / 2)
    assert found["aupro_0.5"] == pytest.approx(0.75)
    assert found["aupro_1"] == pytest.approx(0.5 * 0.75 + 0.5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [0.0, 1.0, -7.5, 1e-30, 1e6])
def test_constant_maps_are_chance(mode: str, value: float) -> None:
    mask = np.zeros((10, 10), bool)
    mask[:5, 0] = True
    maps = np.full((2, 10, 10), value, np.float32)
    result = filled(maps, [mask, np.zeros_like(mask)], mode).compute()
    # One score everywhere: the curve is the diagonal, so its area up to 0.3 is 0.3 / 2.
    assert result["aupro"] == pytest.approx(0.15)
    assert result["aupro_0.05"] == pytest.approx(0.025)
    assert result["pixel_auroc"] == pytest.approx(0.5)
    assert result["pixel_ap"] == pytest.approx(0.025)
    assert result["pixel_f1_max"] == pytest.approx(2 * 5 / 205)
    assert result["pixel_f1_max_threshold"] == np.float32(value)


@pytest.mark.parametrize("mode", MODES)
def test_scores_of_any_range_give_the_same_figures(mode: str) -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((40, 40))
    mask = scores + rng.normal(0, 0.3, scores.shape) > 0.9
    expected = filled([scores], [mask], mode).compute()
    # Neither clamped to [0, 1] nor put through a sigmoid.
    for scale, shift in ((1e6, 0), (1e-30, 0), (1, -100), (1, 100), (1e-5, 10)):
        result = filled([scores * scale + shift], [mask], mode).compute()
        for name in expected.keys() - {"pixel_f1_max_threshold"}:
            assert result[name] == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("digits", [1, 9])
def test_threshold_of_f1_gives_that_f1(
    mode: str, digits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offnominal.metrics.pixel._BUFFER", 1000)
    rng = np.random.default_rng(2)
    scores = np.round(rng.random((50, 50)), digits).astype(np.float32)
    mask = scores + rng.normal(0, 0.3, scores.shape) > 0.9
    result = filled(np.split(scores, 5), np.split(mask, 5), mode).compute()
    found = scores >= result["pixel_f1_max_threshold"]
    f1 = 2 * np.count_nonzero(found & mask) / (np.count_nonzero(found) + np.count_nonzero(mask))
    assert result["pixel_f1_max"] == pytest.approx(f1)
    assert 0 < np.count_nonzero(found) < found.size  # not "everything is defective"


def test_faint_mask_pixels_are_the_caller_s_choice() -> None:
    # Grey levels are refused: which of them mean a defect is decided where the mask is read.
    levels = np.array([[0, 3, 255]], np.uint8)
    with pytest.raises(OptionError, match="mask 0 is uint8"):
        PixelMetrics().update(np.zeros((1, 3), np.float32), levels)


@pytest.mark.parametrize("mode", MODES)
def test_no_image_is_set_aside(mode: str) -> None:
    # Four defective pixels in four images, each found after a different number of good ones.
    maps, masks = np.zeros((4, 3, 3), np.float32), np.zeros((4, 3, 3), bool)
    masks[:, 1, 1] = True
    maps[:, 1, 1] = [0.5, 1.5, 2.5, 3.5]
    maps[:, 0, 0] = [1.0, 2.0, 3.0, 4.0]
    # Good pixels above them: 4, 3, 2 and 1 of 32.
    result = filled(maps, masks, mode).compute()
    assert result["pixel_auroc"] == pytest.approx(1 - (4 + 3 + 2 + 1) / (4 * 32))


@pytest.mark.parametrize("mode", MODES)
def test_one_class_is_undefined(mode: str) -> None:
    maps = np.zeros((2, 4, 4), np.float32)
    for count, fill in ((0, False), (2, False), (2, True)):
        metrics = filled(maps[:count], [np.full((4, 4), fill)] * count, mode)
        result = metrics.compute()
        assert len(result) == 6
        assert all(np.isnan(value) for value in result.values())
        assert metrics.error == 0
        assert metrics.curves()["pro"] == {"x": [], "y": [], "thresholds": []}
        regions = metrics.regions()
        assert sum(row["regions"] for row in regions) == (2 if fill else 0)
        assert all(np.isnan(row["recall_at_1%"]) for row in regions)
    assert np.isnan(list(pixel_metrics(maps, np.ones((2, 4, 4), bool)).values())).all()


@pytest.mark.parametrize("mode", MODES)
def test_no_good_image_is_no_matter(mode: str) -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    assert filled([mask.astype(np.float32)], [mask], mode).compute()["aupro"] == 1


def test_what_does_not_fit_is_refused() -> None:
    maps, masks = np.zeros((2, 4, 4), np.float32), np.ones((2, 4, 4), bool)
    with pytest.raises(OptionError, match="2 maps and 1 masks"):
        pixel_metrics(maps, masks[:1])
    with pytest.raises(OptionError, match=r"mask 0 is bool of shape \(3, 4\).*read_mask"):
        pixel_metrics(maps, masks[:, :3])
    with pytest.raises(OptionError, match=r"mask 0 .*\(height, width\)"):
        PixelMetrics().update(np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), bool))
    with pytest.raises(OptionError, match=r"part7\.png: the mask"):
        PixelMetrics().update(maps[0], masks[0, :3], source=Path("part7.png"))
    for limit in (0.0, 1.5, float("nan")):
        with pytest.raises(OptionError, match="limit"):
            pixel_metrics(maps, masks, limit=limit)
    with pytest.raises(OptionError, match="mode"):
        PixelMetrics("exakt")
    metrics = filled(maps, np.arange(32).reshape(2, 4, 4) > 20)
    with pytest.raises(OptionError, match="points"):
        metrics.curves(points=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused_whole(mode: str, wrong: float) -> None:
    rng = np.random.default_rng(4)
    maps = rng.random((3, 20, 20)).astype(np.float32)
    masks = maps + rng.normal(0, 0.2, maps.shape) > 0.8
    metrics = filled(maps[:2], masks[:2], mode)
    before, held = metrics.compute(), metrics.nbytes
    broken = maps[2].copy()
    broken[5, 5] = wrong
    with pytest.raises(OptionError, match="map 2 holds values that are not finite") as caught:
        metrics.update(broken, masks[2])
    assert ("1 NaN" in str(caught.value)) == bool(np.isnan(wrong))
    with pytest.raises(OptionError, match="bent/03"):
        metrics.update(broken, masks[2], source="bent/03.png")
    assert (metrics.compute(), metrics.nbytes) == (before, held)
    metrics.update(maps[2], masks[2])
    assert metrics.compute() == filled(maps, masks, mode).compute()


@pytest.mark.parametrize("mode", MODES)
def test_figures_on_the_way_change_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offnominal.metrics.pixel._BUFFER", 2000)
    rng = np.random.default_rng(5)
    maps = rng.random((12, 30, 30)).astype(np.float32)
    masks = maps + rng.normal(0, 0.2, maps.shape) > 0.9
    asked = PixelMetrics(mode)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        asked.update(anomaly_map, mask)
        asked.compute()
        asked.regions()
        asked.curves()
    assert asked.compute() == filled(maps, masks, mode).compute()


def by_hand() -> tuple[np.ndarray, np.ndarray]:
    """A map of 100x100 with a region in each of four size classes, and scores that are known."""
    mask = np.zeros((100, 100), bool)
    mask[0, 0] = True  # 1 of 10,000: small, since the lower limit counts
    mask[10:13, 10:13] = True  # 9: small
    mask[20:25, 20:22] = True  # 10: medium
    mask[30:40, 30:40] = True  # 100: large
    mask[60:100, 50:90] = True  # 1600: very large
    scores = np.zeros((100, 100))
    good = np.flatnonzero(~mask)  # 8280: 1 % are 82, 5 % are 414, 30 % are 2484
    scores.ravel()[good] = np.arange(len(good))  # the n-th largest is 8280 - n
    scores[0, 0] = 8280 - 82.5  # 82 good ones above it: within 1 %
    scores[10:13, 10:13] = 8280 - 83.5  # 83 above: within 5 %
    scores[20:25, 20:22] = 8280 - 414.5
    scores[20, 20] = 8280 - 83.0  # tied with the 83rd: 83 at or above it
    scores[30:40, 30:40] = 8280 - 2485.5
    scores[30:33, 30:40] = 1e9
    scores[60:100, 50:90] = -1
    return scores, mask


@pytest.mark.parametrize("mode", MODES)
def test_recall_by_size_worked_by_hand(mode: str) -> None:
    scores, mask = by_hand()
    rows = {row["name"]: row for row in filled([scores], [mask], mode).regions()}
    assert [(r["name"], r["lower"], r["upper"]) for r in rows.values()] == list(SIZE_CLASSES)
    expected = {
        "small": (2, (1 / 2, 1, 1), (1 / 2, 1, 1)),
        "medium": (1, (0, 1, 1), (0, 1, 1)),
        "large": (1, (0.3, 0.3, 0.3), (1, 1, 1)),
        "very large": (1, (0, 0, 0), (0, 0, 0)),
    }
    assert rows["tiny"]["regions"] == 0
    assert np.isnan(rows["tiny"]["recall_at_1%"])
    for name, (count, recall, found) in expected.items():
        assert rows[name]["regions"] == count
        for rate, share, any_pixel in zip((1, 5, 30), recall, found, strict=True):
            assert rows[name][f"recall_at_{rate}%"] == pytest.approx(share)
            assert rows[name][f"found_at_{rate}%"] == pytest.approx(any_pixel)


def test_size_classes_are_shares_of_each_image_s_own_area() -> None:
    metrics = PixelMetrics()
    for size in (10, 200):
        mask = np.zeros((size, size), bool)
        mask[0, 0] = True
        metrics.update(mask.astype(np.float32), mask)
    counts = {row["name"]: row["regions"] for row in metrics.regions()}
    # 1 of 100 pixels and 1 of 40,000.
    assert counts == {"tiny": 1, "small": 0, "medium": 0, "large": 1, "very large": 0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_curves_hold_the_figures(shared: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offnominal.metrics.pixel._BUFFER", 2**19)
    maps, masks, expected = golden(shared, "hard")
    metrics = filled(maps, masks, mode)
    curves = metrics.curves(points=300)
    good, bad = maps[~masks], maps[masks]
    for name, each in curves.items():
        assert 50 < len(each["x"]) <= 300
        assert len(each["x"]) == len(each["y"]) == len(each["thresholds"])
        assert np.isfinite(each["thresholds"]).all()
        assert (np.diff(each["x"]) >= 0).all()
        assert name == "pr" or (np.diff(each["y"]) >= 0).all()
    roc, pro, pr = curves["roc"], curves["pro"], curves["pr"]
    area = np.trapezoid(roc["y"], roc["x"])
    assert area == pytest.approx(expected["pixel_auroc"], abs=2e-3)
    area = np.trapezoid(pro["y"], pro["x"]) / 0.3
    assert area == pytest.approx(expected["aupro"], abs=2e-3)
    assert (pro["x"][0], pro["y"][0], pro["x"][-1]) == (0, 0, 0.3)
    area = np.trapezoid(pr["y"], pr["x"])
    assert area == pytest.approx(expected["pixel_ap"], abs=5e-3)
    for number in range(0, len(roc["x"]), 20):
        threshold = roc["thresholds"][number]
        tolerance = metrics.error + 1e-9
        assert roc["x"][number] == pytest.approx(np.mean(good >= threshold), abs=tolerance)
        assert roc["y"][number] == pytest.approx(np.mean(bad >= threshold), abs=tolerance)
