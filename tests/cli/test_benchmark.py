"""``benchmark`` and ``evaluate`` as a user runs them."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Done, offnominal

from offnominal.benchmark.presets import PRESETS
from offnominal.benchmark.store import read_runs

Run = Callable[..., Done]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("OFFNOMINAL_CACHE", str(cache))
    return offnominal


@pytest.mark.slow
def test_a_grid_then_a_rerun_then_more(run: Run, parts: Path, tmp_path: Path) -> None:
    grid = [
        "benchmark", "--data", parts, "--categories", "fabric", "part", "--shots", 1, 3,
        "--seeds", 1, "--backbone", "builtin", "--set", "rotation=none", "-o", tmp_path,
    ]  # fmt: skip
    first = run(*grid)
    assert first.returncode == 0, first.stderr
    assert "4 cells, 4 to run" in first.stderr
    assert "image AUROC" in first.stderr
    assert first.stdout == f"Make the page with: offnominal report {tmp_path}\n"
    again = run(*grid)
    assert "4 cells, 0 to run" in again.stderr
    more = run(*grid, "--set", "aggregate=top1,max")
    assert "8 cells, 4 to run" in more.stderr
    # All of the features were there already.
    assert "features of 0 views computed" in more.stderr
    cells, [plan] = read_runs(tmp_path)
    assert len(cells) == 8
    assert set(plan.cells) == {cell.name for cell in cells}
    assert plan.axes == ("shots", "aggregate")


@pytest.mark.slow
def test_a_stop_says_what_is_kept(parts: Path, tmp_path: Path) -> None:
    grid = ["--data", str(parts / "fabric"), "--backbone", "builtin", "--no-cache", "-o"]
    call = [sys.executable, "-m", "offnominal", "benchmark", *grid, str(tmp_path)]
    cells = tmp_path / "cells"
    running = subprocess.Popen(
        [*call, "--shots", "1", "2", "3", "4", "--seeds", "9"], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 200
    while not list(cells.glob("[!.]*")) and running.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)  # a shell may have its children ignore the other
    _, said = running.communicate(timeout=100)
    assert running.returncode == 143
    count = len(list(cells.glob("[!.]*")))
    assert re.search(rf"stopped; {count} cells? run and kept in {tmp_path}", said)
    assert not list(cells.glob(".*"))
    assert not list((tmp_path / "claims").iterdir())


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_run(
    run: Run, parts: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for command in (
        ["benchmark", "--data", parts / "fabric", "--backbone", "builtin", "-o"],
        ["report", parts, "-o"],
        ["demo", "-o"],
    ):
        done = run(*command, tmp_path / "file")
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.slow
def test_presets_are_listed_and_can_be_changed(run: Run, parts: Path, tmp_path: Path) -> None:
    listed = run("benchmark", "--preset", "list", "-o", tmp_path)
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in PRESETS)
    for name, changes, count in [
        ("shots", ["--seeds", 1, "--shots", 1, 2], 2),
        ("preprocessing", ["--seeds", 1], 6),
        ("aggregation", ["--seeds", 1], 6),
        ("resolution", ["--seeds", 1, "--resolution", 128, 192], 2),
        ("backbone-size", ["--seeds", 1, "--backbone", "builtin", "builtin-aligned"], 2),
        ("imagenet-vs-dinov2", ["--seeds", 1, "--backbone", "builtin", "builtin-aligned"], 2),
        ("inference-time", ["--seeds", 1, "--resolution", 128], 1),
        ("batched-zero-shot", ["--resolution", 128, 192], 2),
        ("labels", ["--seeds", 1, "--labelled", 0, 2, "--method", "patchcore"], 2 * (1 + 2)),
    ]:
        backbone = [] if "--backbone" in changes else ["--backbone", "builtin"]
        asked = ["benchmark", "--data", parts / "fabric", "--preset", name, "-o", tmp_path]
        done = run(*asked, *backbone, *changes, "--dry-run")
        assert done.returncode == 0, (name, done.stderr)
        assert len(done.stdout.splitlines()) == count, name
    assert not list((tmp_path / "cells").iterdir())


def test_plain_folders_say_how_they_are_divided(run: Run, parts: Path, tmp_path: Path) -> None:
    done = run(
        "benchmark", "--good", parts / "fabric" / "train" / "good",
        "--defects", parts / "fabric" / "test" / "broken_end", "--shots", 1, "--seeds", 1,
        "--backbone", "builtin", "-o", tmp_path / "runs",
    )  # fmt: skip
    known = [p.name for p in sorted((parts / "fabric" / "test").iterdir())]
    assert "broken_end" in known, known
    assert done.returncode == 0, done.stderr
    assert "to learn from" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--data", "/nowhere"], "/nowhere"),
        (["--shots", "few"], "--shots few"),
        (["--preset", "best"], "--preset best"),
        (["--set", "colour=red"], "colour"),
        (["--method", "guess"], "--method guess"),
        (["--categories", "spoon"], "spoon"),
        (["--backbone", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_wrong_options_are_named(
    run: Run, parts: Path, tmp_path: Path, arguments: list[str], word: str
) -> None:
    data = [] if "--data" in arguments else ["--data", parts]
    backbone = [] if "--backbone" in arguments else ["--backbone", "builtin"]
    done = run("benchmark", *data, *backbone, *arguments, "-o", tmp_path)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_evaluate_prints_and_writes(
    run: Run, parts: Path, fabric_model: Path, tmp_path: Path
) -> None:
    done = run("evaluate", fabric_model, parts / "fabric", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "image AUROC" in done.stdout
    assert "95 %:" in done.stdout
    assert "AUPRO to 0.3" in done.stdout
    assert "by class of defect" in done.stdout
    assert "taken for" not in done.stdout  # it tells no class
    [cell], [plan] = read_runs(tmp_path)
    assert plan.name == "evaluate"
    assert len(cell.settings["references"]) == cell.settings["shots"] == 6
    printed = json.loads(run("evaluate", fabric_model, parts / "fabric", "--json").stdout)
    kinds = {path.name for path in (parts / "fabric" / "test").iterdir()} - {"good"}
    assert {row["kind"] for row in printed[0]["kinds"]} == kinds
    assert {row["kind"]: row["misses"] for row in cell.metrics["kinds"]} == {
        row["kind"]: row["misses"] for row in printed[0]["kinds"]
    }
    assert printed[0]["confusion"] is None
    assert printed[0]["figures"]["image_auroc"] == cell.metrics["figures"]["image_auroc"]


def test_evaluate_leaves_references_out(run: Run, parts: Path, fabric_model: Path) -> None:
    defects = parts / "fabric" / "test"
    kind = next(p for p in sorted(defects.iterdir()) if p.name != "good")
    good = parts / "fabric" / "train" / "good"
    done = run(
        "evaluate", fabric_model, "--good", good, "--good", defects / "good", "--defects", kind
    )
    assert done.returncode == 0, done.stderr
    assert (
        "6 test images are exact copies of images that were learned from, left out" in done.stderr
    )
    assert "3 good and 1 defective images" in done.stdout
