"""A detector is one file and one line: what a method of another package gets with no word more."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import offnominal
from offnominal.calibration import Threshold
from offnominal.detectors import methods, registry

METHOD = '''
"""Distance of each patch from the mean of the good ones."""
from typing import Any, ClassVar
import torch
from torch import Tensor
from offnominal.detectors.features import FeatureDetector, ViewScores


class MeanPatch(FeatureDetector):
    """Distance of each patch from the mean of the good ones.

    Parameters
    ----------
    power : float
        Exponent of the distance.
    """
    method: ClassVar[str] = "mean-patch"

    def __init__(self, power: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.power, self.sums_ = power, torch.zeros(0)

    def learn_features(self, number: int, features: Tensor, view: int, upright: bool) -> None:
        own = features.mean((1, 2))[None]
        self.sums_ = own if number == 0 else torch.cat([self.sums_, own])

    def compare(self, features: Tensor, without: int | None = None) -> ViewScores:
        kept = [n for n in range(len(self.sums_)) if n != without]
        mean = self.sums_[kept].mean(0)[:, None, None]
        return ViewScores((features - mean).norm(dim=0) ** self.power)
'''


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with one method of under 30 lines, installed as another author would have it."""
    assert len(METHOD.strip().splitlines()) < 30
    (tmp_path / "strange.py").write_text(METHOD)
    about = tmp_path / "strange-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[offnominal.methods]\nmean-patch = strange:MeanPatch\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    methods.add_methods_of_others()
    yield "mean-patch"
    del methods.METHODS["mean-patch"]


@pytest.fixture
def good(parts: Path) -> list[Path]:
    return sorted((parts / "fabric" / "train" / "good").iterdir())


def command(*words: object) -> str:
    """What the command line prints, and that it ends well."""
    from offnominal.cli import app

    told = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return told.output


@pytest.mark.slow
def test_it_is_fitted_scored_calibrated_and_saved(
    stranger: str, good: list[Path], parts: Path, tmp_path: Path
) -> None:
    kind = registry.detector_class(stranger)
    detector = kind(backbone="builtin", false_reject=0.2, device="cpu").fit(good[:5])
    alone = [
        kind(backbone="builtin", device="cpu").fit([g for g in good[:5] if g != one]).predict(one)
        for one in good[:5]
    ]
    scores = [prediction.score for [prediction] in alone]
    np.testing.assert_allclose(detector.calibration.images, scores, rtol=1e-6)
    assert isinstance(detector.threshold, Threshold)
    assert detector.threshold.kind == "conformal"
    bad = sorted((parts / "fabric" / "test").rglob("*.png"))
    before = detector.predict(bad)
    assert before[0].anomaly_map.shape == before[0].image.shape[:2]
    detector.save(tmp_path / "part.offn")
    after = offnominal.load(tmp_path / "part.offn", device="cpu").predict(bad)
    assert [one.score for one in before] == [one.score for one in after]
    assert [one.threshold for one in before] == [one.threshold for one in after]
    detector.calibrate(good[5:])
    assert detector.calibration.kind == "held-out"


@pytest.mark.slow
def test_it_takes_tiles(stranger: str, good: list[Path]) -> None:
    kind = registry.detector_class(stranger)
    detector = kind(backbone="builtin", tile=96, device="cpu").fit(good[:3])
    [found] = detector.predict(good[4])
    assert found.anomaly_map.shape == found.image.shape[:2]
    assert np.isfinite(found.anomaly_map).all()
    assert len(detector.calibration) == 3


@pytest.mark.slow
def test_the_command_line_knows_it(
    stranger: str, good: list[Path], parts: Path, tmp_path: Path
) -> None:
    told = command("fit", "--method", stranger, "--help")
    assert "--power" in told
    assert "Exponent of the distance" in told
    model = tmp_path / "part.offn"
    command(
        *("fit", good[0].parent, "-o", model, "--method", stranger, "--power", "2"),
        *("--backbone", "builtin", "--device", "cpu"),
    )
    assert offnominal.load(model, device="cpu").options()["power"] == 2.0
    command("predict", model, parts / "fabric" / "test", "-o", tmp_path / "results")
    rows = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").open()]
    assert len(rows) == len(list((parts / "fabric" / "test").rglob("*.png")))
    assert stranger in command("methods")


def test_it_takes_part_in_a_benchmark(stranger: str, parts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command(
        *("benchmark", "--data", parts, "-o", run, "--method", stranger, "--backbone", "builtin"),
        *("--categories", "fabric", "--shots", "2", "--seeds", "1", "--set", "power=1,2"),
    )
    assert stranger in "".join(path.read_text() for path in run.rglob("*.json"))
