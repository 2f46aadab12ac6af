"""What explain, report and demo write: never over what is the user's, and whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from offnominal import AnomalyDINO
from offnominal.cli import app
from offnominal.demo import run_demo
from offnominal.errors import DatasetError, OffnominalError, OptionError, WeightsError
from offnominal.paths import is_own
from offnominal.text import printable

SMALL: dict[str, Any] = {"n_train": 3, "n_good": 1, "n_per_defect": 1, "looks": ("fabric",)}


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words], standalone_mode=False)
    if isinstance(done.exception, OffnominalError):
        return 2, "", str(done.exception)
    assert done.exception is None, done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its references and a part, and the working folder as well."""
    rng = np.random.default_rng(0)
    (tmp_path / "good").mkdir()
    files = [tmp_path / "good" / f"{number}.png" for number in range(2)]
    for file in (*files, tmp_path / "bad.png"):
        cv2.imwrite(str(file), rng.integers(90, 110, (64, 64, 3)).astype(np.uint8))
    AnomalyDINO(backbone="builtin", rotations="none").fit(files).save(tmp_path / "part.offn")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_explain_never_writes_over_a_picture(place: Path) -> None:
    (place / "link.png").symlink_to("bad.png")
    os.link("bad.png", "hard.png")
    os.mkfifo("fifo.png")
    (place / "folder.png").mkdir()
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    for target in (
        *("bad.png", "good/0.png", "good/../bad.png", "link.png", "hard.png", "fifo.png"),
        *("folder.png", "good", "/dev/null", "part.offn", "new.jpg", "absent/new.png"),
    ):
        code, _, told = run("explain", "part.offn", "bad.png", "-o", target)
        assert (code, target in told) == (2, True), (target, told)
    (place / "dangling.png").symlink_to("elsewhere.png")
    assert run("explain", "part.offn", "bad.png", "-o", "dangling.png")[0] == 0
    assert not (place / "elsewhere.png").exists(), "a link is replaced, not written through"
    for _ in range(2):
        assert run("explain", "part.offn", "bad.png")[0] == 0
    assert is_own("bad.explained.png")
    code, _, told = run("explain", "part.offn", "bad.explained.png", "-o", "again.png")
    assert (code, "drawn by Offnominal" in told) == (2, True)
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.slow
def test_explain_takes_any_name(place: Path) -> None:
    for raw in (b"a\x1b[31m\nb.png", b"\xff.png", "\u202e\u2028.png".encode(), b"$<b>.png"):
        name = os.fsdecode(raw)
        (place / "bad.png").rename(place / name)
        code, stdout, stderr = run("explain", "part.offn", name)
        assert code == 0, stderr
        [line] = stdout.splitlines()
        assert json.loads(line)["image"] == name
        assert stderr == f"picture: {printable(Path(name).stem)}.explained.png\n"
        (place / name).rename(place / "bad.png")


@pytest.mark.slow
def test_a_demonstration_writes_over_its_own_only(tmp_path: Path) -> None:
    for number, name in enumerate(("fabric.offn", "index.html", "parts/mine.png")):
        mine = tmp_path / f"{number}" / name
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        with pytest.raises(OptionError, match=r"is not from an earlier demonstration"):
            run_demo(tmp_path / f"{number}", **SMALL)
        assert mine.read_text() == "mine"
    folder = tmp_path / "demo"
    run_demo(folder, **SMALL)
    drawn = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    mine = folder / "parts" / "fabric" / "train" / "good" / "mine.png"
    mine.symlink_to(tmp_path / "0" / "fabric.offn")
    with pytest.raises(OptionError, match=r"mine.png is not from an earlier demonstration"):
        run_demo(folder, **SMALL)
    mine.unlink()
    # Neither what is missed before anything is drawn, nor what goes wrong while it is drawn.
    with pytest.raises(WeightsError):
        run_demo(folder, **SMALL, backbone=None, weights=str(tmp_path / "absent.pth"))
    with pytest.raises(OptionError, match="--seed -1"):
        run_demo(folder, **SMALL, seed=-1)
    with pytest.raises((OptionError, DatasetError)):
        run_demo(folder, **SMALL | {"n_good": -1})
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == drawn
    with pytest.raises(OptionError, match="cannot be made"):
        run_demo(tmp_path / "0" / "fabric.offn", **SMALL)
