"""Claims between threads and between real processes, with a real file system."""

import os
import subprocess
import sys
import time
from pathlib import Path

from offnominal.benchmark.claims import claim

HOLD = """
import sys, time
from pathlib import Path
from offnominal.benchmark.claims import claim
with claim(Path(sys.argv[1]), "work", beat=0.1) as mine:
    print("mine" if mine else "theirs", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_one_at_a_time(tmp_path: Path) -> None:
    with (
        claim(tmp_path, "work") as first,
        claim(tmp_path, "work") as second,
        claim(tmp_path, "other") as other,
    ):
        assert (first, second, other) == (True, False, True)
    with claim(tmp_path, "work") as again:
        assert again
    assert not list(tmp_path.iterdir())


def test_another_process_is_respected_while_it_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        time.sleep(1.2)
        # It gives a sign of life ten times a second, so that it is not stale after one second.
        with claim(tmp_path, "work", stale=1.0) as mine:
            assert not mine
        other.kill()
        other.wait()
        with claim(tmp_path, "work", stale=1.0) as mine:
            assert not mine  # its last sign is fresh
        time.sleep(1.2)
        with claim(tmp_path, "work", stale=1.0) as mine:
            assert mine
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_overtaken_leaves_the_new_claim_alone(tmp_path: Path) -> None:
    with claim(tmp_path, "work", beat=60) as slow:
        assert slow
        past = time.time() - 3600
        os.utime(tmp_path / "work.claim", (past, past))
        with claim(tmp_path, "work", beat=60) as fast:
            assert fast
            held = (tmp_path / "work.claim").read_text()
        # The fast one has given it up; nothing of either is left.
        assert held
        assert not list(tmp_path.iterdir())


def test_of_several_that_see_it_stale_one_gets_it(tmp_path: Path) -> None:
    for _ in range(3):
        path = tmp_path / "work.claim"
        path.write_text("somebody who died\n")
        past = time.time() - 3600
        os.utime(path, (past, past))
        command = [sys.executable, "-c", HOLD, str(tmp_path), "1.5"]
        racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        answers = [racer.communicate()[0].strip() for racer in racers]
        assert sorted(answers) == ["mine", "theirs", "theirs"]
