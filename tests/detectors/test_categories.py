"""One model of several categories, with a threshold for each."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli.conftest import offnominal, passed

from offnominal import load
from offnominal.detectors.one_class.simplenet import SimpleNet
from offnominal.errors import ModelFileError, OptionError
from offnominal.images import read_image
from offnominal.modelfile import read_header

LOOKS = ("fabric", "part")
SMALL: dict[str, Any] = {
    "backbone": "builtin",
    "resolution": 64,
    "steps": 2,
    "hidden": 8,
    "device": "cpu",
}


def good(parts: Path, look: str) -> list[Path]:
    return sorted((parts / look / "train" / "good").iterdir())


@pytest.fixture(scope="module")
def both(parts: Path) -> SimpleNet:
    return SimpleNet(**SMALL).fit({look: good(parts, look) for look in LOOKS})


def test_each_has_a_threshold_from_its_own_images(both: SimpleNet, parts: Path) -> None:
    assert both.categories == LOOKS
    images = [one.category for one in both.references]
    assert [images[number] for number in both.held_back_] == ["fabric"] * 3 + ["part"] * 3
    limits = {}
    for look in LOOKS:
        one = both.for_category(look)
        held = [n for n in one.held_back_ if images[n] == look]
        scores = [one.predict(one.references[n].file)[0].score for n in held]
        np.testing.assert_allclose(one.calibration.images, scores, rtol=1e-5)
        assert one.threshold is not None
        limits[look] = one.threshold.value
        assert limits[look] == pytest.approx(max(scores), rel=1e-5)
        [found] = one.rescored(aggregate="mean").predict(good(parts, look)[0])
        assert found.threshold is not None
        assert found.threshold != limits[look]
    assert limits["fabric"] != limits["part"]


def test_nothing_is_judged_by_a_mixture(both: SimpleNet, parts: Path) -> None:
    image = good(parts, "part")[0]
    with pytest.raises(OptionError, match=r"2 categories.*--category NAME.*fabric, part"):
        both.predict(image)
    with pytest.raises(OptionError, match="--category bolt: choose one of fabric, part"):
        both.for_category("bolt")
    with pytest.raises(OptionError, match="keeps the thresholds of its fit"):
        both.for_category("part").calibrate([image])
    one = SimpleNet(**SMALL).fit({"part": good(parts, "part")})
    assert one.predict(image)[0].threshold is not None, "of one category there is no question"
    with pytest.raises(OptionError, match="category part: 1 images"):
        SimpleNet(**SMALL).fit({"part": [image], "fabric": good(parts, "fabric")})


def test_files_keep_them(both: SimpleNet, parts: Path, tmp_path: Path) -> None:
    both.save(tmp_path / "both.offn")
    again = load(tmp_path / "both.offn")
    image = good(parts, "fabric")[0]
    [before], [after] = (one.for_category("fabric").predict(image) for one in (both, again))
    assert (before.score, before.threshold) == (after.score, after.threshold)
    header = read_header(tmp_path / "both.offn")
    header["calibration"]["held-out"]["numbers"].pop()
    with pytest.raises(ModelFileError, match="other references than it says"):
        SimpleNet(**SMALL).restore(header, both.arrays())


@pytest.mark.slow
def test_command_line(parts: Path, tmp_path: Path) -> None:
    model, small = tmp_path / "both.offn", ["--steps", 2, "--hidden", 8, "--resolution", 64]
    options = ["--method", "simplenet", "--backbone", "builtin", *small, "-o", model]
    told = passed(offnominal("fit", parts, "--categories", *options))
    assert [look for look in LOOKS if f"{look} " in told and "6 images; " in told] == [*LOOKS]
    facts = json.loads(offnominal("info", model, "--json").stdout)
    limits = {name: one["threshold"]["value"] for name, one in facts["categories"].items()}
    image = parts / "part/test/good"
    refused = offnominal("predict", model, image)
    assert refused.returncode == 2
    assert "fabric, part" in refused.stderr
    done = offnominal("predict", model, image, "--category", "part", "-o", "-")
    assert json.loads(done.stdout.splitlines()[0])["threshold"] == pytest.approx(limits["part"])
    evaluated = json.loads(offnominal("evaluate", model, parts, "--json").stdout)
    assert [one["category"] for one in evaluated] == list(LOOKS)
    done = offnominal("fit", parts, "--categories", "-o", tmp_path / "other.offn")
    assert "not with anomalydino" in done.stderr


@pytest.mark.slow
def test_folders_give_their_names(parts: Path, tmp_path: Path) -> None:
    for look in LOOKS:
        shutil.copytree(parts / look / "train" / "good", tmp_path / f"{look}s" / "good")
    folders, model = [tmp_path / "fabrics/good", tmp_path / "parts/good"], tmp_path / "model.offn"
    options = ["--method", "simplenet", "--backbone", "builtin", "--steps", 1, "--hidden", 8]
    options += ["--resolution", 64, "-o", model, "--shots", 4]
    passed(offnominal("fit", *folders, "--categories", *options))
    assert load(model).categories == ("fabrics", "parts")
    told = passed(offnominal("fit", *folders, *options, "--overwrite"))
    assert "--categories" in told
    assert load(model).categories == ()
    twice = offnominal("fit", folders[0], folders[0], "--categories", *options)
    assert "two folders would be the category fabrics" in twice.stderr


def test_other_methods_have_one(fabric_model: Path) -> None:
    detector = load(fabric_model)
    assert detector.categories == ()
    with pytest.raises(OptionError, match="the model has no categories; leave it out"):
        detector.for_category("part")


def test_a_category_of_copies_is_refused(parts: Path) -> None:
    images = [read_image(path) for path in good(parts, "part")]
    with pytest.raises(OptionError, match="category twin: 0 of its images"):
        SimpleNet(**SMALL).fit({"part": good(parts, "part"), "twin": images})
    with pytest.raises(OptionError, match="--hold-back 0: of several categories"):
        SimpleNet(**SMALL, hold_back=0.0).fit({"part": images})
