import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from offnominal.checks import check_aggregate
from offnominal.errors import OptionError
from offnominal.scoring import aggregate, anomaly_map, network_map


def reference_map(scores: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    large = cv2.resize(scores, size[::-1], interpolation=cv2.INTER_LINEAR)
    smooth: np.ndarray = gaussian_filter(large, sigma=sigma)
    return smooth


@pytest.mark.parametrize(
    ("grid", "size"),
    [((32, 43), (361, 494)), ((32, 76), (247, 592)), ((5, 3), (700, 40)), ((48, 48), (20, 30)),
     ((1, 1), (9, 8)), ((64, 90), (1500, 2100))],
)  # fmt: skip
@pytest.mark.parametrize("sigma", [4.0, 0.7])
def test_map_equals_opencv_and_scipy(
    grid: tuple[int, int], size: tuple[int, int], sigma: float
) -> None:
    scores = np.random.default_rng(0).random(grid, dtype=np.float32)
    found = anomaly_map(scores, size, sigma)
    np.testing.assert_allclose(found, reference_map(scores, size, sigma), atol=1e-5)


def test_map_without_smoothing_is_the_resize() -> None:
    scores = np.random.default_rng(0).random((7, 9), dtype=np.float32)
    wanted = cv2.resize(scores, (90, 63), interpolation=cv2.INTER_LINEAR)
    found = anomaly_map(scores, (63, 90), 0.0)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("grid", [(32, 32), (7, 19), (1, 5), (1, 1)])
@pytest.mark.parametrize("stride", [14, 16, 1])
def test_the_map_of_subspacead_is_opencvs(grid: tuple[int, int], stride: int) -> None:
    scores = np.random.default_rng(0).random(grid, dtype=np.float32)
    size = grid[1] * stride, grid[0] * stride
    large = cv2.resize(scores, size, interpolation=cv2.INTER_LINEAR)
    found = network_map(scores, stride)
    np.testing.assert_allclose(found, cv2.GaussianBlur(large, (3, 3), 4.0), rtol=1e-6)
    assert found.dtype == np.float32


def test_map_of_a_grid_that_reaches_beyond_the_image() -> None:
    scores = np.random.default_rng(0).random((10, 10), dtype=np.float32)
    wanted = cv2.resize(scores, (140, 140), interpolation=cv2.INTER_LINEAR)[:131, :125]
    found = anomaly_map(scores, (131, 125), 4.0, window=(0, 0, 140, 140))
    np.testing.assert_allclose(found, gaussian_filter(wanted, sigma=4.0), atol=1e-5)


def test_map_is_nothing_outside_the_window() -> None:
    scores = np.random.default_rng(0).random((10, 10), dtype=np.float32)
    found = anomaly_map(scores, (100, 120), 2.0, window=(20, 30, 50, 60))
    inner = anomaly_map(scores, (50, 60), 2.0)
    np.testing.assert_array_equal(found[20:70, 30:90], inner)
    assert found.sum() == pytest.approx(inner.sum())


def test_top_one_percent_floors_and_falls_back_to_the_maximum() -> None:
    scores = np.arange(299, dtype=np.float32).reshape(13, 23)
    assert aggregate(scores, "top1") == pytest.approx((298 + 297) / 2)  # int(2.99) patches
    assert aggregate(np.arange(99.0).reshape(9, 11), "top1") == 98  # less than one patch
    assert aggregate(np.arange(100.0).reshape(10, 10), "top1") == 99  # exactly one


def test_other_statistics() -> None:
    scores = np.arange(101, dtype=np.float32).reshape(1, 101)
    assert aggregate(scores, "max") == 100
    assert aggregate(scores, "mean") == 50
    assert aggregate(scores, "quantile99") == pytest.approx(99)
    assert aggregate(scores, "quantile") == aggregate(scores, "quantile99")
    assert aggregate(scores, "top10") == pytest.approx(np.arange(91, 101).mean())


@pytest.mark.parametrize("how", ["top0", "top101", "median", "", "quantile-1"])
def test_unknown_statistics_are_refused(how: str) -> None:
    with pytest.raises(OptionError, match="--aggregate"):
        check_aggregate(how)
