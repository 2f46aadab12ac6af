"""Decisions from few images: what is promised, what is guessed, and what would pass."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offnominal
from offnominal import AnomalyDINO
from offnominal.detectors.base import Detector
from offnominal.detectors.registry import detector_class
from offnominal.errors import ModelFileError, ThresholdWarning
from offnominal.images import read_image

SMALL: dict[str, Any] = {"backbone": "builtin", "device": "cpu", "resolution": 128}
PLAIN = SMALL | {"rotations": "none"}


@pytest.fixture(scope="module")
def good(parts: Path) -> list[np.ndarray]:
    folder = parts / "fabric" / "train" / "good"
    return [read_image(file)[:160, :160] for file in sorted(folder.iterdir())]


def test_the_rate_tightens_by_itself(good: list[np.ndarray]) -> None:
    detector = AnomalyDINO(**PLAIN).fit(good[:2])
    threshold = detector.threshold
    assert threshold is not None
    assert (threshold.kind, threshold.count) == ("conformal", 2)
    assert threshold.value == detector.calibration.images.max()
    change = detector.add(good[2:5])
    after = change.threshold[1]
    assert after is not None
    assert (after.false_reject, after.count) == (pytest.approx(1 / 6), 5)
    detector.calibrate([*good[5:], *(image[::-1].copy() for image in good)])
    assert detector.threshold is not None
    assert detector.threshold.false_reject == pytest.approx(1 / 8)
    assert detector.options()["false_reject"] == "auto"


def test_the_first_image_yields_a_guess_and_the_second_a_promise(
    good: list[np.ndarray], tmp_path: Path
) -> None:
    detector = AnomalyDINO(**PLAIN).fit(good[:1])
    threshold = detector.threshold
    assert threshold is not None
    assert threshold.kind == "guess"
    assert threshold.value == pytest.approx(1.2 * detector.calibration.images.max())
    [prediction] = detector.predict(good[1])
    assert prediction.is_anomalous is not None
    assert prediction.p_value is None, "copies of one image say nothing of how unusual another is"
    detector.save(tmp_path / "one.offn")
    loaded = offnominal.load(tmp_path / "one.offn")
    assert loaded.threshold == threshold
    assert loaded.rescored(aggregate="max").threshold is not None
    assert isinstance(loaded, AnomalyDINO)
    loaded.add(good[1:2])
    assert loaded.threshold is not None
    assert (loaded.threshold.kind, loaded.threshold.count) == ("conformal", 2)
    loaded.undo()
    assert loaded.threshold == threshold


def test_a_guess_is_no_smaller_where_references_are_turned(good: list[np.ndarray]) -> None:
    upright, turned = (
        AnomalyDINO(**SMALL, rotations=rotations).fit(good[:1]) for rotations in ("none", "0,180")
    )
    assert upright.threshold is not None
    assert turned.threshold is not None
    assert turned.threshold.value > 0.5 * upright.threshold.value


@pytest.mark.slow
def test_an_estimate_that_would_pass_plain_defects_says_so(good: list[np.ndarray]) -> None:
    with pytest.warns(ThresholdWarning, match="would pass"):
        detector = AnomalyDINO(**PLAIN, false_reject=0.001).fit(good[:4])
    assert detector.threshold is not None
    assert detector.threshold.kind == "estimate"
    assert detector.threshold.value > detector.good.defects.images.min()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        promised = detector.rescored(false_reject="auto")
    assert promised.threshold_warning is None
    unchecked = AnomalyDINO(**PLAIN).fit(good[:4])
    with pytest.warns(ThresholdWarning, match="there are no synthetic defects"):
        unchecked.calibrate([*good[4:], good[0][::-1].copy()], false_reject=0.01)
    # The same 48 defects by another threshold.
    assert sum(one.made for one in promised.missed_defects) == 48
    missed = [sum(one.missed for one in each.missed_defects) for each in (promised, detector)]
    assert missed[0] < missed[1] == (detector.good.defects.images <= detector.threshold.value).sum()


@pytest.mark.slow
def test_no_defects_are_made_unasked(good: list[np.ndarray]) -> None:
    assert not AnomalyDINO(**PLAIN).fit(good[:3]).missed_defects
    asked = AnomalyDINO(**PLAIN).fit(good[:3], synthetic=True).missed_defects
    assert [(one.cell.kind, one.cell.size, one.made) for one in asked] == [
        (kind, size, 8) for kind in ("patch", "scar") for size in ("small", "medium", "large")
    ]
    by_size = [sum(one.missed for one in asked if one.cell.size == s) for s in ("small", "large")]
    assert by_size[1] <= by_size[0]
    assert by_size[1] < 16, "the largest defects of a plain fabric are found"


@pytest.mark.slow
def test_a_defect_is_scored_as_if_its_reference_had_not_been_learned(
    good: list[np.ndarray],
) -> None:
    detector = AnomalyDINO(**PLAIN).fit(good[:3], synthetic=True)
    lowest = detector.good.references.images.min()
    # A copy of a reference scores 0, but for the defect; without the reference it scores as a part.
    assert detector.good.defects.images.min() > 0.5 * lowest


@pytest.mark.slow
def test_defects_and_copies_are_kept_and_checked(good: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "part.offn"
    detector = AnomalyDINO(**PLAIN).fit(good[:3], synthetic=True)
    detector.save(path)
    loaded = offnominal.load(path)
    assert loaded.missed_defects == detector.missed_defects
    detector.good.defects = detector.good.references
    detector.save(path)
    with pytest.raises(ModelFileError, match="scores of defects are said to be leave-one-out"):
        offnominal.load(path)


@pytest.mark.slow
def test_defects_count_for_the_references_that_scored_them(good: list[np.ndarray]) -> None:
    detector = AnomalyDINO(**PLAIN).fit(good[:3], synthetic=True)
    missed = detector.missed_defects
    detector.add(good[3:4])
    assert not detector.missed_defects
    detector.forget([good[3]])
    assert detector.missed_defects == missed
    detector.compact()
    assert detector.missed_defects == missed
    detector.forget([good[0]])
    assert not detector.missed_defects


def test_an_only_reference_keeps_its_guess(good: list[np.ndarray]) -> None:
    detector = AnomalyDINO(**PLAIN).fit(good[:1])
    guessed = detector.threshold
    detector.add(good[1:2])
    detector.forget([good[1]])
    detector.compact()
    assert detector.threshold == guessed
    thin = detector_class("patchcore")(**SMALL).fit(good[:2])
    thin.forget([good[1]])  # type: ignore[attr-defined]  # of detectors with a bank
    assert thin.threshold is None, "its score was measured by what is forgotten"


@pytest.mark.slow
def test_defects_lie_on_the_part(parts: Path) -> None:
    files = sorted((parts / "part" / "train" / "good").iterdir())[:3]
    detector = AnomalyDINO(**SMALL | {"resolution": 256}, rotations="none", mask="on")
    detector.fit(files, synthetic=True)
    scores = detector.good.defects.scores
    assert len(scores) > 40
    assert all(one.patches.max() > 0 for one in scores)


@pytest.mark.parametrize("name", ["patchcore", "softpatch", "padim", "subspacead", "spade", "dn2"])
@pytest.mark.slow
def test_other_methods_guess_and_check_too(name: str, good: list[np.ndarray]) -> None:
    kind = detector_class(name)
    if name != "softpatch":  # which takes two
        one: Detector = kind(**SMALL).fit(good[:1])
        assert one.threshold is not None
        assert one.threshold.kind == "guess"
    some: Detector = kind(**SMALL).fit(good[:4], synthetic=True)
    assert some.threshold is not None
    assert some.threshold.false_reject == pytest.approx(1 / 5)
    assert sum(found.made for found in some.missed_defects) == 48
