"""Agreement with AnomalyDINO's released code on real images, with weights made from seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.npyio import NpzFile
from tests.seeded import save_dinov2_vits14

from offnominal import AnomalyDINO, BatchedAnomalyDINO, Prediction


class Case:
    """One stored run of the reference."""

    def __init__(self, shared: Path, name: str) -> None:
        folder = shared / "golden" / "anomalydino"
        content = json.loads((folder / f"{name}.json").read_text())
        self.config = content["config"]
        self.results: dict[str, dict[str, float]] = content["results"]
        self.bank_shape = tuple(content.get("bank_shape", ()))
        self.arrays: NpzFile = np.load(folder / f"{name}.npz")

    def files(self, tiles: Path, which: str) -> list[Path]:
        return [tiles / name for name in self.config[which]]

    def distances(self, name: str) -> np.ndarray:
        found: np.ndarray = self.arrays[f"distances/{name}"]
        return found


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seeded")


def run(case: Case, tiles: Path, folder: Path, **options: object) -> dict[str, Prediction]:
    weights = save_dinov2_vits14(folder, case.config["norm_scale"])
    size = {"resolution": case.config["resolution"], "resize": "crop"}
    detector = AnomalyDINO(weights=weights, **size, **options)
    detector.fit(case.files(tiles, "refs"))
    assert tuple(detector.bank.rows.shape) == case.bank_shape
    some = case.config["tests"][::2]
    return dict(zip(some, detector.stream(tiles / name for name in some), strict=True))


@pytest.mark.slow
def test_plain(shared: Path, tiles: Path, weights_folder: Path) -> None:
    case = Case(shared, "plain")
    for name, found in run(case, tiles, weights_folder, mask="off", rotations="none").items():
        wanted = case.results[name]
        assert found.patch_scores.shape == tuple(wanted["grid"])
        assert found.anomaly_map.shape == tuple(wanted["size"])
        np.testing.assert_allclose(found.patch_scores, case.distances(name), atol=2e-4)
        assert found.score == pytest.approx(wanted["score"], abs=2e-4)
        assert found.anomaly_map.max() == pytest.approx(wanted["map_max"], abs=2e-4)
        assert found.anomaly_map.mean() == pytest.approx(wanted["map_mean"], abs=2e-4)


@pytest.mark.slow
def test_rotated(shared: Path, tiles: Path, weights_folder: Path) -> None:
    case = Case(shared, "rotated")
    for name, found in run(case, tiles, weights_folder, mask="off").items():
        wanted = case.distances(name)
        np.testing.assert_allclose(found.patch_scores, wanted, atol=5e-3)
        assert found.patch_scores.mean() == pytest.approx(wanted.mean(), abs=1e-3)


@pytest.mark.slow
def test_masked(shared: Path, tiles: Path, weights_folder: Path) -> None:
    case = Case(shared, "masked")
    options = {"mask": "on", "rotations": "none", "morphology": "reference"}
    for name, found in run(case, tiles, weights_folder, **options).items():
        wanted = case.distances(name)
        kept = found.patch_scores > 0
        assert (kept != (wanted > 0)).mean() <= 0.01
        both = kept & (wanted > 0)
        assert 0.1 < both.mean() < 0.9, "the case must mask a part, and only a part"
        np.testing.assert_allclose(found.patch_scores[both], wanted[both], atol=2e-4)


@pytest.mark.slow
def test_batched(shared: Path, tiles: Path, weights_folder: Path) -> None:
    case = Case(shared, "batched")
    detector = BatchedAnomalyDINO(
        weights=save_dinov2_vits14(weights_folder, case.config["norm_scale"]),
        resolution=case.config["resolution"],
        resize="crop",
        quantile=case.config["quantile"],
        mask="off",
    )
    for name, found in zip(
        case.config["tests"], detector.stream(case.files(tiles, "tests")), strict=True
    ):
        np.testing.assert_allclose(found.patch_scores, case.distances(name), atol=2e-4)
        assert found.score == pytest.approx(case.results[name]["score"], abs=2e-4)
        assert found.threshold is None
        assert found.is_anomalous is None
