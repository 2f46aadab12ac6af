"""Thresholds set by hand, calibrations in the history, and the times of steps."""

import json
import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import ENVIRONMENT, offnominal, passed

from offnominal import AnomalyDINO, load, modelfile
from offnominal.errors import ModelFileError, OptionError
from offnominal.text import digits


@pytest.fixture
def model(fabric_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(fabric_model, tmp_path / "fabric.offn"))


@pytest.mark.slow
def test_a_threshold_by_hand_is_marked_and_taken_back(model: Path, parts: Path) -> None:
    before, good = model.read_bytes(), parts / "fabric" / "test" / "good"
    said = passed(offnominal("calibrate", model, "--threshold", "7.5"))
    assert "threshold set by hand" in said
    assert "7.5: SET BY HAND, so no rate of rejected good parts is promised" in " ".join(
        said.split()
    )
    detector = load(model, device="cpu")
    assert (detector.threshold.kind, detector.threshold.value) == ("manual", 7.5)
    assert "SET BY HAND" in offnominal("info", model).stdout
    facts = json.loads(offnominal("info", model, "--json").stdout)
    assert facts["threshold"] == {
        "value": 7.5, "kind": "manual", "false_reject": None, "count": 0
    }  # fmt: skip
    [prediction] = detector.predict(good / "000.png")
    assert prediction.threshold == 7.5
    assert prediction.pixel_threshold == load(model, device="cpu").pixel_threshold.value

    said = passed(offnominal("calibrate", model, good))
    assert "by 3 good images" in offnominal("history", model).stdout
    assert "SET BY HAND" in said.partition("before")[2], "what it was"
    assert load(model, device="cpu").threshold.kind != "manual"
    assert "took back calibrate" in passed(offnominal("undo", model))
    assert load(model, device="cpu").threshold.value == 7.5
    passed(offnominal("undo", model))
    assert model.read_bytes() == before


def test_what_is_not_kept_cannot_be_taken_back(model: Path, parts: Path) -> None:
    good = parts / "fabric" / "test" / "good"
    passed(offnominal("calibrate", model, good))
    passed(offnominal("calibrate", model, good))
    done = offnominal("undo", model)
    assert done.returncode == 2
    assert "are not kept: calibrate with those again" in done.stderr


def test_what_is_printed_decides_as_the_model_does(model: Path, parts: Path) -> None:
    train = sorted((parts / "fabric" / "train" / "good").iterdir())
    detector = load(model, device="cpu")
    threshold = detector.threshold.value
    told = digits(threshold)
    rows = offnominal("predict", model, train[0], "--threshold", told).stdout
    assert json.loads(rows)["threshold"] == threshold
    passed(offnominal("calibrate", model, "--threshold", told))
    assert load(model, device="cpu").threshold.value == threshold


def test_times_are_noted_unless_there_is_to_be_none(
    model: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def when() -> list[str | None]:
        steps = json.loads(offnominal("history", model, "--json").stdout)["history"]
        return [step["when"] for step in steps]

    passed(offnominal("calibrate", model, "--threshold", 1))
    monkeypatch.setitem(ENVIRONMENT, "SOURCE_DATE_EPOCH", "")
    passed(offnominal("calibrate", model, "--threshold", 2, "--when", "none"))
    passed(offnominal("calibrate", model, "--threshold", 3))
    assert when()[:3] == [None, "2026-03-01T09:00:00Z", None]
    assert when()[3] is not None
    monkeypatch.setitem(ENVIRONMENT, "SOURCE_DATE_EPOCH", "soon")
    done = offnominal("calibrate", model, "--threshold", 2)
    assert (done.returncode, "SOURCE_DATE_EPOCH=soon" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "nan"], "--threshold nan"),
        (["--threshold", "high"], "--threshold high: give a number"),
        (["GOOD", "--threshold", "1"], "give one of the two"),
        (["--threshold", "1", "--false-reject", "auto"], "give one of the two"),
    ],
)
def test_one_or_the_other(model: Path, good: Path, arguments: list[str], words: str) -> None:
    before = model.read_bytes()
    given = [str(good) if one == "GOOD" else one for one in arguments]
    done = offnominal("calibrate", model, *given)
    assert done.returncode == 2
    assert words in done.stderr
    assert model.read_bytes() == before


def test_in_python_no_clock_is_asked(good: Path, tmp_path: Path) -> None:
    detector = AnomalyDINO(backbone="builtin", resolution=48, rotations="none", mask="off")
    detector.fit(sorted(good.iterdir()))
    change = detector.set_threshold(0.5)
    assert (change.threshold[1].value, change.what) == (0.5, "calibrate")
    assert [step.when for step in detector.history()] == [None, None]
    assert detector.rescored(aggregate="max").threshold.kind != "manual", "of other scores"
    for wrong in (float("nan"), "high", True):
        with pytest.raises(OptionError, match="give a number"):
            detector.set_threshold(wrong)
    detector.save(tmp_path / "m.offn")
    header = modelfile.read_header(tmp_path / "m.offn")
    tensors = modelfile.read(tmp_path / "m.offn", header)
    for wrong in ("high", True, [1]):
        header["calibration"]["by-hand"] = wrong
        del header["sums"], header["format"], header["version"]
        modelfile.write(tmp_path / "wrong.offn", header, tensors)
        with pytest.raises(ModelFileError, match="set by hand"):
            load(tmp_path / "wrong.offn")
        header |= modelfile.read_header(tmp_path / "wrong.offn")


def test_a_file_of_the_format_before_is_read(model: Path, good: Path, tmp_path: Path) -> None:
    header = modelfile.read_header(model)
    tensors = modelfile.read(model, header)
    old = {k: v for k, v in header.items() if k not in ("leave_one_out", "sums", "version")}
    modelfile.write(tmp_path / "old.offn", old | {"format": 5}, tensors)
    assert modelfile.read_header(tmp_path / "old.offn")["format"] == 5
    told = offnominal("info", tmp_path / "old.offn").stdout.splitlines()[1:]
    assert told == offnominal("info", model).stdout.splitlines()[1:]
    passed(offnominal("calibrate", tmp_path / "old.offn", "--threshold", 1))
