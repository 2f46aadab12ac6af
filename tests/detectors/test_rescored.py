"""Another way of scoring: equal to another fit, and nothing that changes is shared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offnominal import AnomalyDINO, MultiLayerNN, PaDiM, PatchCore, SubspaceAD, load
from offnominal.datasets.synthetic import draw_good
from offnominal.detectors.base import Detector
from offnominal.detectors.memory_bank.base import BankDetector
from offnominal.errors import OptionError

SMALL: dict[str, Any] = {"backbone": "builtin", "resolution": 64, "device": "cpu"}
MADE: dict[str, Callable[..., Detector]] = {
    "anomalydino": lambda **o: AnomalyDINO(**SMALL, rotations="0,90", normalize="l2", **o),
    "patchcore": lambda **o: PatchCore(**SMALL, dim=48, coreset=0.3, **o),
    "multilayer-nn": lambda **o: MultiLayerNN(**SMALL, rotations="none", summary_weight=0.5, **o),
    "subspacead": lambda **o: SubspaceAD(**SMALL, rotations="none", nearest=0.3, **o),
    "padim": lambda **o: PaDiM(**SMALL, dimensions=8, **o),
}
CHANGES = {"aggregate": "mean", "smoothing": 1.5, "false_reject": 0.4}
GROWING = [kind for kind in MADE if kind != "padim"]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [draw_good("fabric", 2, index)[:160, :160] for index in range(6)]


def state(detector: Detector, path: Path) -> tuple[Any, ...]:
    """All that is known, as a file has it, and what a user sees of it."""
    detector.save(path)
    files = [one.file for one in detector.references if one.active]
    thresholds = (detector.threshold, detector.pixel_threshold)
    scores = detector.calibration.images.tolist(), detector.calibration.peaks.tolist()
    return path.read_bytes(), files, detector.bank_rows, thresholds, scores, detector.history()


@pytest.mark.parametrize("kind", MADE)
def test_it_equals_a_fit_with_these_options(
    kind: str, images: list[np.ndarray], tmp_path: Path
) -> None:
    first = MADE[kind]().fit(images[:3])
    other, wanted = first.rescored(**CHANGES), MADE[kind](**CHANGES).fit(images[:3])
    assert state(other, tmp_path / "a") == state(wanted, tmp_path / "b")
    [found], [expected] = first.predict(images[4]), wanted.predict(images[4])
    for one in (other.rescore(found), *other.predict(images[4])):
        assert (one.score, one.threshold, one.p_value) == (
            expected.score, expected.threshold, expected.p_value,
        )  # fmt: skip
        assert np.array_equal(one.anomaly_map, expected.anomaly_map)
    again = other.rescored(**{name: getattr(first, name) for name in CHANGES})
    assert state(again, tmp_path / "a") == state(first, tmp_path / "b")
    with pytest.raises(OptionError, match="resolution: takes another fit"):
        first.rescored(resolution=72)


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.slow
def test_what_one_learns_the_other_does_not(
    kind: str, loaded: bool, images: list[np.ndarray], tmp_path: Path
) -> None:
    first: Any = MADE[kind]().fit(images[:3])
    if loaded:
        first.save(tmp_path / "part.offn")
        first = load(tmp_path / "part.offn", device="cpu")
    other: Any = first.rescored(aggregate="max")
    for grows, stays in ((other, first), (first, other)):
        before = state(stays, tmp_path / "a")
        steps: list[Callable[[], object]] = [
            lambda one=grows: one.add(images[3:5]),
            lambda one=grows: one.calibrate(images[5:]),
        ]
        if isinstance(grows, BankDetector):
            forget = [lambda one=grows, image=image: one.forget(image) for image in images[:2]]
            # First what writes into columns where they lie: adding makes new ones.
            steps = [forget[0], grows.undo, *steps, forget[1], grows.undo, grows.undo]
            steps += [forget[0], grows.compact]
        for step in steps:
            step()
            assert state(stays, tmp_path / "a") == before
            assert state(stays.rescored(), tmp_path / "a") == before


def test_a_fit_of_one_leaves_the_other(images: list[np.ndarray], tmp_path: Path) -> None:
    """Standardising shifts rows in place."""
    first = AnomalyDINO(**SMALL, rotations="none", normalize="standardize").fit(images[:3])
    other = first.rescored(aggregate="max")
    before = state(other, tmp_path / "a")
    first.fit(images[3:])
    assert state(other, tmp_path / "a") == before
