"""PaDiM against its formulas, and as a user meets it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.decomposition import PCA
from tests.detectors.test_dn2 import SIDE, save_resnet18, stages
from tests.looks import pixels_of
from tests.seeded import save_dinov2_vits14

from offnominal import load
from offnominal.datasets.synthetic import draw_good
from offnominal.detectors.distribution.gaussians import RunningGaussians
from offnominal.detectors.distribution.padim import PaDiM
from offnominal.errors import OptionError


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_resnet18(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def files(tiles: Path) -> list[Path]:
    """Real images: twenty good ones, then two more."""
    return sorted((tiles / "train" / "good").iterdir())[::30][:22]


@pytest.fixture(scope="module")
def embedded(resnet18: Path, files: list[Path]) -> np.ndarray:
    """Joined features (22, 16, 16, 448) of every image, coarser levels repeated, float64."""
    found = []
    for file in files:
        fine, middle, coarse = (each.double().numpy() for each in stages(resnet18, file)[:3])
        twice = middle.repeat(2, axis=1).repeat(2, axis=2)
        four_times = coarse.repeat(4, axis=1).repeat(4, axis=2)
        found.append(np.concatenate([fine, twice, four_times]).transpose(1, 2, 0))
    return np.stack(found)


@pytest.fixture(scope="module")
def fitted(resnet18: Path, files: list[Path]) -> PaDiM:
    options = {"backbone": "resnet18", "resolution": SIDE, "dimensions": 12}
    return PaDiM(**options, weights=str(resnet18), device="cpu", false_reject=0.2).fit(files[:20])


def like(detector: PaDiM, **changes: object) -> PaDiM:
    """The same detector with other options, not fitted."""
    other = PaDiM(**(detector.options() | changes), device="cpu")
    other.use_network(detector.load_network())
    return other


def plain_padim(features: np.ndarray, query: np.ndarray, ridge: float = 0.01) -> np.ndarray:
    """Equations 1 and 2, position by position."""
    height, width, dim = query.shape
    scores = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            samples = features[:, y, x]
            covariance = np.cov(samples, rowvar=False) + ridge * np.identity(dim)
            inverse = np.linalg.inv(covariance)
            scores[y, x] = mahalanobis(query[y, x], samples.mean(0), inverse)
    return scores


@pytest.mark.parametrize(("dimensions", "ridge"), [(12, 0.01), (100, 0.01), (12, 1e-5)])
@pytest.mark.slow
def test_agrees_with_the_formulas(
    fitted: PaDiM, files: list[Path], embedded: np.ndarray, dimensions: int, ridge: float
) -> None:
    """More references than dimensions, and the paper's 100 dimensions with only twenty."""
    detector = like(fitted, dimensions=dimensions, ridge=ridge).fit(files[:20])
    channels = detector.channels_.numpy()
    assert len(set(channels.tolist())) == dimensions
    for which in (20, 21):
        wanted = plain_padim(embedded[:20][..., channels], embedded[which][..., channels], ridge)
        [found] = detector.predict(files[which])
        np.testing.assert_allclose(found.patch_scores, wanted, rtol=1e-4)
        assert found.score == found.anomaly_map.max()


@pytest.mark.slow
def test_principal_components(fitted: PaDiM, files: list[Path], embedded: np.ndarray) -> None:
    detector = like(fitted, reduction="pca").fit(files[:20])
    components = PCA(12, svd_solver="full").fit(embedded[:20].reshape(-1, 448)).components_
    reduced = embedded @ components.T
    [found] = detector.predict(files[20])
    wanted = plain_padim(reduced[:20], reduced[20])
    np.testing.assert_allclose(found.patch_scores, wanted, rtol=1e-3)


@pytest.mark.slow
def test_leave_one_out_equals_refitting(fitted: PaDiM, files: list[Path]) -> None:
    """The closed form, with more references than dimensions and with fewer, down to two."""
    for count, dimensions in ((20, 12), (5, 30), (3, 12), (2, 12)):
        detector = like(fitted, dimensions=dimensions).fit(files[:count])
        assert detector.calibration.kind == "leave-one-out"
        good = detector.calibration.scores
        for index in range(min(count, 4)):
            rest = [f for f in files[:count] if f != files[index]]
            [alone] = like(fitted, dimensions=dimensions).fit(rest).predict([files[index]])
            found = good[index].patches
            np.testing.assert_allclose(found, alone.patch_scores, rtol=2e-4)
            assert detector.calibration.images[index] == pytest.approx(alone.score, rel=2e-4)


def test_leave_one_out_of_a_plain_gaussian() -> None:
    """The downdate alone, of the sample itself and of others, against numpy on what is left."""
    rng = np.random.default_rng(2)
    for count, dim in ((40, 6), (7, 6), (4, 25), (2, 3)):
        x = rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim))
        running, ridge = RunningGaussians(), 0.01
        for sample in x:
            running.add(torch.tensor(sample)[None, None])
        running.prepare_left_out(ridge)
        for i in range(count):
            rest = np.delete(x, i, axis=0)
            centred = rest - rest.mean(0)
            covariance = centred.T @ centred / max(len(rest) - 1, 1) + ridge * np.eye(dim)
            for query in (x[i], x[i] + rng.standard_normal(dim), x[i - 1]):
                own = torch.tensor(x[i])[None]
                [found] = running.distance_left_out(torch.tensor(query)[None], own)
                wanted = mahalanobis(query, rest.mean(0), np.linalg.inv(covariance))
                assert found == pytest.approx(wanted, rel=1e-6)


def test_running_sums_keep_their_digits() -> None:
    """Features far from 0 and in many uneven groups: the covariance is numpy's."""
    rng = np.random.default_rng(4)
    x = 1e5 + rng.standard_normal((57, 11, 5))
    running = RunningGaussians()
    for start, stop in ((0, 1), (1, 30), (30, 31), (31, 57)):
        running.add(torch.tensor(x[start:stop]))
    scatter = running.scatter().numpy()
    assert running.count == 57
    for position in range(11):
        wanted = 56 * np.cov(x[:, position], rowvar=False)
        np.testing.assert_allclose(scatter[position], wanted, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(running.mean.numpy(), x.mean(0), rtol=1e-14)


def test_channels_are_those_of_the_known_code() -> None:
    """random.seed(1024); random.sample(range(448), 100): its first ones, in the order drawn."""
    import random

    random.seed(1024)
    wanted = sorted(random.sample(range(448), 100))
    detector = PaDiM(backbone="builtin")
    detector._device = torch.device("cpu")
    detector.load_network()
    detector._choose_channels(448)
    assert detector.channels_.tolist() == wanted


def test_grid_is_one_for_all(fitted: PaDiM, resnet18: Path) -> None:
    """Square by default, so that any image fits; otherwise the error says what to do."""
    wide = np.zeros((64, 128, 3), np.uint8)
    [found] = fitted.predict(wide)
    assert found.patch_scores.shape == (16, 16)
    assert found.anomaly_map.shape == (64, 128)
    short = like(fitted, resize="short")
    images = [draw_good("fabric", 0, index) for index in range(2)]
    short.fit(images)
    with pytest.raises(OptionError, match=r"16 x 32 positions.*use --resize square"):
        short.predict(wide)
    with pytest.raises(OptionError, match="--resize short"):
        like(fitted, resize="short").fit([images[0], wide])


def test_one_reference_is_euclidean(fitted: PaDiM, files: list[Path], embedded: np.ndarray) -> None:
    one = like(fitted).fit(files[:1])
    [found] = one.predict(files[1:2])
    assert one.threshold is not None
    assert one.threshold.kind == "guess"
    channels = one.channels_.numpy()
    difference = (embedded[1] - embedded[0])[..., channels]
    wanted = np.linalg.norm(difference, axis=2) / np.sqrt(0.01)
    np.testing.assert_allclose(found.patch_scores, wanted, rtol=1e-4)


def test_saved_and_loaded(fitted: PaDiM, files: list[Path], tmp_path: Path) -> None:
    for reduction in ("random", "pca"):
        detector = like(fitted, reduction=reduction).fit(files[:4])
        detector.save(tmp_path / "part.offn")
        loaded = load(tmp_path / "part.offn", device="cpu")
        assert isinstance(loaded, PaDiM)
        for a, b in zip(detector.predict(files[20:]), loaded.stream(files[20:]), strict=True):
            assert (a.score, a.threshold, a.p_value) == (b.score, b.threshold, b.p_value)
            assert a.pixel_threshold == b.pixel_threshold
            assert np.array_equal(a.anomaly_map, b.anomaly_map)


def test_scored_another_way(fitted: PaDiM, files: list[Path]) -> None:
    [found] = fitted.predict(files[20:21])
    other = fitted.rescored(aggregate="max")
    fresh = like(fitted, aggregate="max").fit(files[:20])
    assert other.rescore(found).score == found.patch_scores.max()
    assert other.threshold.value == fresh.threshold.value
    with torch.inference_mode():
        pixels = torch.stack([pixels_of(fitted, _read(file)) for file in files[20:]])
        scores, grids = other(pixels)
    for file, score, grid in zip(files[20:], scores, grids, strict=True):
        [alone] = other.predict([file])
        np.testing.assert_allclose(grid.numpy(), alone.patch_scores, rtol=1e-4)
        assert score.item() == pytest.approx(alone.score, rel=1e-4)


def _read(file: Path) -> np.ndarray:
    from offnominal.images import read_image

    return read_image(file)


@pytest.mark.slow
def test_any_backbone_serves(tmp_path: Path) -> None:
    images = [draw_good("part", 0, index) for index in range(4)]
    told: list[tuple[str, int]] = []
    detector = PaDiM(backbone="builtin", resolution=64, reduction="pca", device="cpu")
    detector.fit(images[:3], progress=lambda *each: told.append(each))
    assert [stage for stage, _ in told[::3]] == ["features", "distributions", "threshold"]
    assert detector.whitening_.shape == (64, 59, 59), "no more dimensions than there are"
    assert np.isfinite(detector.predict(images[3])[0].anomaly_map).all()
    weights = str(save_dinov2_vits14(tmp_path))
    detector = PaDiM(
        backbone="dinov2_vits14", weights=weights, resolution=56, calibrate_on=2, device="cpu"
    ).fit(images[:3])
    assert detector.load_network().layers == (8, 9, 10)
    assert len(detector.calibration.images) == 2
    assert detector.whitening_.shape == (16, 100, 100)


def test_more_dimensions_than_channels(fitted: PaDiM, files: list[Path]) -> None:
    with pytest.raises(OptionError, match="dimensions 449: the levels of resnet18 have 448"):
        like(fitted, dimensions=449).fit(files[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "--dimensions 0"),
        ({"reduction": "svd"}, "reduction 'svd'"),
        ({"ridge": 0}, "--ridge 0"),
        ({"calibrate_on": -1}, "--calibrate-on -1"),
        ({"aggregate": "median"}, "--aggregate median"),
        ({"tile": 256}, "--tile 256: padim looks at images as a whole"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PaDiM(**options)
