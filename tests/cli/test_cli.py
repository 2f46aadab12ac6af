"""The command line as a user runs it: real files, and real processes where it matters."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import MAIN, offnominal, passed, process

import offnominal as package
from offnominal.captions import layout
from offnominal.cli.option import method_options
from offnominal.detectors.distribution.padim import PaDiM


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_start_up_imports_nothing_heavy() -> None:
    """What makes the start fast: counted, not timed."""
    heavy = ("torch", "timm", "numpy", "cv2", "scipy", "sklearn", "PIL", "huggingface_hub")
    for code, most in [
        ("import offnominal", 80),
        ("from offnominal.cli import app; from offnominal.detectors.registry import METHODS", 500),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; import sys; print(' '.join(sys.modules))"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        modules = done.stdout.split()
        assert not set(heavy) & set(modules), set(heavy) & set(modules)
        assert len(modules) < most


@pytest.mark.slow
def test_help_and_methods_stay_light() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom offnominal.cli import app\n"
        "for words in ('--help', 'methods', 'train --help', 'datasets check --help'):\n"
        "    told = CliRunner().invoke(app, words.split())\n"
        "    assert told.exit_code == 0 and told.stdout, told.output\n"
        "assert not {'torch', 'numpy', 'cv2', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fit_then_predict_into_a_folder(parts: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "part.offn", tmp_path / "out"
    fitted = offnominal(
        "fit", parts / "part/train/good", "-o", model, "--backbone", "builtin",
        "--rotations", "none", "--shots", 4, "--seed", 1, "--false-reject", 0.2,
    )  # fmt: skip
    assert fitted.returncode == 0, fitted.stderr
    assert fitted.stdout == ""
    assert "4 good images" in fitted.stderr
    assert "an object stands clear of its background" in fitted.stderr
    assert "up to 20 % of good parts may be rejected" in fitted.stderr
    with Image.open(model.with_suffix(".mask.png")) as picture:
        assert picture.width > 3 * 400

    done = offnominal(
        "predict", model, parts / "part/test", "-o", out, "--save", "overlay,map,mask,json,csv"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    images = sorted((parts / "part/test").rglob("*.png"))
    rows = rows_of(out)
    assert [row["image"] for row in rows] == [str(path) for path in images]
    first = rows[0]
    assert first["is_anomalous"] == (first["score"] > first["threshold"])
    heat = cv2.imread(str(out / first["map"]), cv2.IMREAD_UNCHANGED)
    assert (heat.shape, heat.dtype) == ((320, 400), np.float32)
    assert first["regions"] == [] or heat.max() == pytest.approx(first["regions"][0]["peak"])
    with Image.open(out / first["overlay"]) as overlay:
        assert overlay.size == layout(320, 400).size
    with Image.open(out / first["mask"]) as mask:
        assert mask.mode == "L"
        assert (np.asarray(mask) > 0).sum() == sum(r["area"] for r in first["regions"])
    with (out / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["score"]) for row in table] == [row["score"] for row in rows]
    assert [int(row["regions"]) for row in table] == [len(row["regions"]) for row in rows]


@pytest.mark.slow
def test_json_lines_on_a_pipe_and_nothing_else(fabric_model: Path, parts: Path) -> None:
    good = parts / "fabric/test/good"
    piped = offnominal("predict", fabric_model, good)
    dashed = offnominal("predict", fabric_model, good, "-o", "-")
    named = offnominal(
        "predict", fabric_model, "-", stdin="".join(f"{p}\n" for p in sorted(good.iterdir()))
    )
    assert piped.stdout == dashed.stdout == named.stdout
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert len(rows) == 3
    assert "3 images" in piped.stderr


def test_globs_are_expanded_by_the_program_too(fabric_model: Path, parts: Path) -> None:
    done = offnominal("predict", fabric_model, f"{parts}/fabric/test/*/00*.png", "-o", "-")
    assert len(done.stdout.splitlines()) == len(list((parts / "fabric/test").rglob("*.png")))


@pytest.mark.slow
def test_unreadable_images_are_listed_at_the_end(
    fabric_model: Path, parts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    whole = sorted((parts / "fabric/test/good").iterdir())
    (folder / "a.png").write_bytes(whole[0].read_bytes())
    (folder / "b.png").write_bytes(whole[1].read_bytes()[:2000])
    (folder / "c.png").touch()
    (folder / "d.png").write_bytes(whole[2].read_bytes())
    done = offnominal("predict", fabric_model, folder, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "2 images could not be used:" in done.stderr
    assert "b.png" in done.stderr
    assert "c.png" in done.stderr
    assert "Traceback" not in done.stderr
    rows = rows_of(tmp_path / "out")
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "c.png", "d.png"]
    assert ["score" in row for row in rows] == [True, False, False, True]

    strict = offnominal("predict", fabric_model, folder, "-o", tmp_path / "strict", "--strict")
    assert strict.returncode == 2
    assert "b.png" in strict.stderr
    # What was computed before is there.
    assert "score" in rows_of(tmp_path / "strict")[0]

    fitted = offnominal(
        "fit", folder, "-o", tmp_path / "m.offn", "--backbone", "builtin", "--rotations", "none"
    )
    assert fitted.returncode == 3
    assert "2 good images" in fitted.stderr
    assert (tmp_path / "m.offn").exists()


@pytest.mark.slow
def test_resume_goes_on_where_it_stopped(fabric_model: Path, parts: Path, tmp_path: Path) -> None:
    out, test = tmp_path / "out", parts / "fabric/test"
    count = len(list(test.rglob("*.png")))
    assert offnominal("predict", fabric_model, test, "-o", out).returncode == 0
    whole = rows_of(out)
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    # As after a stop: the third line is cut short, the rest is missing.
    (out / "results.jsonl").write_text("".join(lines[:2]) + lines[2][:30])

    refused = offnominal("predict", fabric_model, test, "-o", out)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    assert "--overwrite" in refused.stderr
    resumed = offnominal("predict", fabric_model, test, "-o", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{count - 2} images, 2 done before" in resumed.stderr
    assert rows_of(out) == whole
    with (out / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == count

    other = offnominal(
        "calibrate", fabric_model, parts / "fabric/test/good", "-o", tmp_path / "other.offn"
    )
    assert other.returncode == 0, other.stderr
    mixed = offnominal("predict", tmp_path / "other.offn", test, "-o", out, "--resume")
    assert mixed.returncode == 2
    assert "another model" in mixed.stderr
    again = offnominal("predict", fabric_model, test, "-o", out, "--overwrite")
    assert again.returncode == 0
    assert rows_of(out) == whole


@pytest.mark.slow
def test_a_stop_loses_nothing(fabric_model: Path, parts: Path, tmp_path: Path) -> None:
    """SIGTERM ends a run at once, and what was computed is there, whole."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    source = sorted((parts / "fabric/test").rglob("*.png"))
    for index in range(300):
        (folder / f"{index:03}.png").symlink_to(source[index % len(source)])
    process = subprocess.Popen(
        [*MAIN, "predict", str(fabric_model), str(folder), "-o", str(out)],
        stderr=subprocess.DEVNULL,
    )
    results = out / "results.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        results.exists() and results.read_text().count("\n") >= 3
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    done = len(rows_of(out))
    assert 3 <= done < 300
    assert not list(out.rglob(".*"))


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with subprocess.Popen(
        [*MAIN, "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 0


def test_a_defect_of_the_program_is_no_anomaly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("offnominal.cli.options.check_given", fail)
    done = offnominal("add", "m.offn", "x.png")
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr
    assert "a defect of offnominal" in done.stderr


@pytest.mark.slow
def test_the_process_ends_as_the_call_does(fabric_model: Path, parts: Path) -> None:
    for arguments, code in [
        (("predict", fabric_model, parts / "fabric/test/stain", "--fail-on-anomaly"), 1),
        (("--nonsense",), 2),
    ]:
        here, there = offnominal(*arguments), process(*arguments)
        assert here.returncode == there.returncode == code
        assert here.stdout == there.stdout
        if "--nonsense" not in arguments:  # its usage line names the program
            assert here.stderr == there.stderr


@pytest.mark.slow
def test_fail_on_anomaly(fabric_model: Path, parts: Path) -> None:
    stain = parts / "fabric/test/stain"
    assert offnominal("predict", fabric_model, stain, "--fail-on-anomaly").returncode == 1
    assert offnominal("predict", fabric_model, stain).returncode == 0
    train = parts / "fabric/train/good"
    assert offnominal("predict", fabric_model, train, "--fail-on-anomaly").returncode == 0


@pytest.mark.slow
def test_calibrate_reports_the_miss_rate(fabric_model: Path, parts: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.offn"
    done = offnominal(
        "calibrate", fabric_model, parts / "fabric/test/good", parts / "fabric/train/good",
        parts / "fabric/test/stain/000.png", "--defects", parts / "fabric/test/stain",
        "--false-reject", 0.25, "-o", new,
    )  # fmt: skip
    assert done.returncode == 2, "as when the shell takes a pattern apart"
    assert "good and defective images both come from" in done.stderr
    done = offnominal(
        "calibrate", fabric_model, parts / "fabric/test/good", parts / "fabric/train/good",
        "--defects", parts / "fabric/test/stain", "--defects", parts / "fabric/test/hole",
        "--false-reject", 0.25, "-o", new,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "calibrated on 3 good images" in done.stderr
    assert "left out   6 that it knows already" in done.stderr
    assert "up to 25 % of good parts" in done.stderr
    assert "of 2 defective images pass" in done.stderr
    assert new.exists()


@pytest.mark.slow
def test_decisions_from_few_pictures_are_told(parts: Path, tmp_path: Path) -> None:
    good = sorted((parts / "fabric/train/good").iterdir())
    small = ["--backbone", "builtin", "--resolution", 64, "-o", tmp_path / "m.offn"]
    done = offnominal("fit", *good[:4], *small)
    assert "up to 20 % of good parts may be rejected (conformal, 4 good images; 19" in done.stderr
    assert "of 48 synthetic defects (pasted patches: small" in done.stderr
    facts = json.loads(offnominal("info", tmp_path / "m.offn", "--json").stdout)
    assert facts["rotations"] == "none"
    assert sum(cell["made"] for cell in facts["synthetic_defects"]) == 48
    before = (tmp_path / "m.offn").read_bytes()
    done = offnominal("calibrate", tmp_path / "m.offn", good[4], "--false-reject", 0.01)
    assert done.returncode == 2
    assert (
        "nothing was changed: the threshold would be none: 1 good image can neither" in done.stderr
    )
    assert (tmp_path / "m.offn").read_bytes() == before
    done = offnominal("calibrate", tmp_path / "m.offn", good[4], "-o", tmp_path / "n.offn")
    assert "fewer good images than before promise less" in done.stderr
    passed(offnominal("add", tmp_path / "m.offn", good[4]))
    shown = offnominal("info", tmp_path / "m.offn").stdout
    assert "would pass not known of these references" in shown
    assert "rotations  none (" in shown
    done = offnominal("fit", *good[:2], *small, "--no-synthetic", "--false-reject", 0.05)
    assert "2 good images can neither promise nor estimate 0.05" in done.stderr
    assert "synthetic" not in done.stderr


def test_zero_shot_batch(parts: Path, tmp_path: Path) -> None:
    done = offnominal(
        "predict", "--zero-shot-batch", parts / "fabric/test", "--backbone", "builtin",
        "-o", tmp_path, "--save", "map,json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "without a decision" in done.stderr
    rows = rows_of(tmp_path)
    assert len(rows) == len(list((parts / "fabric/test").rglob("*.png")))
    assert all(row["threshold"] is None for row in rows)
    good = [row["score"] for row in rows if "/good/" in row["image"]]
    assert np.mean(good) < np.mean([row["score"] for row in rows])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "GOOD", "-o", "x.offn", "--method", "magic"], "--method magic"),
        (["fit", "GOOD", "-o", "absent/x.offn"], "-o absent/x.offn"),
        (["fit", "nowhere", "-o", "x.offn"], "nowhere: no such file or folder"),
        (["fit", "GOOD", "-o", "x.offn", "--shots", "99"], "--shots 99"),
        (["fit", "GOOD", "-o", "x.offn", "--layers", "one"], "--layers one"),
        (["fit", "GOOD", "-o", "x.offn", "--false-reject", "2"], "--false-reject 2"),
        (["fit", "GOOD", "-o", "x.offn", "--device", "cuda:9"], "--device cuda:9"),
        (["fit", "GOOD", "-o", "x.offn", "--backbone", "resnet19"], "did you mean resnet18"),
        (["fit", "GOOD", "-o", "x.offn", "--method", "anomalydino-batched"], "nothing to fit: it"),
        (["predict", "MODEL"], "at least one image"),
        (["predict", "MODEL", "nowhere.png"], "nowhere.png"),
        (["predict", "MODEL", "GOOD", "--mask", "on"], "--mask is settled in the model file"),
        (["predict", "MODEL", "GOOD", "-o", "out", "--save", "gif"], "--save gif"),
        (["predict", "MODEL", "GOOD", "--resume"], "need a folder"),
        (["predict", "MODEL", "--zero-shot-batch", "GOOD"], "--zero-shot-batch takes a folder"),
        (["predict", "GOOD/000.png", "GOOD"], "not an Offnominal model file"),
    ],
)
def test_wrong_usage_exits_with_two_and_says_why(
    arguments: list[str], message: str, fabric_model: Path, parts: Path, tmp_path: Path
) -> None:
    good = str(parts / "fabric/train/good")
    given = [a.replace("GOOD", good).replace("MODEL", str(fabric_model)) for a in arguments]
    if given[0] == "fit" and "--backbone" not in given:
        given += ["--backbone", "builtin"]
    if "--layers" in given:
        given[given.index("builtin")] = "resnet18"
    done = offnominal(*given, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.offn"))


def test_doctor_says_what_is_here(tmp_path: Path) -> None:
    done = offnominal("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("torch", "timm", "devices", "cpu", "weights", "builtin", "advice"):
        assert word in done.stdout


def test_version() -> None:
    from offnominal import __version__

    assert offnominal("--version").stdout.strip() == f"offnominal {__version__}"


@pytest.mark.slow
def test_demo_draws_runs_and_names_the_page(tmp_path: Path) -> None:
    from offnominal.demo import run_demo
    from offnominal.errors import OptionError

    small = {"n_train": 3, "n_good": 1, "n_per_defect": 1, "looks": ("fabric",)}
    first = run_demo(tmp_path / "a", **small)
    page = first.page.read_text()
    assert first.figures[0]["image_auroc"] > 0.8
    assert (tmp_path / "a" / "fabric.offn").exists()
    # Deterministic, and it draws over its own parts only.
    again = run_demo(tmp_path / "a", **small)
    assert first.figures == again.figures
    assert again.page.read_text() == page
    (tmp_path / "c" / "parts").mkdir(parents=True)
    with pytest.raises(OptionError, match="not from an earlier demonstration"):
        run_demo(tmp_path / "c", **small)


@pytest.mark.slow
def test_any_option_of_a_method_can_be_set(parts: Path, tmp_path: Path) -> None:
    good = parts / "fabric" / "train" / "good"
    model = tmp_path / "part.offn"
    fit = ["fit", good, "-o", model, "--method", "subspacead", "--backbone", "builtin"]
    done = offnominal(*fit, "--rotations", "none", "--set", "variance=0.9", "--set", "seed=3")
    assert done.returncode == 0, done.stderr
    options = package.load(model).options()
    assert (options["variance"], options["seed"]) == (0.9, 3)
    for wrong, word in [
        (["--set", "variance=0.9,0.8"], "give one value"),
        (["--set", "colour=red"], "no option 'colour'"),
        (["--rotations", "none", "--set", "rotations=agnostic"], "give one value"),
    ]:
        done = offnominal(*fit, *wrong)
        assert done.returncode == 2
        assert word in done.stderr


@pytest.mark.slow
def test_a_batch_can_be_judged_by_another_method(parts: Path) -> None:
    folder = parts / "fabric" / "test"
    batch = ["predict", "--zero-shot-batch", folder, "--backbone", "builtin", "-o", "-"]
    plain = offnominal(*batch)
    other = offnominal(*batch, "--method", "subspacead-batched", "--set", "variance=0.9")
    assert other.returncode == 0, other.stderr
    assert len(other.stdout.splitlines()) == len(plain.stdout.splitlines()) > 0
    assert other.stdout != plain.stdout
    refused = offnominal(*batch, "--method", "anomalydino")
    assert refused.returncode == 2
    assert "does not score a batch" in refused.stderr


# -- options from constructors ----------------------------------------------------------------


@pytest.mark.slow
def test_each_method_lists_its_own_options() -> None:
    plain = " ".join(offnominal("fit", "--help").stdout.split())
    assert "--rotations" in plain
    assert "fit --method NAME --help" in plain
    assert "--mask-references" in plain
    assert "--no-synthetic" in plain, "of a switch, the way that is not the default anyway"
    words = ("GOOD_DIR...", "--output", "--backbone", "--tile", "--rotations", "--overwrite")
    order = [plain.index(word) for word in (*words, "--precision")]
    assert order == sorted(order)
    padim = " ".join(offnominal("fit", "--method=padim", "--help").stdout.split())
    for word in ("--reduction", "<random|pca>", "(1024)", "--method-seed", "--false-reject"):
        assert word in padim
    assert "--rotations" not in padim
    batch = offnominal("predict", "--method", "musc", "--help").stdout
    assert "--rscin" in batch
    grid = offnominal("benchmark", "--method", "patchcore", "padim", "--help").stdout
    assert "--coreset" in grid
    assert "--ridge" in grid


@pytest.mark.slow
def test_every_option_of_every_method_can_be_given() -> None:
    """Whatever a constructor takes, the help lists, with words and a default of its own."""
    from offnominal.detectors.registry import METHODS, detector_class

    for method in METHODS:
        found = {option.name: option for option in method_options(method)}
        defaults = detector_class(method).option_defaults()
        assert {name: option.default for name, option in found.items()} == defaults
        silent = {name for name, option in found.items() if not option.help}
        assert silent <= {"aggregate"}, method  # which PatchCore does not describe


def test_options_become_what_the_constructor_takes(parts: Path, tmp_path: Path) -> None:
    layers = next(option for option in method_options("padim") if option.name == "layers")
    assert layers.read("1, -1") == (1, -1)
    model = tmp_path / "m.offn"
    passed(
        offnominal(
            "fit", parts / "fabric/train/good", "-o", model, "--method", "patchcore",
            "--backbone", "builtin", "--coreset", 0.5, "--no-reweight", "--method-seed", 5,
            "--seed", 1, "--shots", 2, "--resolution", 64, "--set", "crop=56",
        )
    )  # fmt: skip
    options = package.load(model).options()
    given = {"coreset": 0.5, "reweight": False, "seed": 5, "crop": 56}
    assert {name: options[name] for name in given} == given
    facts = json.loads(offnominal("info", model, "--json").stdout)
    assert facts["references"] == 2
    assert facts["options"]["coreset"] == 0.5
    told = offnominal("info", model).stdout
    for words in ("patchcore, written by", "coreset=0.5", " MB", "patches"):
        assert words in told
    for wrong, words in [
        (["--method", "padim", "--rotations", "none"], "--rotations: padim has no such option"),
        (["--method", "patchcore", "--corset", "1"], "did you mean --coreset"),
        (["--method", "patchcore", "--distance", "far"], "distance"),
        (["--method", "ensemble", "--settings", "coreset"], "--settings coreset: give JSON"),
    ]:
        done = offnominal("fit", parts / "fabric/train/good", "-o", model, *wrong)
        assert done.returncode == 2
        assert words in done.stderr


def test_a_method_of_another_package_has_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from offnominal.detectors.registry import METHODS, Method

    monkeypatch.setitem(METHODS, "other", Method("other", f"{__name__}:Other", "", "", ""))
    told = " ".join(offnominal("fit", "--method", "other", "--help").stdout.split())
    for words in ("Options of other", "--sharpness", "How sharp [the] eye is", "(3)", "--angles",
                  "--notes", "--backbone"):  # fmt: skip
        assert words in told, told
    assert "--ridge" not in told


class Other(PaDiM):
    """A method of another package.

    Parameters
    ----------
    sharpness : int
        How sharp [the] eye is.
    angles : sequence of float
        Of the light.
    notes : mapping or None
        For the record.
    backbone : str
        Which one.
    """

    def __init__(
        self,
        sharpness: int = 3,
        angles: Sequence[float] = (0.0, 90.0),
        notes: Mapping[str, str] | None = None,
        backbone: str = "builtin",
    ) -> None:
        super().__init__(backbone=backbone)
        self.sharpness, self.angles, self.notes = sharpness, angles, notes
