"""SimpleNet on a small network: what is learned tells good features from noisy ones."""

from pathlib import Path
from typing import Any

import pytest

from offnominal.detectors.one_class.simplenet import SimpleNet

SMALL: dict[str, Any] = {"backbone": "builtin", "resolution": 64, "hidden": 16, "device": "cpu"}


def good(parts: Path) -> list[Path]:
    return sorted((parts / "part" / "train" / "good").iterdir())


def test_it_learns_and_scores_by_the_worst_patch(parts: Path) -> None:
    detector = SimpleNet(steps=30, batch=3, lr_scale=10, **SMALL).fit(good(parts))
    first, last = detector.losses[0], detector.losses[-1]
    assert first["total"] == pytest.approx(first["good"] + first["noisy"])
    assert last["total"] < 0.9 * first["total"]
    [found] = detector.predict(good(parts)[0])
    assert found.patch_scores.shape == (8, 8)
    assert found.score == pytest.approx(float(found.patch_scores.max()))


@pytest.mark.slow
def test_noise_is_as_strong_as_features_ask_for(parts: Path, mobilenet: Path) -> None:
    """The paper's number with the paper's kind of network; of others a share of their spread."""
    options = SMALL | {"backbone": "mobilenetv2_100", "weights": str(mobilenet), "steps": 1}
    detector = SimpleNet(**options).fit(good(parts))
    assert 0.1 < detector.noise_ < 1
    assert SimpleNet(noise=0.2, **options).fit(good(parts)).noise_ == 0.2
