"""The command line, run in this process or in one of its own."""

import os
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

# What a command finds at its start; the hub's client reads the second once, when it is imported,
# and with the third the same steps give the same file.
ENVIRONMENT = {"COLUMNS": "100", "HF_HUB_OFFLINE": "1", "SOURCE_DATE_EPOCH": "1772355600"}
os.environ["HF_HUB_OFFLINE"] = "1"

MAIN = [sys.executable, "-c", "from offnominal.cli import main; main()"]


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def offnominal(*arguments: object, stdin: str | None = None, cwd: Path | None = None) -> Done:
    """Run a command in this process; what it prints and its exit code are the process's own."""
    from offnominal.cli import app

    with chdir(cwd or Path.cwd()):
        runner = CliRunner(env=ENVIRONMENT)
        done = runner.invoke(app, [*map(str, arguments)], input=stdin, catch_exceptions=False)
    return Done(done.exit_code, done.stdout, done.stderr)


def process(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [*MAIN, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, input=stdin,
        env=os.environ | ENVIRONMENT,
    )  # fmt: skip


def passed(done: Done) -> str:
    """The messages of a command that must have gone well."""
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def good(parts: Path) -> Path:
    return parts / "fabric" / "train" / "good"
