"""What is doubtful in a data set is said where its figures are printed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import offnominal, passed, process
from tests.datasets.pictures import image


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Categories with inverted masks, without masks, and without defects; and a file of others."""
    root = tmp_path_factory.mktemp("doubtful") / "set"
    for category in ("inverted", "bare", "spotless"):
        names = [f"{category}/{place}/0.png" for place in ("train/good", "test/good", "test/dent")]
        image(root, *names[: 2 if category == "spotless" else 3], size=(48, 48))
    mark = np.full((48, 48), 255, np.uint8)
    mark[8:16, 8:16] = 0
    (root / "inverted/ground_truth/dent").mkdir(parents=True)
    Image.fromarray(mark).save(root / "inverted/ground_truth/dent/0_mask.png")
    (root / "bare/test/dent/1.heic").write_bytes(b"x")
    return root


SAID = (
    "1 file passed over: 1 .heic",
    "inverted: masks that mark more than half of their image: 1, such as inverted/ground_truth/",
    "bare: no test image has a mask: there are no figures of pixels",
    "spotless: no defective test image has a score: figures of images and of pixels are undefined",
)


def test_evaluate_and_benchmark_say_what_was_left_out(
    doubtful: Path, fabric_model: Path, tmp_path: Path
) -> None:
    evaluated = offnominal("evaluate", fabric_model, doubtful, "--json")
    assert evaluated.stdout, evaluated.stderr
    notes = {result["category"]: result["notes"] for result in json.loads(evaluated.stdout)}
    assert {category: len(own) for category, own in notes.items()} == {
        "bare": 1, "inverted": 1, "spotless": 1,
    }  # fmt: skip
    run = ("benchmark", "--data", doubtful, "-o", tmp_path, "--backbone", "builtin", "--no-cache")
    quick = ("--seeds", 1, "--shots", "1,5", "--rotations", "none", "--resolution", 48)
    compared = passed(offnominal(*run, *quick))
    for said in (passed(evaluated), compared):
        assert [line for line in SAID if line not in said] == []
    assert "shots is 5, but there are 1 good images to learn from" in compared


@pytest.mark.slow
def test_names_are_shown_on_one_line_and_given_back_in_json(tmp_path: Path) -> None:
    home = tmp_path / "set"
    image(home, "train/good/0.png", "test/good/0.png", "test/x\nerror: forged \x1b[31m/0.png")
    try:
        os.rename(home / "test/good/0.png", os.fsencode(home) + b"/test/good/\xe8.png")  # noqa: PTH104
    except OSError:
        pytest.skip("this disk takes UTF-8 only")
    shown = process("datasets", "check", home)
    assert shown.returncode == 0, shown.stderr
    assert "x\\nerror: forged \\x1b[31m 1" in " ".join(shown.stdout.split())
    given = offnominal("datasets", "check", home, "--json")
    assert list(json.loads(given.stdout)["categories"][0]["test_defective"]) == [
        "x\nerror: forged \x1b[31m"
    ]
