"""Nothing fails open, nothing is overwritten, nothing is said to be done that is not."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import ENVIRONMENT, MAIN
from tests.cli.conftest import offnominal as run

from offnominal import AnomalyDINO, Ensemble, load, modelfile
from offnominal.cli.options import changing
from offnominal.cli.results import ResultWriter, picture_names
from offnominal.cli.writer import Printer
from offnominal.errors import ImageError, ModelFileError, OptionError
from offnominal.paths import is_own
from offnominal.prediction import Prediction
from offnominal.scoring import Scores


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``two.offn`` without a threshold, and ``part.offn`` with one."""
    folder = tmp_path_factory.mktemp("models")
    good = [picture(folder / f"{n}.png", n) for n in range(9)]
    options = {"backbone": "builtin", "rotations": "none", "mask": "off", "resolution": 48}
    AnomalyDINO(**options, false_reject=0.1).fit(good).save(folder / "part.offn")
    AnomalyDINO(**options, false_reject=0.01).fit(good[:2]).save(folder / "two.offn")
    return folder


def prediction(score: float, threshold: float | None = 1.0) -> Prediction:
    patches = np.full((2, 2), score, np.float32)
    image = np.zeros((16, 16, 3), np.uint8)
    return Prediction("a.png", score, patches, Scores(patches), image, threshold)


@pytest.mark.slow
def test_odd_headers_are_told_of_the_file(models: Path, tmp_path: Path) -> None:
    """Written on purpose: the checksums are right."""
    model = tmp_path / "odd.offn"
    options = {"backbone": "builtin,builtin-aligned", "resolution": 48, "false_reject": 0.2}
    both = Ensemble(**options).fit([models / f"{number}.png" for number in range(4)])
    both.save(model)
    header = modelfile.read_header(model)
    arrays = modelfile.read(model, header)
    member = header["members"][0]
    for odd in [
        {"members": [[], member]},
        {"members": [member | {"options": []}, member]},
        {"members": [member | {"options": "x"}, member]},
        {"members": [member | {"backbone": 1}, member]},
        {"members": [member | {"backbone": {"name": "a**b", "digest": ""}}, member]},
        {"members": [member | {"backbone": {"name": "../[x", "digest": ""}}, member]},
        {"members": {}},
        {"members": [member]},
        {"members": None},
        {"backbone": {"name": "a**b"}},
        {"backbone": [], "options": {"weights": []}},
        {"backbone": "a\0b"},
    ]:
        modelfile.write(model, header | odd, arrays)
        for words in (["predict", model, models / "0.png"], ["info", model],
                      ["info", model, "--json"]):  # fmt: skip
            done = run(*words)
            assert done.returncode in (0, 2), (odd, words, done.stderr)
            assert done.returncode == 0 or f"{model}: " in done.stderr, (odd, words, done.stderr)
        with suppress(ModelFileError):
            load(model, device="cpu")


# -- nothing fails open ---------------------------------------------------------------------------


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_no_pass(score: float) -> None:
    assert prediction(score).is_anomalous is True
    assert prediction(score, None).is_anomalous is None


@pytest.mark.parametrize("broken", ["network", "bank"])
def test_scores_that_are_no_numbers_are_errors(models: Path, broken: str) -> None:
    detector = load(models / "part.offn", device="cpu")
    if broken == "network":
        old = detector.compare
        detector.compare = lambda *a: old(*a)._replace(patches=old(*a).patches * np.nan)
    else:
        detector.bank.loo_distance[:] = np.nan
        with pytest.raises(OptionError, match="not numbers"):
            detector.set_references({0: detector.score_from_bank(0)})
        return
    with pytest.raises(ImageError, match="not a finite number"):
        detector.predict(models / "0.png")
    told: list[ImageError] = []
    assert list(detector.stream([models / "0.png"], told.append)) == []
    assert len(told) == 1


def test_fail_on_anomaly_needs_something_to_decide_by(models: Path) -> None:
    part = models / "0.png"
    done = run("predict", models / "two.offn", part, "--fail-on-anomaly")
    assert done.returncode == 2
    assert "--threshold" in done.stderr
    assert not done.stdout
    for value, code in (("-1", 1), ("1e9", 0), ("nan", 2), ("inf", 2)):
        done = run("predict", models / "two.offn", part, "--fail-on-anomaly", "--threshold", value)
        assert done.returncode == code, value
    row = json.loads(run("predict", models / "part.offn", part, "--threshold", "1e9").stdout)
    assert (row["threshold"], row["is_anomalous"]) == (1e9, False)


def test_another_threshold_is_another_run(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = ["predict", models / "part.offn", models / "0.png", "-o", out]
    assert run(*told, "--threshold", "1").returncode == 0
    done = run(*told, "--resume")
    assert done.returncode == 2
    assert "other options" in done.stderr


@pytest.mark.slow
def test_files_that_were_not_looked_at_are_counted(models: Path, tmp_path: Path) -> None:
    for name in ("b.gif", "c.heic"):
        picture(tmp_path / "in" / "a.png", 99).with_name(name).write_bytes(b"x")
    told = "2 files passed over: 1 .gif, 1 .heic"
    for command in (
        ["predict", models / "part.offn", tmp_path / "in"],
        ["calibrate", models / "part.offn", tmp_path / "in", "-o", tmp_path / "c.offn",
         "--false-reject", "auto"],
        ["add", models / "part.offn", tmp_path / "in", "-o", tmp_path / "d.offn"],
        ["fit", tmp_path / "in", "--backbone", "builtin", "-o", tmp_path / "e.offn"],
    ):  # fmt: skip
        done = run(*command)
        assert done.returncode == 0, done.stderr
        assert told in done.stderr


# -- nothing is overwritten -----------------------------------------------------------------------


def test_names_of_pictures_are_unique_and_stay_inside(tmp_path: Path) -> None:
    whole = [tmp_path / name for name in ("a.jpg", "a.png", "a.jpg.bmp", "A.webp", "b/../c/x.png",
                                          f"{'y' * 251}.png", f"{'y' * 250}1.jpg")]  # fmt: skip
    names = picture_names(whole)
    assert len({name.lower() for name in names.values()}) == len(whole)
    assert not any(".." in Path(name).parts or Path(name).is_absolute() for name in names.values())
    assert all(len(os.fsencode(Path(name).name)) <= 250 for name in names.values())
    assert picture_names([tmp_path / "x.png"], {"x"})[tmp_path / "x.png"] != "x"


def test_upward_paths_stay_in_the_folder(models: Path, tmp_path: Path) -> None:
    one, two = picture(tmp_path / "photos" / "a.png", 1), picture(tmp_path / "new" / "b.png", 2)
    before = one.read_bytes()
    upward = tmp_path / "new" / ".." / "photos" / "a.png"
    done = run("predict", models / "part.offn", upward, two, "-o", tmp_path / "out" / "x")
    assert done.returncode == 0, done.stderr
    assert one.read_bytes() == before
    assert len(list((tmp_path / "out" / "x" / "overlays").rglob("*.png"))) == 2


@pytest.mark.parametrize("what", ["a picture of the user's", "a link that leads out"])
def test_foreign_files_are_not_replaced(models: Path, tmp_path: Path, what: str) -> None:
    mine, out = picture(tmp_path / "mine" / "0.png", 3), tmp_path / "out"
    before = mine.read_bytes()
    out.mkdir()
    if what == "a link that leads out":
        (out / "overlays").symlink_to(mine.parent)
    else:
        shutil.copytree(mine.parent, out / "overlays")
    done = run("predict", models / "part.offn", models / "0.png", "-o", out)
    assert done.returncode == 2
    assert "0.png: not drawn by" in done.stderr or "leads out of" in done.stderr
    assert mine.read_bytes() == before
    assert next(iter((out / "overlays").iterdir())).read_bytes() == before


@pytest.mark.parametrize("name", ["run.json", "results.csv", "results.jsonl"])
def test_results_of_something_else_stay(models: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"learning_rate": 1}\n')
    done = run("predict", models / "part.offn", models / "0.png", "-o", tmp_path)
    assert done.returncode == 2
    assert name in done.stderr
    assert (tmp_path / name).read_text() == '{"learning_rate": 1}\n'


def test_a_model_takes_the_place_of_models_only(models: Path, tmp_path: Path) -> None:
    mine = picture(tmp_path / "photo.png").rename(tmp_path / "photo")
    before = mine.read_bytes()
    part = models / "part.offn"
    for command in (
        ["fit", models / "0.png", "--backbone", "builtin", "-o", mine],
        ["add", part, models / "0.png", "-o", mine],
        ["forget", part, models / "0.png", "-o", mine],
        ["undo", part, "-o", mine],
        ["calibrate", part, models / "0.png", "-o", mine],
    ):
        done = run(*command)
        assert done.returncode == 2, command
        assert "no model of Offnominal" in done.stderr
    assert mine.read_bytes() == before
    done = run("fit", models / "0.png", "--backbone", "builtin", "-o", tmp_path)
    assert done.returncode == 2
    assert "is a folder" in done.stderr


@pytest.mark.slow
def test_a_fit_beside_its_images_learns_no_picture_of_its_own(tmp_path: Path) -> None:
    for n in range(4):
        picture(tmp_path / "good" / f"{n}.png", n)
    told = ["fit", tmp_path / "good", "--backbone", "builtin", "--rotations", "none",
            "-o", tmp_path / "good" / "part.offn"]  # fmt: skip
    assert run(*told).returncode == 0
    assert is_own(tmp_path / "good" / "part.mask.png")
    first = (tmp_path / "good" / "part.offn").read_bytes()
    done = run(*told)
    assert "2 files passed over: 2 written by Offnominal" in done.stderr
    assert (tmp_path / "good" / "part.offn").read_bytes() == first


def test_a_second_run_into_a_folder_is_refused(models: Path, tmp_path: Path) -> None:
    first = ResultWriter(tmp_path / "out", frozenset({"json"}), [], {"model": "x"})
    done = run("predict", models / "part.offn", models / "0.png", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "another run" in done.stderr
    first.close()
    again = ["predict", models / "part.offn", models / "0.png", "-o", tmp_path / "out"]
    assert run(*again, "--overwrite").returncode == 0


def test_a_fresh_start_takes_old_pictures_away(models: Path, tmp_path: Path) -> None:
    told = ["-o", tmp_path / "out"]
    assert (
        run("predict", models / "part.offn", models / "0.png", models / "1.png", *told).returncode
        == 0
    )
    mine = picture(tmp_path / "out" / "overlays" / "mine.png")
    assert (
        run("predict", models / "part.offn", models / "2.png", *told, "--overwrite").returncode == 0
    )
    assert {one.name for one in mine.parent.iterdir()} == {"2.png", "mine.png"}


# -- nothing is said to be done that is not -------------------------------------------------------


def test_results_taken_away_during_the_run_are_an_error(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ResultWriter.write

    def gone(self: ResultWriter, prediction: Prediction) -> None:
        write(self, prediction)
        if self.rows == 3:
            shutil.rmtree(self.folder)

    monkeypatch.setattr(ResultWriter, "write", gone)
    images = [models / f"{n}.png" for n in range(9)]
    done = run("predict", models / "part.offn", *images, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "was taken away" in done.stderr
    assert "results in" not in done.stderr


@pytest.mark.slow
def test_a_full_disk_is_told_and_keeps_what_is_there(models: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    out = tmp_path / "out"
    code = (
        "import resource, signal, sys; from offnominal.cli import app\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import offnominal, offnominal.detectors.registry as r; d = r.load(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
        "app(['predict', *sys.argv[1:], '--save', 'json,csv'])\n"
    )
    images = [str(models / f"{n}.png") for n in range(9)]
    told = [sys.executable, "-c", code, str(models / "part.offn"), *images, "-o", str(out)]
    done = subprocess.run(told, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "results.jsonl: cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    kept = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()[:-1]]
    assert kept
    assert {one.name for one in out.iterdir()} <= {
        "results.jsonl",
        "results.csv",
        "run.json",
        "run.lock",
    }


@pytest.mark.parametrize("where", ["overlays is a file", "a file for -o", "a system's folder"])
def test_where_nothing_can_be_written(models: Path, tmp_path: Path, where: str) -> None:
    out = Path("/proc/out") if where == "a system's folder" else tmp_path / "out"
    if where == "a file for -o":
        out.write_text("mine")
    elif where == "overlays is a file":
        out.mkdir()
        (out / "overlays").write_text("mine")
    done = run("predict", models / "part.offn", models / "0.png", "-o", out)
    assert done.returncode == 2
    assert "out" in done.stderr
    assert "Traceback" not in done.stderr


WILD = ["line\nok     0.1       fake.png", "caf\udce9", "sep\u2028arator", "form\x0cfeed",
        "\x1b[2Jwipe", "x" * 250, "=cmd()"]  # fmt: skip


@pytest.mark.slow
def test_names_of_all_kinds(models: Path, tmp_path: Path) -> None:
    for n, name in enumerate(WILD):
        shutil.copy(models / f"{n}.png", tmp_path / "in.png")
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in.png").rename(tmp_path / "in" / f"{name}.png")
    broken = tmp_path / "in" / "bro\nken\x1b[31m.png"
    broken.write_bytes(b"")
    told = ["predict", models / "part.offn", tmp_path / "in"]
    done = run(*told, "-o", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    assert f"{len(WILD)} images" in done.stderr
    assert r"bro\nken\x1b[31m.png: is empty" in done.stderr
    assert "\x1b" not in done.stderr
    lines = (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    told_of = {Path(row["image"]).stem for row in rows if "score" in row}
    assert told_of == {name.replace("\udce9", r"\xe9") for name in WILD}
    assert all((tmp_path / "out" / row["overlay"]).is_file() for row in rows if "score" in row)
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8", newline="") as file:
        cells = [row["image"] for row in csv.DictReader(file)]
    assert len(cells) == len(WILD) + 1
    assert all(one.isprintable() for one in cells)
    again = run(*told, "-o", tmp_path / "out", "--resume")
    assert f"0 images, {len(WILD)} done before" in again.stderr
    narrow = os.environ | ENVIRONMENT | {"PYTHONIOENCODING": "ascii:strict"}
    printed = subprocess.run([*MAIN, *map(str, told)], capture_output=True, text=True, env=narrow,
                             check=False)  # fmt: skip
    assert printed.returncode == 3
    assert len(printed.stdout.splitlines()) == len(WILD)
    stems = {Path(json.loads(line)["image"]).stem for line in printed.stdout.splitlines()}
    assert stems == told_of


@pytest.mark.slow
def test_names_on_stdin_are_whole_lines(models: Path, tmp_path: Path) -> None:
    name = tmp_path / "form\x0cfeed \u2028 caf\udce9.png"
    shutil.copy(models / "0.png", name)
    told = [sys.executable, "-m", "offnominal", "predict", str(models / "part.offn"), "-"]
    done = subprocess.run(told, input=os.fsencode(name) + b"\r\n\n", capture_output=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert bytes.fromhex(json.loads(done.stdout)["image_bytes"]) == os.fsencode(name)
    assert run("predict", models / "part.offn", "-", stdin="\n\n").returncode == 2


def test_reasons_are_told_where_no_image_can_be_used(models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    for command in (
        ["fit", tmp_path, "--backbone", "builtin", "-o", tmp_path / "x.offn"],
        ["calibrate", models / "part.offn", tmp_path, "-o", tmp_path / "x.offn"],
        ["predict", "--zero-shot-batch", tmp_path, "--backbone", "builtin"],
        ["add", models / "part.offn", tmp_path, "-o", tmp_path / "x.offn"],
    ):
        done = run(*command)
        assert done.returncode in (2, 3), command
        assert "a.png: is not a JPEG" in done.stderr, command


@pytest.mark.slow
def test_damaged_lines_of_an_earlier_run_are_done_again(models: Path, tmp_path: Path) -> None:
    told = ["predict", models / "part.offn", models / "0.png", models / "1.png", "-o", tmp_path]
    assert run(*told).returncode == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    for damaged in ("[1]", "null", '{"score": 1}', '{"image": 3, "score": "low"}', "{" * 5000,
                    json.dumps(row | {"score": "low"}), json.dumps(row | {"is_anomalous": 0.5}),
                    json.dumps(row | {"score": float("nan")})):  # fmt: skip
        (tmp_path / "results.jsonl").write_text(f"{damaged}\n{lines[1]}\n")
        done = run(*told, "--resume")
        assert done.returncode == 0, done.stderr
        assert "1 image, 1 done before" in done.stderr
        found = [json.loads(line) for line in (tmp_path / "results.jsonl").open()]
        assert {one["image"] for one in found} == {str(models / "0.png"), str(models / "1.png")}


@pytest.mark.slow
def test_a_stop_by_the_system_says_what_is_kept(models: Path, tmp_path: Path) -> None:
    many = [picture(tmp_path / "in" / f"{n:03}.png", n) for n in range(200)]
    told = [sys.executable, "-m", "offnominal"]
    out = tmp_path / "out"
    started = subprocess.Popen(
        [*told, "predict", str(models / "part.offn"), str(many[0].parent), "-o", str(out)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = out / "results.jsonl"
    until = time.monotonic() + 60
    while not (lines.exists() and lines.stat().st_size) and time.monotonic() < until:
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 143, err
    assert "stopped after" in err
    assert "--resume goes on" in err
    assert (out / "results.csv").exists()


def test_a_model_that_is_written_into_during_a_run_stops_it(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "part.offn"
    shutil.copy(models / "part.offn", model)
    write = Printer.write

    def change(self: Printer, prediction: Prediction) -> None:
        write(self, prediction)
        with model.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")

    monkeypatch.setattr(Printer, "write", change)
    done = run("predict", model, models / "0.png", models / "1.png")
    assert done.returncode == 2
    assert "was written into during the run" in done.stderr
    assert len(done.stdout.splitlines()) == 1
    with pytest.raises(ModelFileError, match="checksum"):
        modelfile.read(model, modelfile.read_header(model))


def test_another_picture_under_the_same_name_is_scored(models: Path, tmp_path: Path) -> None:
    part = shutil.copy(models / "0.png", tmp_path / "part.png")
    told = ["predict", models / "part.offn", part, "-o", tmp_path / "out"]
    assert run(*told).returncode == 0
    picture(Path(part), 99)
    done = run(*told, "--resume", "--fail-on-anomaly", "--threshold", "0")
    assert done.returncode == 2  # another threshold is another run
    done = run(*told, "--resume")
    assert "1 image, " in done.stderr
    assert "done before" not in done.stderr
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1
    Path(part).unlink()  # a row stays where its picture was taken away
    told[2] = models / "1.png"
    assert run(*told, "--resume").returncode == 0
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 2


def test_a_batch_is_another_one_when_a_picture_of_it_changed(models: Path, tmp_path: Path) -> None:
    for n in range(3):
        shutil.copy(models / f"{n}.png", tmp_path)
    told = ["predict", "--zero-shot-batch", tmp_path, "--backbone", "builtin", "--resolution", 48,
            "-o", tmp_path / "out"]  # fmt: skip
    assert run(*told).returncode == 0
    assert "0 images, 3 done before" in run(*told, "--resume").stderr
    picture(tmp_path / "1.png", 77)
    done = run(*told, "--resume")
    assert done.returncode == 2
    assert "--overwrite" in done.stderr


def test_a_model_belongs_to_one_command_at_a_time(models: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(models / "part.offn", tmp_path / "part.offn"))
    before = model.read_bytes()
    new = picture(tmp_path / "new.png", 50)
    with changing(model):
        for command in (["add", model, new], ["forget", model, models / "0.png"], ["undo", model],
                        ["calibrate", model, new]):  # fmt: skip
            done = run(*command)
            assert done.returncode == 2, command
            assert "another command is changing it" in done.stderr
    assert model.read_bytes() == before
    assert run("add", model, new).returncode == 0
    assert {one.name for one in tmp_path.iterdir()} == {"part.offn", "new.png"}


def test_a_link_leads_to_the_model_that_is_meant(models: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(models / "part.offn", tmp_path / "part.offn"))
    (tmp_path / "link.offn").symlink_to(model)
    before = model.read_bytes()
    assert run("add", tmp_path / "link.offn", picture(tmp_path / "n.png", 51)).returncode == 0
    assert (tmp_path / "link.offn").is_symlink()
    assert model.read_bytes() != before
    for odd in ("/dev/null", "/dev/stdout", tmp_path / "model.png", tmp_path / "caf\udce9.offn"):
        done = run("fit", models / "0.png", "--backbone", "builtin", "-o", odd)
        assert done.returncode == 2, odd


def test_a_pipe_with_a_picture_s_name_is_not_waited_for(models: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    shutil.copy(models / "0.png", tmp_path)
    done = run("predict", models / "part.offn", tmp_path)
    assert done.returncode == 3
    assert "pipe.png: is not a regular file" in done.stderr
