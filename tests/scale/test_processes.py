"""Processes that are killed, and results that are what one process alone would have written."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import ENVIRONMENT, MAIN, offnominal, passed
from tests.scale.work import Opens, Writes

from offnominal.cli.scaled import _noted
from offnominal.errors import OptionError
from offnominal.scale.facts import facts_of
from offnominal.scale.parts import Store
from offnominal.scale.processes import Processes
from offnominal.scale.scoring import digest_of
from offnominal.scale.shards import cut, run_shards

KINDS = "overlay,map,json,csv,page"


def items_of(folder: Path) -> list[str]:
    return [item for part in sorted(folder.iterdir()) for item in part.read_text().split("\n")]


@pytest.mark.slow
def test_a_deadly_item_is_found_and_the_rest_is_done(tmp_path: Path) -> None:
    items = [f"{number:02d}" for number in range(6)]
    given_up = []
    for _ in run_shards(
        Writes(str(tmp_path), poison=("03",)), cut(items, lambda name: "", 2), Processes(2),
        lambda shard: False, lambda shard: (tmp_path / shard.name).exists(),
        lambda shard, reason: given_up.append((shard.items, reason)),
    ):  # fmt: skip
        pass
    assert given_up == [(("03",), "ended by SIGKILL")]
    assert items_of(tmp_path) == [one for one in items if one != "03"]


@pytest.mark.slow
def test_workers_are_killed_again_and_again(tmp_path: Path) -> None:
    items = [f"{number:03d}" for number in range(120)]
    engine, over, killed = Processes(2), threading.Event(), []
    draw, out, started = random.Random(0), tmp_path / "out", tmp_path / "pids"
    out.mkdir()
    started.mkdir()

    def kill() -> None:
        while not over.wait(1.0):
            # Those that came to work: on a slow machine they would never, killed as they start.
            there = [pid for pid in engine.pids if (started / str(pid)).exists()]
            for pid in draw.sample(there, min(1, len(there))):
                with suppress(ProcessLookupError):  # it ended meanwhile
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        ended = [
            item
            for shard, _ in run_shards(
                Writes(str(out), seconds=0.05, pids=str(started)),
                cut(items, lambda name: "", 4), engine,
                lambda shard: False, lambda shard: (out / shard.name).exists(),
                lambda shard, reason: pytest.fail(reason),
            )
            for item in shard.items
        ]  # fmt: skip
    finally:
        over.set()
        killer.join()
    assert killed
    assert sorted(ended) == items == items_of(out)


@pytest.mark.slow
def test_workers_end_when_their_driver_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from offnominal.scale.processes import Processes\n"
        "from offnominal.scale.shards import cut, run_shards\n"
        "from tests.scale.work import Writes\n"
        "if __name__ == '__main__':\n"
        "    engine = Processes(2)\n"
        "    shards = cut(map(str, range(10**6)), lambda name: '', 1)\n"
        "    none = lambda *all: False\n"
        f"    for _ in run_shards(Writes({str(tmp_path / 'out')!r}), shards, engine, none, none,"
        " none):\n"
        "        print(*engine.pids, flush=True)\n"
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "driver.py").write_text(script)
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, str(Path(root, "src")), os.environ.get("PYTHONPATH", "")])
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py"], text=True, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert driver.stdout
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    driver.kill()
    driver.wait()
    until = time.monotonic() + 30
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, alive
        time.sleep(0.05)


@pytest.mark.slow
def test_results_are_those_of_one_process_whoever_died(
    tmp_path: Path, parts: Path, fabric_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other threads, other last digits
    images = tmp_path / "images"
    for number in range(3):
        (images / str(number)).mkdir(parents=True)
        for image in (parts / "fabric" / "test").rglob("*.png"):
            (images / str(number) / f"{image.parent.name}-{image.name}").symlink_to(image)
    (images / "broken.png").write_bytes(b"no image")
    command = ["predict", fabric_model, images, "--engine", "torch", "--save", KINDS, "-o"]
    whole = [*MAIN, *map(str, command)]
    own: dict[str, Any] = {"env": os.environ | ENVIRONMENT, "capture_output": True, "text": True}
    assert subprocess.run([*whole, tmp_path / "alone"], **own).returncode == 3
    told = subprocess.run([*whole, tmp_path / "several", "--workers", "1"], **own)
    assert told.returncode == 3
    assert "1 image could not be used" in told.stderr
    # Another driver is killed as soon as something is there; the same command goes on.
    whole.append(str(tmp_path / "killed"))
    driver = subprocess.Popen([*whole, "--workers", "2"], env=own["env"], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list((tmp_path / "killed" / "parts").glob("*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    assert subprocess.run([*whole, "--workers", "1"], **own).returncode == 3
    for other in ("several", "killed"):
        assert contents(tmp_path / other) == contents(tmp_path / "alone")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder of results, but for what only runs by shards leave."""
    return {
        str(name): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and (name := file.relative_to(folder)).parts[0] != "parts"
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--workers", 2], "a folder for the results"),
        (["--workers", 0, "-o", "x"], "--workers 0: give 1 or more"),
        (["--workers", 2, "-o", "x", "--strict"], "--strict: not with --workers"),
        (["--workers", 2, "-o", "s3://x/y", "--save", "page"], "--save page: a page is read"),
        (["--workers", 2, "-o", "memory://x"], "-o memory://x: is the memory of this process"),
        (["--workers", 2, "-o", "nowhere://x"], "nowhere://x: cannot be opened"),
        (["--workers", 2, "-o", "x", "--coreset", 1], "--coreset is settled in the model file"),
    ],
)
def test_what_cannot_be_is_said(
    tmp_path: Path, parts: Path, fabric_model: Path, options: list[object], told: str
) -> None:
    done = offnominal("predict", fabric_model, parts / "fabric" / "test", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr


@pytest.mark.slow
def test_parts_of_another_model_are_not_gone_on_with(
    tmp_path: Path, parts: Path, fabric_model: Path
) -> None:
    images = parts / "fabric" / "test" / "good"
    run = ["predict", fabric_model, images, "-o", tmp_path / "out", "--workers", 1]
    passed(offnominal(*run))
    assert "--resume goes on" in offnominal(*run).stderr
    as_url = ["file://" + str(one) if one == tmp_path / "out" else one for one in run]
    assert "--resume goes on" in offnominal(*as_url).stderr
    other = offnominal(*run, "--resume", "--threshold", 3)
    assert "of another model or other options" in other.stderr
    passed(offnominal(*run, "--overwrite", "--threshold", 3))


def test_a_folder_parts_of_something_else_is_kept(
    tmp_path: Path, parts: Path, fabric_model: Path
) -> None:
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / "parts" / "mine.png").write_text("mine")
    images = parts / "fabric" / "test" / "good"
    run = ["predict", fabric_model, images, "-o", tmp_path / "out", "--workers", 1]
    for more in ([], ["--overwrite"]):
        done = offnominal(*run, *more)
        assert done.returncode == 2
        assert "parts/ holds something else (mine.png)" in done.stderr
    assert (tmp_path / "out" / "parts" / "mine.png").read_text() == "mine"


def test_a_rerun_takes_the_engine_of_the_parts(
    tmp_path: Path, parts: Path, fabric_model: Path
) -> None:
    run = {"model": digest_of(str(fabric_model)), "engine": "torch"}
    store = Store(str(tmp_path))
    assert _noted(store) is None
    store.write("parts/run.json", json.dumps(run).encode())
    assert _noted(store) == run
    store.write("parts/run.json", b"[1]")
    assert _noted(store) is None


@pytest.mark.slow
def test_what_ends_the_process_that_tries_the_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"part\.offn: the process that opened it is gone.*KILL"):
        facts_of(Opens("part.offn", "", poison=("",)), None, ["a.png"])
    found = facts_of(Opens("part.offn", "", poison=("a.png", "b.png")), None, ["a.png", "b.png"])
    assert found.method == "none"


@pytest.mark.slow
def test_a_model_that_recognises_categories_is_scored_as_by_one_process(
    tmp_path: Path, parts: Path
) -> None:
    kinds = [parts / look / "train" / "good" for look in ("fabric", "part")]
    model = tmp_path / "plant.offn"
    fit = ["fit", *kinds, "--categories", "--method", "rad", "--backbone", "builtin"]
    passed(offnominal(*fit, "--resolution", 96, "-o", model))
    command = ["predict", model, parts / "fabric" / "test" / "good", "--save", "json,csv", "-o"]
    passed(offnominal(*command, tmp_path / "alone"))
    passed(offnominal(*command, tmp_path / "several", "--workers", 1))
    assert contents(tmp_path / "several") == contents(tmp_path / "alone")


def test_an_image_of_a_store_that_is_named_often_is_scored_as_often(
    tmp_path: Path, parts: Path, fabric_model: Path
) -> None:
    image = next((parts / "fabric" / "test" / "good").iterdir())
    (tmp_path / "list.txt").write_text(f"file://{image}\n" * 40)
    run = ["predict", fabric_model, tmp_path / "list.txt", "-o", tmp_path / "out", "--workers", 1]
    passed(offnominal(*run))
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 40


@pytest.mark.parametrize("command", ["fit", "benchmark"])
def test_a_url_where_a_path_is_needed_is_refused(tmp_path: Path, parts: Path, command: str) -> None:
    good = parts / "fabric" / "train" / "good"
    what = [good] if command == "fit" else ["--data", parts, "--method", "patchcore"]
    done = offnominal(command, *what, "-o", "file:///x/y", "--workers", 2, cwd=tmp_path)
    assert done.returncode == 2
    assert "is a URL; give a path" in done.stderr
    assert not list(tmp_path.iterdir())


def test_rows_do_not_take_the_place_of_their_model(tmp_path: Path, parts: Path) -> None:
    model = tmp_path / "x.offn"
    good = parts / "fabric" / "train" / "good"
    options = ["--method", "rad", "--backbone", "builtin", "--rows-file", model, "-o", model]
    done = offnominal("fit", good, *options)
    assert done.returncode == 2
    assert f"--rows-file {model}: is the model's own name" in done.stderr
    assert not list(tmp_path.iterdir())
