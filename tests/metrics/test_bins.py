"""The binned mode: within its stated error whatever the order, and no larger for more images."""

import tracemalloc
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from offnominal.metrics import PixelMetrics

pytestmark = pytest.mark.slow

Pairs = list[tuple[np.ndarray, np.ndarray]]


def parts(count: int, size: int = 256, seed: int = 0) -> Pairs:
    """Smooth noise; three images in four with a few defects that stand out more or less."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        scores = cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), 6)
        scores /= scores.std()
        mask = np.zeros((size, size), bool)
        for _ in range(3 if number % 4 else 0):
            y, x, h, w = (*rng.integers(0, size - 40, 2), *rng.integers(2, 40, 2))
            mask[y : y + h, x : x + w] = True
        lift = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3)
        made.append((scores + lift * np.float32(rng.uniform(0.2, 3)), mask))
    return made


def each(change: Callable[[np.ndarray, int], np.ndarray]) -> Callable[[Pairs], Pairs]:
    return lambda pairs: [(change(s, i), m) for i, (s, m) in enumerate(pairs)]


def with_outliers(scores: np.ndarray, number: int) -> np.ndarray:
    if number % 5:
        return scores
    rare = np.random.default_rng(number).random(scores.shape) < 1e-3
    return np.where(rare, np.float32(1e6), scores)


ORDERS: dict[str, Callable[[Pairs], Pairs]] = {
    "as drawn": lambda pairs: pairs,
    "rising maxima": lambda pairs: sorted(pairs, key=lambda p: p[0].max()),
    "falling maxima": lambda pairs: sorted(pairs, key=lambda p: -p[0].max()),
    "rising means": lambda pairs: sorted(pairs, key=lambda p: p[0].mean()),
    "good ones first": lambda pairs: sorted(pairs, key=lambda p: p[1].sum()),
    "good ones last": lambda pairs: sorted(pairs, key=lambda p: -p[1].sum()),
    "drifting up": each(lambda s, i: s + 0.2 * i),
    "drifting down": each(lambda s, i: s - 0.2 * i),
    "growing": each(lambda s, i: s * 1.15**i),
    "shrinking": each(lambda s, i: s * 0.87**i),
    "first ones constant": each(lambda s, i: s if i > 6 else np.zeros_like(s)),
    "last ones constant": each(lambda s, i: s if i < 12 else np.full_like(s, 0.3)),
    "wide, then narrow": each(lambda s, i: s if i < 12 else 1e-3 * s + np.float32(0.3)),
    "huge outliers": each(with_outliers),
    "within 1e-5 of 10, float32": each(lambda s, i: (10 + 1e-6 * s).astype(np.float32)),
    "within 1e-5 of 10, float64": each(lambda s, i: 10 + 1e-6 * s.astype(np.float64)),
    "around 1e-30": each(lambda s, i: 1e-30 * s),
    "negative": each(lambda s, i: s - 1000),
    "upside down": each(lambda s, i: -s),
    "few different scores": each(lambda s, i: np.round(s * 8) / 8),
    "float16": each(lambda s, i: s.astype(np.float16)),
    "two precisions": each(lambda s, i: s.astype(np.float64) if i % 3 else s),
    "unrelated to the defects": each(
        lambda s, i: np.random.default_rng(i).random(s.shape, dtype=np.float32)
    ),
    "one defect of nine pixels": lambda pairs: [
        (s, (np.indices(s.shape) // 3 == 20).all(axis=0) & (i == 7)) for i, (s, _) in
        enumerate(pairs)
    ],
    "mostly defective": lambda pairs: [(s, ~m | (s > 1)) for s, m in pairs],
    "regions of one pixel": lambda pairs: [
        (s, np.random.default_rng(i).random(s.shape) < 1e-3) for i, (s, _) in enumerate(pairs)
    ],
}  # fmt: skip


def both(pairs: Pairs) -> tuple[PixelMetrics, PixelMetrics]:
    exact, binned = PixelMetrics("exact"), PixelMetrics()
    for scores, mask in pairs:
        exact.update(scores, mask)
        binned.update(scores, mask)
    return exact, binned


def largest_difference(exact: PixelMetrics, binned: PixelMetrics) -> float:
    wanted, found = exact.compute(), binned.compute()
    return max(abs(wanted[name] - found[name]) for name in wanted if "threshold" not in name)


# Later scores crowd into a few bins that the first ones left wide: the error may exceed 1e-4, and
# says so.
CROWDED = (
    "drifting up",
    "drifting down",
    "growing",
    "last ones constant",
    "wide, then narrow",
)


@pytest.mark.parametrize("order", ORDERS)
def test_error_stays_under_1e_4_in_most_orders_and_is_true_in_all(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several foldings of 1.6 million pixels; at full size they would take 25 million.
    monkeypatch.setattr("offnominal.metrics.pixel._BUFFER", 2**19)
    exact, binned = both(ORDERS[order](parts(24)))
    difference = largest_difference(exact, binned)
    # Sums round besides.
    assert difference <= binned.error + 1e-10
    if order in CROWDED:
        return
    assert binned.error < 1e-4
    wanted, found = exact.regions(), binned.regions()
    for row, other in zip(wanted, found, strict=True):
        assert row["regions"] == other["regions"]
        for name in row:
            if "recall" in name or "found" in name:
                # Between two bins the share is interpolated.
                assert other[name] == pytest.approx(row[name], abs=2e-3, nan_ok=True)


def test_error_stays_under_1e_4_at_full_size() -> None:
    exact, binned = both(parts(140, 320))
    assert binned.error < 2e-5
    assert largest_difference(exact, binned) <= binned.error


@pytest.mark.parametrize("seed", range(12))
def test_stated_error_is_true_with_far_too_few_bins(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Coarse enough that the bound is put to the test.
    monkeypatch.setattr("offnominal.metrics.pixel._BUFFER", 5000)
    monkeypatch.setattr("offnominal.metrics.bins._MOST", 60 + 40 * seed)
    rng = np.random.default_rng(seed)
    orders = list(ORDERS.values())
    for _ in range(4):
        pairs = parts(int(rng.integers(10, 30)), 64, int(rng.integers(1000)))
        pairs = orders[rng.integers(len(orders))](pairs)
        if rng.random() < 0.5:
            pairs = [(np.round(s, 1), m) for s, m in pairs]
        exact, binned = both(pairs)
        wanted = exact.compute()
        if np.isnan(wanted["aupro"]):
            continue
        assert largest_difference(exact, binned) <= binned.error + 1e-9


def test_stated_error_grows_where_bins_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offnominal.metrics.pixel._BUFFER", 5000)
    monkeypatch.setattr("offnominal.metrics.bins._MOST", 50)
    _, binned = both(ORDERS["upside down"](parts(20, 64)))
    assert binned.error > 1e-3


def test_exact_while_the_pixels_fit() -> None:
    exact, binned = both(parts(8, 128))
    assert binned.error == 0
    assert binned.compute() == exact.compute()
    # By their text, since nan does not equal nan.
    assert str(binned.regions()) == str(exact.regions())


def test_an_image_larger_than_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offnominal.metrics.pixel._BUFFER", 1000)
    exact, binned = both(parts(4, 400))
    # The first image alone sets the bins.
    assert binned.error < 3e-4
    assert largest_difference(exact, binned) <= binned.error + 1e-10


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offnominal.metrics.pixel._BUFFER", 2**16)
    monkeypatch.setattr("offnominal.metrics.bins._MOST", 2**13)
    pairs = parts(10, 128)
    metrics = PixelMetrics()
    tracemalloc.start()
    try:
        held, peaks = [], []
        for _ in range(20):
            tracemalloc.reset_peak()
            for scores, mask in pairs:
                metrics.update(scores, mask)
            metrics.compute()
            now, peak = tracemalloc.get_traced_memory()
            held.append(now)
            peaks.append(peak)
    finally:
        tracemalloc.stop()
    # 200 images against 20; the number of bins varies somewhat.
    assert held[-1] < 1.3 * held[1]
    assert peaks[-1] < 1.3 * peaks[1]
    assert metrics.nbytes < 3e6


def test_full_size_stays_under_150_mb() -> None:
    metrics = PixelMetrics()
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        for scores, mask in parts(4, 512) * 15:
            metrics.update(scores + np.float32(rng.normal()), mask)
        assert metrics.error > 0
        assert metrics.nbytes < 150e6
        assert tracemalloc.get_traced_memory()[1] < 250e6
    finally:
        tracemalloc.stop()
