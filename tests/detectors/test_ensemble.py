"""An ensemble of backbones: means of normalised scores and maps."""

from pathlib import Path

import numpy as np
import pytest

from offnominal import load
from offnominal.detectors.ensemble import PAPER_BACKBONES, Ensemble
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.errors import OptionError

SETTINGS = {"coreset": 0.5, "dim": 32, "crop": 128}


@pytest.fixture(scope="module")
def files(parts: Path) -> list[Path]:
    return sorted((parts / "fabric" / "train" / "good").iterdir())


def build(**options: object) -> Ensemble:
    return Ensemble(
        backbone="builtin,builtin-aligned",
        settings=SETTINGS,
        device="cpu",
        false_reject=0.3,
        **options,
    )


@pytest.fixture(scope="module")
def fitted(files: list[Path]) -> Ensemble:
    return build().fit(files[:4])


@pytest.mark.slow
def test_scores_and_maps_are_means_of_the_scaled_members(
    fitted: Ensemble, files: list[Path]
) -> None:
    scores, maps = [], []
    for name in ("builtin", "builtin-aligned"):
        member = PatchCore(backbone=name, **SETTINGS, device="cpu").fit(files[:4])
        scale = member.calibration.images.mean()
        [one] = member.predict(files[4])
        scores.append(one.score / scale)
        maps.append(one.anomaly_map / scale)
    [found] = fitted.predict(files[4])
    assert found.score == pytest.approx(np.mean(scores), rel=1e-6)
    np.testing.assert_allclose(found.anomaly_map, np.mean(maps, axis=0), rtol=1e-5)
    assert fitted.calibration.images.mean() == pytest.approx(1), "what a good part scores"
    assert found.threshold is not None
    assert found.p_value is not None


@pytest.mark.slow
def test_peaks_are_bounded_from_above(fitted: Ensemble, files: list[Path]) -> None:
    for number, file in enumerate(files[:4]):
        [alone] = build().fit([f for f in files[:4] if f != file]).predict(file)
        # The scales are those of other references, so only roughly.
        assert alone.anomaly_map.max() < 1.25 * fitted.calibration.peaks[number]


def test_saved_and_loaded_it_is_the_same(
    fitted: Ensemble, files: list[Path], tmp_path: Path
) -> None:
    fitted.save(tmp_path / "part.offn")
    assert not [name for name in fitted.arrays() if ".network." in name]
    again = load(tmp_path / "part.offn", device="cpu")
    assert isinstance(again, Ensemble)
    assert again.options() == fitted.options()
    [one], [two] = fitted.predict(files[4]), again.predict(files[4])
    assert (one.score, one.threshold, one.p_value) == (two.score, two.threshold, two.p_value)
    assert np.array_equal(one.anomaly_map, two.anomaly_map)


def test_rescored_is_a_fit_with_other_options(fitted: Ensemble, files: list[Path]) -> None:
    other = fitted.rescored(aggregate="top5")
    wanted = build(aggregate="top5").fit(files[:4])
    assert np.array_equal(other.calibration.images, wanted.calibration.images)
    [prediction] = fitted.predict(files[4])
    assert other.rescore(prediction).score == wanted.predict(files[4])[0].score
    assert other.predict(files[4])[0].score == other.rescore(prediction).score
    back = other.rescored(aggregate="members")
    assert np.array_equal(back.calibration.images, fitted.calibration.images)
    for one, two in zip(fitted.members, other.members, strict=True):
        assert one.load_network() is two.load_network(), "networks are shared"
    assert fitted.rescored(false_reject=0.5).threshold != fitted.threshold


@pytest.mark.slow
def test_calibrate(files: list[Path]) -> None:
    ensemble = build().fit(files[:3])
    assert ensemble.calibrate(files[2:6]) == 1, "a reference is left out"
    scores = [found.score for found in ensemble.predict(files[3:6])]
    assert ensemble.calibration.images.tolist() == pytest.approx(scores)
    other = ensemble.rescored(aggregate="max", smoothing=1.0)
    again = build(aggregate="max", smoothing=1.0).fit(files[:3])
    again.calibrate(files[3:6])
    assert np.array_equal(other.calibration.images, again.calibration.images)
    assert np.array_equal(other.calibration.peaks, again.calibration.peaks)


def test_the_papers_three_are_the_default() -> None:
    ensemble = Ensemble()
    assert ensemble.options()["backbone"] == PAPER_BACKBONES
    assert [member.options()["coreset"] for member in ensemble.members] == [0.01] * 3
    assert [member.options()["dim"] for member in ensemble.members] == [384] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "builtin"}, "at least two"),
        ({"backbone": "resnet18,resnet50", "weights": "a.pth"}, "weights"),
        ({"settings": {"colour": 1}}, "settings colour"),
        ({"of": "nonsense"}, "nonsense"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Ensemble(**options)


def test_one_reference_is_not_enough(files: list[Path]) -> None:
    with pytest.raises(OptionError, match="2 or more"):
        build().fit(files[:1])


def test_members_that_say_nothing_of_good_parts_are_no_scale() -> None:
    """Good images that are alike wherever it looks: any other would score what is no number."""
    alike = np.full((3, 256, 256, 3), 100, np.uint8)
    alike[:, 0, 0, 0] = 50, 100, 150
    detector = Ensemble(
        backbone="builtin,builtin",
        settings={"coreset": 1.0, "dim": 32, "crop": 64},
        resolution=256,
        device="cpu",
    )
    with pytest.raises(OptionError, match="for one of its members they all score 0"):
        detector.fit(list(alike))
