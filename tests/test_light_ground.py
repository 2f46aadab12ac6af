"""The ground where OpenCV, SciPy and torch are not installed: it works, and to the same values."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from offnominal.errors import MissingExtraError
from offnominal.extras import missing, needs
from tests.light_work import work

REFUSED = """
import importlib.abc, json, sys
from pathlib import Path

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"cv2", "scipy", "torch", "timm", "torchvision"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
"""


def script(
    code: str, *words: object, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Python without the packages that only `offnominal[fit]` brings."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", REFUSED + code, *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        timeout=120,
        cwd=cwd,
    )


@pytest.mark.slow
def test_all_of_it_works_without_opencv_scipy_and_torch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.random((90, 130, 3), np.float32), (0, 0), 3) * 60000
    cv2.imwrite(str(tmp_path / "deep.png"), smooth.astype(np.uint16))
    cv2.imwrite(str(tmp_path / "part.png"), (smooth / 256).astype(np.uint8))
    code = """
from tests.light_work import work
print(json.dumps(work(Path(sys.argv[1]))))
"""
    done = script(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(work(tmp_path)))


@pytest.mark.slow
def test_a_missing_package_is_named_in_a_line_with_its_remedy(tmp_path: Path) -> None:
    code = """
from typer.testing import CliRunner
from offnominal.cli import app
for words, code, told in [
    (["fit", "x", "-o", "x.offn"], 2, "needs PyTorch"),
    (["fit", "x", "-o", "x.offn", "--method", "padim"], 2, "the method padim needs PyTorch"),
    (["synthesize", "x", "-o", "made", "--kind", "nsa"], 2, "`offnominal synthesize` needs OpenCV"),
    (["doctor"], 0, "exported models only"),
    (["methods"], 0, "patchcore"),
]:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, (words, done.output, done.exc_info)
    if code:
        told += ": pip install 'offnominal[fit]'"
    assert told in done.output and "Traceback" not in done.output, (words, done.output)
"""
    (tmp_path / "x").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "x" / "good.png")
    done = script(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_is_there_is_imported_and_what_is_not_is_told() -> None:
    assert needs("json", "fit", "a test") is json
    with pytest.raises(MissingExtraError, match=r"^a test needs nowhere: pip install 'offnom.*fit"):
        needs("nowhere.to.be.found", "fit", "a test")
    told = missing(ModuleNotFoundError(name="scipy.special"), "this")
    assert str(told) == "this needs SciPy: pip install 'offnominal[fit]'"
    assert missing(ModuleNotFoundError(name="offnominal.absent"), "this") is None
