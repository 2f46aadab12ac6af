"""The foreground mask against scikit-learn and OpenCV, and the masking test on real pictures."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.decomposition import PCA

from offnominal import AnomalyDINO, read_image
from offnominal.datasets.synthetic import LOOKS, draw_good, object_mask
from offnominal.foreground import (
    MaskingTest,
    first_component,
    foreground_mask,
    masking_test,
)


def scene(rows: int = 30, columns: int = 40) -> np.ndarray:
    """Features of a disc before a plain background, both with noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:rows, :columns]
    inside = (y - rows / 2) ** 2 + (x - columns / 2) ** 2 < 144
    direction = rng.standard_normal(24)
    features = rng.standard_normal((rows, columns, 24)) + 30 * inside[..., None] * direction
    return features.reshape(-1, 24).astype(np.float32)


@pytest.mark.parametrize("rows", [12, 600])  # fewer and more patches than dimensions
def test_first_component_is_that_of_scikit_learn(rows: int) -> None:
    rng = np.random.default_rng(0)
    tokens = (rng.standard_normal((rows, 32)) * np.linspace(3, 0.2, 32)).astype(np.float32)
    wanted = PCA(n_components=1, svd_solver="full").fit_transform(tokens)[:, 0]
    found = first_component(tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("morphology", ["2d", "reference"])
def test_morphology_is_that_of_opencv(morphology: str) -> None:
    tokens = np.random.default_rng(1).standard_normal((25 * 31, 8), np.float32)
    component = first_component(tokens).reshape(25, 31)
    raw = component > 1
    centre = raw[5:20, 6:24]
    if centre.sum() <= centre.size * 0.35:
        raw = -component > 1
    kernel = np.ones((3, 3), np.uint8)
    shape = raw.shape if morphology == "2d" else (-1, 1)
    mask = cv2.dilate(raw.reshape(shape).astype(np.uint8), kernel)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel).reshape(raw.shape)
    found = foreground_mask(tokens, (25, 31), 1.0, morphology)
    assert np.array_equal(found, mask > 0)
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("threshold", [10.0, None])
def test_object_is_found_whatever_the_sign(threshold: float | None) -> None:
    tokens = scene()
    for features in (tokens, -tokens):
        mask = foreground_mask(features, (30, 40), threshold)
        assert mask[15, 20]
        assert not mask[0].any()
        assert not mask[:, 0].any()
        assert masking_test(features, (30, 40), threshold).passed


def test_no_object_in_noise_gradients_and_constants() -> None:
    noise = np.random.default_rng(0).standard_normal((1200, 24), np.float32)
    assert not masking_test(noise, (30, 40), None).passed
    ramp = np.tile(np.linspace(0, 30, 40, dtype=np.float32), 30)[:, None] + noise
    assert not masking_test(ramp, (30, 40), None).passed
    assert not masking_test(ramp, (30, 40), 10.0).passed
    assert not masking_test(np.ones((1200, 24), np.float32), (30, 40), None).passed
    assert not masking_test(np.ones((1200, 24), np.float32), (30, 40), 10.0).passed


def run(detector: AnomalyDINO, image: np.ndarray) -> tuple[MaskingTest, np.ndarray]:
    maps = detector.embedded(detector.views(image)[0].pixels)
    tokens, grid = maps.reshape(len(maps), -1).T, maps.shape[1:]
    mask = foreground_mask(tokens, grid, detector.component_threshold)
    return masking_test(tokens, grid, detector.component_threshold), mask


@pytest.fixture(params=["builtin", "mobilenet"])
def detector(request: pytest.FixtureRequest) -> AnomalyDINO:
    if request.param == "builtin":
        return AnomalyDINO(backbone="builtin")
    return AnomalyDINO(weights=str(request.getfixturevalue("mobilenet")))


@pytest.mark.parametrize("look", LOOKS)
def test_masking_test_on_synthetic_looks(detector: AnomalyDINO, look: str) -> None:
    for index in range(4):
        found, mask = run(detector, draw_good(look, 3, index))
        assert found.passed == (look == "part"), (index, found)
        if look == "part":
            truth = object_mask(look, 3, index)
            large = cv2.resize(mask.astype(np.uint8), truth.shape[::-1]) > 0
            assert (large & truth).sum() > 0.97 * truth.sum(), "the object must not be cut"
            assert large.mean() < 0.6, "most of the background must go"


@pytest.mark.slow
def test_masking_test_on_real_close_ups(detector: AnomalyDINO, tiles: Path) -> None:
    """Magnetic tiles fill the frame: no mask, whichever tile is the first reference."""
    files = sorted((tiles / "train" / "good").iterdir())[::26]
    passed = [file.name for file in files if run(detector, read_image(file))[0].passed]
    assert not passed
