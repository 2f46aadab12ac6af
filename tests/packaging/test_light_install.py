"""The wheel without extras, in an environment of its own: exported models, and no torch."""

import csv
import json
import os
import shutil
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import ENVIRONMENT, offnominal, passed
from tests.docs.reading import ROOT
from tests.seeded import save_dinov2_vits14

import offnominal as package

pytestmark = pytest.mark.slow

PACKAGES, MEGABYTES, MEMORY = 25, 250, 350
BANKS, OTHER = ("anomalydino", "patchcore"), "padim"
# A fresh process starts what is measured: what started it before would be counted too.
MEASURE = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
print(used.ru_maxrss // 1024, used.ru_utime + used.ru_stime)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Light:
    """An environment into which the wheel was installed."""

    python: Path
    folder: Path

    def environment(self) -> dict[str, str]:
        """Nothing of what the tests run with."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OFFNOMINAL_"))}
        caches = {"HOME": str(self.folder), "OFFNOMINAL_CACHE": str(self.folder / "cache")}
        return own | ENVIRONMENT | caches

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """A command of the environment, from a shell."""
        program = self.python.with_name("offnominal")
        return subprocess.run(
            [program, *map(str, words)], cwd=self.folder, env=self.environment(),
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def well(self, *words: object) -> str:
        """What a command printed that must have gone well."""
        done = self.run(*words)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout + done.stderr

    def code(self, text: str, *words: object) -> subprocess.CompletedProcess[str]:
        """A program in Python."""
        return subprocess.run(
            [self.python, "-c", text, *map(str, words)], cwd=self.folder, env=self.environment(),
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def scores(self, model: str, images: Path, target: str) -> dict[str, float]:
        """Scores by file name, as the table of results has them."""
        self.well("predict", model, images, "-o", target)
        assert (self.folder / target / "index.html").is_file()
        return scores_in(self.folder / target)


def scores_in(results: Path) -> dict[str, float]:
    with (results / "results.csv").open() as file:
        return {Path(row["image"]).name: float(row["score"]) for row in csv.DictReader(file)}


def pip(*words: object) -> None:
    quiet = ("--disable-pip-version-check", "--quiet")
    subprocess.run([*map(str, words[:1]), "-m", "pip", *quiet, *map(str, words[1:])], check=True)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Light:
    """The wheel and what it needs, from the package index."""
    root = tmp_path_factory.mktemp("light")
    own = root / "own"
    venv.create(own, with_pip=True)
    python = own / ("Scripts" if os.name == "nt" else "bin") / "python"
    constraints = ("--constraint", ROOT / "constraints.txt")
    pip(python, "wheel", "--no-deps", *constraints, "--wheel-dir", root / "wheels", ROOT)
    (wheel,) = (root / "wheels").glob("offnominal-*.whl")
    pip(python, "install", *constraints, wheel)
    (root / "work").mkdir()
    return Light(python, root / "work")


@pytest.fixture(scope="module")
def images(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good ones and two with defects, in one folder."""
    new = tmp_path_factory.mktemp("images")
    of_kind = [sorted(kind.iterdir()) for kind in (parts / "fabric" / "test").iterdir()]
    for path in [path for kind in of_kind for path in kind[: 2 if "good" in str(kind[0]) else 1]]:
        shutil.copyfile(path, new / f"{path.parent.name}-{path.name}")
    return new


@pytest.fixture(scope="module")
def models(light: Light, parts: Path, images: Path) -> dict[str, dict[str, float]]:
    """Fitted and exported here, copied there; what each detector says of the images here."""
    good = parts / "fabric" / "train" / "good"
    own = light.folder.parent / "fitted"
    own.mkdir()
    dino = ["--backbone", "dinov2_vits14", "--weights", save_dinov2_vits14(own)]
    options = {
        "anomalydino": [*dino, "--rotations", "none"],
        "patchcore": ["--backbone", "efficientnet_lite2"],
        OTHER: ["--backbone", "efficientnet_lite0", "--resolution", 128],
    }
    found = {}
    for method, given in options.items():
        model = own / f"{method}.offn"
        line = ["fit", good, "-o", model, "--method", method, "--false-reject", 0.2]
        passed(offnominal(*line, "--no-synthetic", "--when", "none", *given))
        target = light.folder / f"{method}.offx"
        passed(offnominal("export", model, "-o", target, "--check", images))
        detector = package.load(model, device="cpu", engine="torch")
        found[method] = {Path(one.source).name: one.score for one in detector.predict(images)}
    return found


def alike(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert found.keys() == wanted.keys()
    assert wanted
    np.testing.assert_allclose([found[name] for name in wanted], [*wanted.values()], rtol=1e-4)


def test_it_is_small_and_has_no_torch(light: Light) -> None:
    listed = subprocess.run(
        [light.python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = {one["name"].lower() for one in json.loads(listed.stdout)} - {"pip", "setuptools"}
    assert "offnominal" in names
    assert len(names) < PACKAGES, sorted(names)
    done = light.code("import sysconfig; print(sysconfig.get_path('purelib'))")
    place = Path(done.stdout.strip())
    files = [one for one in place.rglob("*") if one.is_file() and not one.is_symlink()]
    brought = [one for one in files if one.relative_to(place).parts[0][:3] != "pip"]
    assert sum(one.stat().st_blocks * 512 for one in brought) < MEGABYTES * 1e6
    for module in ("torch", "cv2", "scipy"):
        assert "ModuleNotFoundError" in light.code(f"import {module}").stderr


@pytest.mark.parametrize("method", [*BANKS, OTHER])
def test_it_scores_as_the_fitted_detector(
    light: Light, models: dict[str, dict[str, float]], images: Path, method: str
) -> None:
    alike(light.scores(f"{method}.offx", images, f"{method}-results"), models[method])
    assert method in light.well("info", f"{method}.offx")


@pytest.mark.parametrize("method", BANKS)
def test_a_bank_goes_on_learning_there(
    light: Light, models: dict[str, dict[str, float]], images: Path, method: str
) -> None:
    new = sorted(images.glob("good-*"))
    model, wanted = light.folder / f"{method}.offx", models[method]
    copy = light.folder / f"{method}-grown.offx"
    copy.write_bytes(model.read_bytes())
    light.well("explain", copy, new[0], "-o", f"{method}.png")
    assert (light.folder / f"{method}.png").stat().st_size > 1000
    light.well("add", copy, new[0])
    fitted = package.load(light.folder.parent / "fitted" / f"{method}.offn", engine="torch")
    fitted.add(str(new[0]))
    grown = {Path(one.source).name: one.score for one in fitted.predict(images)}
    assert grown != wanted
    alike(light.scores(copy.name, images, f"{method}-grown"), grown)
    assert "add" in light.well("history", copy)
    light.well("undo", copy)
    alike(light.scores(copy.name, images, f"{method}-undone"), wanted)
    before = light.well("info", copy)
    light.well("calibrate", copy, *new, "--false-reject", 0.4)
    assert light.well("info", copy) != before


def test_a_first_image_takes_little(light: Light, models: object, images: Path) -> None:
    image = next(images.glob("good-*"))
    program = light.python.with_name("offnominal")
    for method in (*BANKS, OTHER):
        done = light.code(MEASURE, program, "predict", f"{method}.offx", image, "-o", "-")
        assert done.returncode == 0, done.stderr
        memory, _ = done.stdout.splitlines()[-1].split()
        assert int(memory) < MEMORY, (method, memory)


MISSING = [
    (["fit", "GOOD", "-o", "x.offn"], "fit"),
    (["train", "anomalyclip", "--data", "DATA", "-o", "x.safetensors"], "fit"),
    (["predict", "padim.offn", "GOOD"], "fit"),
    (["demo", "-o", "demo"], "fit"),
    (["synthesize", "GOOD", "-o", "made", "--kind", "nsa"], "fit"),
    (["backbones", "pull", "dinov2_vits14"], "fit"),
    (["benchmark", "--data", "DATA", "--method", "padim", "-o", "runs"], "fit"),
    (["export", "padim.offn"], "fit"),
]


@pytest.mark.parametrize(("words", "extra"), MISSING)
def test_what_is_missing_is_named(
    light: Light, models: object, parts: Path, words: list[str], extra: str
) -> None:
    plain = light.folder / "padim.offn"
    if not plain.exists():
        plain.write_bytes((light.folder.parent / "fitted" / "padim.offn").read_bytes())
    places = {"GOOD": parts / "fabric" / "train" / "good", "DATA": parts}
    done = light.run(*(places.get(word, word) for word in words))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"pip install 'offnominal[{extra}]'" in done.stderr.splitlines()[-1]


def test_doctor_says_what_each_extra_would_bring(light: Light) -> None:
    told = light.well("doctor")
    for extra in ("fit", "openvino", "benchmark", "chat"):
        assert f"pip install 'offnominal[{extra}]'" in told
    assert "onnxruntime" in told
