"""Late fusion: p-values and maps of fitted detectors, combined by what good parts show."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from offnominal import load
from offnominal.calibration import evidence, p_value
from offnominal.cli import app
from offnominal.detectors.distribution.padim import PaDiM
from offnominal.detectors.late_fusion import LateFusion
from offnominal.detectors.memory_bank.dn2 import DN2
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.errors import ModelFileError, OptionError


@pytest.fixture(scope="module")
def good() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(90, 140, (64, 64, 3), dtype=np.uint8) for _ in range(10)]


@pytest.fixture(scope="module")
def files(good: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("members")
    patches = PatchCore(backbone="builtin", coreset=0.5, dim=32, resolution=64, device="cpu")
    patches.fit(good[:4]).save(folder / "patches.offn")
    DN2(backbone="builtin", device="cpu").fit(good[:5]).save(folder / "whole.offn")
    places = PaDiM(backbone="builtin", resolution=64, device="cpu")
    places.fit(good[:5]).save(folder / "places.offn")
    return ", ".join(str(folder / f"{name}.offn") for name in ("patches", "whole", "places"))


@pytest.fixture(scope="module")
def fitted(files: str, good: list[np.ndarray]) -> LateFusion:
    return LateFusion(members=files, device="cpu").fit(good[5:], synthetic=False)


@pytest.fixture
def bad(good: list[np.ndarray]) -> np.ndarray:
    image = good[0].copy()
    image[20:36, 24:40] = 255
    return image


def test_evidence_is_the_p_values_logarithm_and_goes_on_beyond_good_scores() -> None:
    good = np.array([1.0, 2, 3, 4, 5])
    for score in (1.0, 2, 3, 4, 5):
        just_above = p_value(score + 1e-9, good)
        assert just_above is not None
        assert evidence(score, good) == pytest.approx(-np.log(just_above))
    scores = np.linspace(0, 50, 400)
    found = [evidence(score, good) for score in scores]
    assert (np.diff(found) >= 0).all()
    assert (np.diff(found)[scores[:-1] > 5] > 0).all(), "beyond all good parts they still rank"
    # The mean excess of 4 and 5 over the median 3 is 1.5, in which the tail is counted.
    assert evidence(5 + 3, good) == pytest.approx(np.log(6) + 2)
    # In any unit, from any zero.
    assert evidence(7 * 8 - 90, 7 * good - 90) == pytest.approx(evidence(8, good))
    assert evidence(5, np.array([2.0, 2, 2, 5])) == pytest.approx(np.log(5)), "ties"


@pytest.mark.slow
def test_members_are_combined(
    fitted: LateFusion, files: str, good: list[np.ndarray], bad: np.ndarray
) -> None:
    threshold = fitted.threshold
    assert threshold is not None
    assert threshold.kind == "conformal"
    assert threshold.count == 5
    members = [load(file.strip(), device="cpu") for file in files.split(",")]
    each = []
    for member in members:
        scores = [one.score for one in member.predict(good[5:])]
        each.append(evidence(member.predict(bad)[0].score, np.array(scores)))
    [found] = fitted.predict(bad)
    assert found.score == pytest.approx(sum(each), rel=1e-6)
    assert found.is_anomalous
    assert 24 <= np.unravel_index(found.anomaly_map.argmax(), (64, 64))[1] < 40
    smallest = LateFusion(members=files, combine="smallest", maps="mean", device="cpu")
    [other] = smallest.fit(good[5:], synthetic=False).predict(bad)
    assert other.score == pytest.approx(max(each), rel=1e-6)
    assert not np.array_equal(other.anomaly_map, found.anomaly_map)


def test_images_that_members_were_fitted_on_count_without_themselves(
    files: str, good: list[np.ndarray]
) -> None:
    patches, *_ = (load(file.strip(), device="cpu") for file in files.split(","))
    fusion = LateFusion(members=files, device="cpu").fit(good[:6], synthetic=False)
    np.testing.assert_allclose(fusion.images_[:4, 0], patches.good.references.images)
    assert fusion.threshold is not None
    assert fusion.threshold.kind == "approximate", "a coreset's scores of its images are"


def test_saved_with_its_members(
    files: str, good: list[np.ndarray], bad: np.ndarray, tmp_path: Path
) -> None:
    copies = [str(tmp_path / f"{n}.offn") for n in (0, 1, 2)]
    for source, copy in zip(files.split(","), copies, strict=True):
        Path(copy).write_bytes(Path(source.strip()).read_bytes())
    fusion = LateFusion(members=",".join(copies), device="cpu").fit(good[5:], synthetic=False)
    [one] = fusion.predict(bad)
    fusion.save(tmp_path / "both.offn")
    for copy in copies:
        Path(copy).unlink()
    again = load(tmp_path / "both.offn", device="cpu")
    [two] = again.predict(bad)
    assert (one.score, one.threshold, one.p_value) == (two.score, two.threshold, two.p_value)
    assert np.array_equal(one.anomaly_map, two.anomaly_map)
    other = again.rescored(aggregate="max")
    assert other.predict(bad)[0].score == pytest.approx(two.patch_scores.max())
    with pytest.raises(ModelFileError, match="does not exist"):
        LateFusion(members=",".join(copies), device="cpu").fit(good[5:])


@pytest.mark.slow
def test_what_cannot_be_is_refused(files: str, good: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="two fitted models"):
        LateFusion(members=files.split(",")[0]).fit(good)
    with pytest.raises(OptionError, match="3 or more"):
        LateFusion(members=files, device="cpu").fit(good[5:7])
    with pytest.raises(OptionError, match="leave it out"):
        LateFusion(members=files, modality="depth")
    with pytest.raises(OptionError, match="--sixteen-bit range"):
        LateFusion(members=files, sixteen_bit="1,99", device="cpu").fit(good)
    both = tmp_path / "both.offn"
    LateFusion(members=files, device="cpu").fit(good[5:], synthetic=False).save(both)
    with pytest.raises(OptionError, match="cannot be a member"):
        LateFusion(members=f"{both},{both}", device="cpu").fit(good)


@pytest.mark.slow
def test_the_command_line_takes_a_list(files: str, good: list[np.ndarray], tmp_path: Path) -> None:
    for number, image in enumerate(good[5:]):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    model = tmp_path / "both.offn"
    words = ["fit", str(tmp_path), "--method", "fusion", "-o", str(model), "--device", "cpu"]
    told = CliRunner().invoke(app, [*words, "--set", f"members={files.replace(' ', '')}"])
    assert told.exit_code == 0, told.output
    assert len(load(model, device="cpu").header()["members"]) == 3
    told = CliRunner().invoke(app, ["info", str(model)])
    assert told.exit_code == 0, told.output
    assert "fusion" in told.output
