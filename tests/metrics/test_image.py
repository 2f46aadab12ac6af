"""Image metrics: hand-made cases, scikit-learn, and what the bootstrap claims."""

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from offnominal.errors import OptionError
from offnominal.metrics import FALSE_REJECTS, image_curves, image_intervals, image_metrics

MISSES = ("image_miss_at_0.1%", "image_miss_at_1%", "image_miss_at_5%")


def drawn(rng: np.random.Generator, good: int, bad: int, shift: float = 1.0, digits: int = 1):
    """Labels and scores with ties, in mixed order."""
    scores = np.round(np.append(rng.normal(size=good), rng.normal(shift, 1, bad)), digits)
    order = rng.permutation(good + bad)
    return (np.arange(good + bad) >= good).astype(int)[order], scores[order]


def test_a_case_worked_by_hand() -> None:
    result = image_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    assert result["image_auroc"] == pytest.approx(0.75)
    assert result["image_ap"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    # Rejecting from 0.35 catches both and rejects one good image: F1 = 2 * 2 / (2 * 2 + 1).
    assert result["image_f1_max"] == pytest.approx(0.8)
    assert result["image_f1_max_threshold"] == 0.35
    # No good image may go at any of the rates: the threshold is 0.4, and 0.35 passes.
    assert [result[name] for name in MISSES] == [0.5, 0.5, 0.5]


def test_misses_worked_by_hand() -> None:
    good = np.arange(100, dtype=float)
    bad = np.array([1000.0, 98.5, 98.0, 97.0, 94.5, 94.0, 93.0, 50.0])
    result = image_metrics([0] * 100 + [1] * 8, np.append(good, bad))
    # 0.1 % of 100 is none: the threshold is 99, and one is caught. 1 % is one: the threshold is 98,
    # which itself passes. 5 % is five: the threshold is 94, and 94 passes.
    assert result["image_miss_at_0.1%"] == pytest.approx(7 / 8)
    assert result["image_miss_at_1%"] == pytest.approx(6 / 8)
    assert result["image_miss_at_5%"] == pytest.approx(3 / 8)


def test_misses_never_reject_more_good_images_than_allowed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth, scores = drawn(rng, int(rng.integers(1, 400)), 30)
        result = image_metrics(truth, scores)
        good, bad = scores[truth == 0], scores[truth == 1]
        for rate, name in zip(FALSE_REJECTS, MISSES, strict=True):
            allowed = [t for t in np.append(good, scores.max()) if np.mean(good > t) <= rate]
            assert result[name] == pytest.approx(np.mean(bad <= min(allowed)))


def test_equal_to_scikit_learn_with_many_ties() -> None:
    rng = np.random.default_rng(1)
    for digits in (0, 1, 8):
        for good, bad in ((1, 1), (1, 30), (200, 3), (150, 150)):
            truth, scores = drawn(rng, good, bad, digits=digits)
            result = image_metrics(truth, scores)
            precision, recall, thresholds = precision_recall_curve(truth, scores)
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
            assert result["image_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
            expected = average_precision_score(truth, scores)
            assert result["image_ap"] == pytest.approx(expected, abs=1e-12)
            assert result["image_f1_max"] == pytest.approx(f1.max(), abs=1e-12)
            best = thresholds[np.flatnonzero(f1[:-1] >= f1.max() - 1e-12)]
            assert result["image_f1_max_threshold"] == best.max()


def test_scores_outside_0_to_1_are_not_squashed() -> None:
    # A sigmoid in float32 makes all of these 1 and the AUROC 0.5.
    scores = np.array([40.0, 41.0, 42.0, 43.0])
    for shifted in (scores, scores - 1000, 1e-30 * scores):
        result = image_metrics([0, 0, 1, 1], shifted)
        assert result["image_auroc"] == 1
        assert result["image_f1_max_threshold"] == shifted[2]


def test_scores_are_not_clamped() -> None:
    # Clamped to [0, 1] the defective image would tie with the good one.
    assert image_metrics([0, 1], [1.5, 2.5])["image_auroc"] == 1
    assert image_metrics([0, 1], [-1.5, -0.5])["image_auroc"] == 1


def test_all_scores_equal_is_chance_and_says_which_threshold() -> None:
    result = image_metrics([0, 0, 0, 1], [2.0, 2.0, 2.0, 2.0])
    assert result["image_auroc"] == 0.5
    assert result["image_ap"] == 0.25
    assert result["image_f1_max"] == pytest.approx(0.4)
    assert result["image_f1_max_threshold"] == 2.0
    assert [result[name] for name in MISSES] == [1, 1, 1]


def test_no_split_is_taken_from_the_test_images() -> None:
    # Every image counts: taking out any one of them changes the figures.
    truth, scores = drawn(np.random.default_rng(3), 20, 20, digits=8)
    whole = image_metrics(truth, scores)
    for left_out in range(40):
        rest = np.arange(40) != left_out
        part = image_metrics(truth[rest], scores[rest])
        assert (part["image_auroc"], part["image_ap"]) != (whole["image_auroc"], whole["image_ap"])


def test_one_class_is_undefined() -> None:
    for labels in ([0, 0], [1, 1], []):
        scores = [1.0, 2.0][: len(labels)]
        result = image_metrics(labels, scores)
        assert len(result) == 7
        assert all(np.isnan(value) for value in result.values())
        ends = image_intervals(labels, scores)
        assert ends.keys() == result.keys() - {"image_f1_max_threshold"}
        assert np.isnan(list(ends.values())).all()
        assert image_curves(labels, scores)["roc"]["x"] == []


def test_what_cannot_be_meant_is_refused() -> None:
    for call in (image_metrics, image_intervals, image_curves):
        with pytest.raises(OptionError, match="2 entries"):
            call([0, 1], [1.0])
        with pytest.raises(OptionError, match="labels"):
            call([0, 2], [1.0, 2.0])
        with pytest.raises(OptionError, match="1 of 2 are not finite"):
            call([0, 1], [1.0, float("nan")])
    with pytest.raises(OptionError, match="draws"):
        image_intervals([0, 1], [1.0, 2.0], draws=0)
    with pytest.raises(OptionError, match="level"):
        image_intervals([0, 1], [1.0, 2.0], level=1.0)
    with pytest.raises(OptionError, match="points"):
        image_curves([0, 1], [1.0, 2.0], points=1)


def test_intervals_agree_with_a_plain_bootstrap() -> None:
    truth, scores = drawn(np.random.default_rng(5), 80, 60)
    fast = image_intervals(truth, scores, draws=4000)
    rng = np.random.default_rng(77)
    draws: dict[str, list[float]] = {name: [] for name in fast}
    good, bad = np.flatnonzero(truth == 0), np.flatnonzero(truth == 1)
    for _ in range(1500):
        chosen = np.append(rng.choice(good, len(good)), rng.choice(bad, len(bad)))
        found = image_metrics(truth[chosen], scores[chosen])
        for name, values in draws.items():
            values.append(found[name])
    for name, (low, high) in fast.items():
        plain = np.quantile(draws[name], [0.025, 0.975])
        # Miss rates move in steps of 1/60; the others within the noise of the draws.
        tolerance = 2.5 / 60 if "miss" in name else 0.012
        assert low == pytest.approx(plain[0], abs=tolerance)
        assert high == pytest.approx(plain[1], abs=tolerance)


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(6)
    # AUROC of two normals one apart is Phi(1 / sqrt 2).
    true, covered, trials = 0.7602499, 0, 200
    for seed in range(trials):
        truth, scores = drawn(rng, 60, 60, digits=12)
        low, high = image_intervals(truth, scores, seed=seed, draws=300)["image_auroc"]
        covered += low <= true <= high
    # 95 % nominal; four standard errors of 200 trials are 6 %.
    assert 0.88 <= covered / trials <= 0.995


def test_intervals_are_reproducible_and_hold_the_figure() -> None:
    truth, scores = drawn(np.random.default_rng(8), 90, 40)
    first = image_intervals(truth, scores, seed=3)
    assert first == image_intervals(truth, scores, seed=3)
    assert first != image_intervals(truth, scores, seed=4)
    figures = image_metrics(truth, scores)
    narrow = image_intervals(truth, scores, seed=3, level=0.5)
    for name, (low, high) in first.items():
        assert low <= figures[name] <= high
        assert low <= narrow[name][0] <= narrow[name][1] <= high


def test_intervals_of_six_hundred_images_take_under_a_second() -> None:
    truth, scores = drawn(np.random.default_rng(9), 400, 200, digits=9)
    image_intervals(truth, scores, draws=10)
    start = time.process_time()
    image_intervals(truth, scores)
    assert time.process_time() - start < 1


def test_curves_hold_the_figures() -> None:
    truth, scores = drawn(np.random.default_rng(10), 3000, 2000, digits=9)
    curves = image_curves(truth, scores, points=150)
    roc, pr = curves["roc"], curves["pr"]
    for each in (roc, pr):
        assert len(each["x"]) == len(each["y"]) == len(each["thresholds"]) <= 150
        assert np.isfinite(each["thresholds"]).all()
    area = np.trapezoid(roc["y"], roc["x"])
    assert area == pytest.approx(image_metrics(truth, scores)["image_auroc"], abs=2e-3)
    assert (roc["x"][0], roc["y"][0], roc["x"][-1], roc["y"][-1]) == (0, 0, 1, 1)
    for x, y, threshold in zip(*roc.values(), strict=True):
        assert x == np.mean(scores[truth == 0] >= threshold)
        assert y == np.mean(scores[truth == 1] >= threshold)
    for x, y, threshold in zip(*pr.values(), strict=True):
        assert x == np.mean(scores[truth == 1] >= threshold)
        assert y == pytest.approx(np.mean(truth[scores >= threshold]))
