"""Growing, shrinking and explaining as a user does it: real files."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.conftest import offnominal, passed

from offnominal.modelfile import read_header


@pytest.fixture
def model(fabric_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(fabric_model, tmp_path / "fabric.offn"))


@pytest.mark.slow
def test_a_false_alarm_is_learned_and_given_up_again(model: Path, parts: Path, good: Path) -> None:
    before = model.read_bytes()
    alarm = parts / "fabric" / "test" / "stain" / "000.png"
    assert offnominal("predict", model, alarm, "--fail-on-anomaly").returncode == 1
    said = passed(
        offnominal("add", model, alarm, good / "000.png", "--when", "2026-03-01T09:30:00+01:00")
    )
    assert "learned 1 image" in said
    assert "left out   1 that it knows already" in said
    assert "references 6 -> 7" in said
    assert "before: " in said.split("threshold")[1]
    assert "exactly" in said
    assert offnominal("predict", model, alarm, "--fail-on-anomaly").returncode == 0

    told = passed(offnominal("forget", model, "good/001.png"))
    assert "forgot 1 image" in told
    assert "references 7 -> 6" in told
    listed = offnominal("history", model)
    lines = listed.stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["fit", "add", "forget"]
    assert "2026-03-01T08:30:00Z" in lines[2]
    assert str(good / "001.png") in lines[3]
    as_json = json.loads(offnominal("history", model, "--json").stdout)
    assert [step["references"] for step in as_json["history"]] == [6, 7, 6]
    assert len(as_json["history"][0]["images"]) == 6
    assert {"file", "digest"} == set(as_json["references"][0])

    passed(offnominal("undo", model))
    passed(offnominal("undo", model))
    assert model.read_bytes() == before, "back to the byte"
    nothing = offnominal("undo", model)
    assert nothing.returncode == 2
    assert "nothing to undo" in nothing.stderr


def test_results_go_where_they_are_wanted(model: Path, parts: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    image = parts / "fabric" / "test" / "good" / "000.png"
    new = tmp_path / "new.offn"
    passed(offnominal("add", model, image, "-o", new))
    assert model.read_bytes() == before
    assert len(read_header(new)["references"]["known"]) == 7
    passed(offnominal("forget", new, image, "--compact", "-o", tmp_path / "less.offn"))
    assert (tmp_path / "less.offn").stat().st_size < new.stat().st_size
    said = passed(offnominal("add", model, image.parent.parent / "good" / "000.png"))
    assert "learned 1 image" in said
    again = passed(offnominal("add", model, image))
    assert "learned 0 images" in again
    assert "references 7" in again


def test_explain_draws_a_picture(model: Path, parts: Path, tmp_path: Path) -> None:
    image = parts / "fabric" / "test" / "stain" / "000.png"
    done = offnominal("explain", model, image, "--worst", 3, cwd=tmp_path)
    assert passed(done) == "picture: 000.explained.png\n"
    with Image.open(tmp_path / "000.explained.png") as picture:
        assert picture.size[0] > 1000
    row = json.loads(done.stdout)
    assert row["image"] == str(image)
    assert 1 <= len(row["matches"]) <= 3
    assert "train/good" in row["matches"][0]["reference"]


@pytest.mark.slow
def test_what_cannot_be_done_is_said(model: Path, parts: Path, tmp_path: Path) -> None:
    good = parts / "fabric" / "train" / "good"
    padim = tmp_path / "padim.offn"
    passed(offnominal("fit", good, "-o", padim, "--method", "padim", "--backbone", "builtin"))
    image = good / "000.png"
    for arguments, words in [
        (["add", padim, image], "padim cannot add: "),
        (["explain", padim, image], "padim cannot show"),
        (["undo", padim], "padim cannot undo: "),
        (["forget", model, "010.png"], "did you mean"),
        (["add", model, image, "--when", "yesterday"], "--when yesterday"),
        (["add", tmp_path / "none.offn", image], "does not exist"),
        (["explain", model, image, "-o", "absent/x.png"], "the folder absent does not exist"),
        (["explain", model, image, "-o", "x.nonsense"], "x.nonsense"),
        (["explain", model, "none.png"], "none.png"),
    ]:
        done = offnominal(*arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert len(offnominal("history", padim).stdout.splitlines()) == 2


def test_unreadable_images_are_left_out(model: Path, parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alarms"
    folder.mkdir()
    shutil.copy(parts / "fabric" / "test" / "good" / "000.png", folder / "a.png")
    (folder / "b.png").touch()
    done = offnominal("add", model, folder)
    assert done.returncode == 3
    assert "b.png" in done.stderr
    assert len(read_header(model)["references"]["known"]) == 7
    before = model.read_bytes()
    strict = offnominal("add", model, folder, "--strict")
    assert strict.returncode == 2
    assert model.read_bytes() == before


@pytest.mark.slow
def test_fit_says_how_large_any_bank_is(parts: Path, tmp_path: Path) -> None:
    fit = ["fit", parts / "fabric" / "train" / "good", "-o", tmp_path / "m.offn"]
    options = ["--backbone", "builtin", "--resolution", 64]
    for method, more in (("patchcore", []), ("subspacead", ["--set", "nearest=0.5"])):
        said = passed(offnominal(*fit, *options, "--method", method, *more))
        assert "  bank       " in said
    plain = passed(offnominal(*fit, *options, "--method", "subspacead", "--rotations", "none"))
    assert "  bank" not in plain


def test_weights_of_an_ensemble_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offnominal.cli.options import build_detector

    monkeypatch.chdir(tmp_path)
    for name in ("a,b.pth", "one.pth", "two.pth"):
        Path(name).touch()
    given = {"backbone": "resnet18,resnet34", "weights": "one.pth, two.pth"}
    detector = build_detector("ensemble", given)
    assert detector.weights == f"{Path('one.pth').absolute()},{Path('two.pth').absolute()}"
    single = build_detector("anomalydino", {"weights": "a,b.pth"})
    assert single.weights == str(Path("a,b.pth").absolute())
