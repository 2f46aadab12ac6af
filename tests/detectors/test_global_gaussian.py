"""The Gaussian of global features against scikit-learn's, and as a user meets it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from tests.detectors.test_dn2 import SIDE, save_resnet18, stages

from offnominal import load
from offnominal.detectors.distribution.global_gaussian import GlobalGaussian, ShrunkGaussian
from offnominal.errors import OptionError


def distance(vectors: np.ndarray, x: np.ndarray) -> float:
    """Mahalanobis distance to what scikit-learn fits."""
    return float(np.sqrt(LedoitWolf().fit(vectors).mahalanobis(x[None])[0]))


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_resnet18(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def files(tiles: Path) -> list[Path]:
    """Real images: eight good ones, then two more."""
    return sorted((tiles / "train" / "good").iterdir())[::60][:10]


@pytest.fixture(scope="module")
def fitted(resnet18: Path, files: list[Path]) -> GlobalGaussian:
    options = {"backbone": "resnet18", "layers": (1, 2, 3, 4), "resolution": SIDE}
    detector = GlobalGaussian(**options, weights=str(resnet18), device="cpu", false_reject=0.2)
    return detector.fit(files[:8])


@pytest.mark.parametrize(("count", "dim"), [(30, 7), (12, 40), (4, 5)])
def test_left_out_as_if_learned_without(count: int, dim: int) -> None:
    rng = np.random.default_rng(count)
    vectors = rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) + 5
    found = ShrunkGaussian(torch.from_numpy(vectors))
    query = rng.standard_normal(dim)
    whole = torch.linalg.vector_norm(found.whitening() @ (torch.from_numpy(query) - found.mean))
    assert float(whole) == pytest.approx(distance(vectors, query), rel=1e-9)
    for number in range(count):
        others = np.delete(vectors, number, axis=0)
        for x in (query, vectors[number]):
            told = found.distance_left_out(torch.from_numpy(x), number)
            assert float(told) == pytest.approx(distance(others, x), rel=1e-9)


@pytest.mark.slow
def test_agrees_with_the_formula(
    fitted: GlobalGaussian, resnet18: Path, files: list[Path], tmp_path: Path
) -> None:
    """Levels summed, of real images; the thresholds too, and after a file."""
    means = [[one.double().mean((1, 2)).numpy() for one in stages(resnet18, f)] for f in files]
    levels = [np.stack(one) for one in zip(*means, strict=True)]
    wanted = [sum(distance(one[:8], one[which]) for one in levels) for which in (8, 9)]
    fitted.save(tmp_path / "part.offn")
    for detector in (fitted, load(tmp_path / "part.offn", device="cpu")):
        found = [one.score for one in detector.predict(files[8:])]
        assert found == pytest.approx(wanted, rel=1e-4)
    alone = [
        sum(distance(np.delete(one[:8], n, axis=0), one[n]) for one in levels) for n in range(8)
    ]
    assert fitted.calibration.images == pytest.approx(alone, rel=1e-4)


def test_the_map_says_nothing_of_where(fitted: GlobalGaussian) -> None:
    [found] = fitted.predict(np.zeros((40, 60, 3), np.uint8))
    assert found.is_anomalous
    assert found.patch_scores.shape == (1, 1)
    np.testing.assert_allclose(found.anomaly_map, found.score, rtol=1e-5)


def test_too_few_and_all_alike(fitted: GlobalGaussian, files: list[Path]) -> None:
    few = GlobalGaussian(**fitted.options(), device="cpu")
    few.use_network(fitted.load_network())
    with pytest.raises(OptionError, match="give 4 or more"):
        few.fit(files[:3])
    alike = [np.full((40, 40 + n, 3), 90, np.uint8) for n in range(5)]  # copies but for their size
    good, bad = few.fit(alike).predict([alike[0], files[0]])
    assert np.isfinite([good.score, bad.score]).all()
    assert bad.score > 1e3 * good.score
