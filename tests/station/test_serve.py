"""``offnominal serve``: one address, processes that are started again, and an end in good order."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from offnominal.errors import OptionError
from offnominal.station.settings import Settings
from offnominal.station.store.database import Database
from offnominal.station.supervisor import Supervisor, listen


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "offnominal", "serve", str(folder), "--port", "0", *more]


@contextmanager
def serving(
    folder: Path, *more: str, lines: int = 2
) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """The supervisor's process, its address, and all that it printed until it answered.

    ``lines`` is how many those are: one where there is an account, and so no set-up code.
    """
    log = (folder.parent / "log").open("w")
    process = subprocess.Popen(
        command(folder, *more), stdout=subprocess.PIPE, stderr=log, text=True
    )
    try:
        assert process.stdout is not None
        told = "".join(process.stdout.readline() for _ in range(lines))
        address = re.search(r"https?://\S+", told)
        assert address is not None, told
        yield process, address[0], told
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        process.wait(60)
        log.close()


def until(what: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(process: "subprocess.Popen[str]") -> dict[str, list[int]]:
    """Numbers of the processes that a supervisor has, by what they are."""
    found: dict[str, list[int]] = {"web": [], "worker": []}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            words = (place / "cmdline").read_bytes()
            if parent == process.pid and b"offnominal.station" in words:
                found["web" if b"station.web" in words else "worker"].append(int(place.name))
    return found


def answers(address: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{address}v1/health", timeout=30).status_code in (200, 503)
    return False


@pytest.mark.slow
def test_what_dies_is_started_again_and_all_end_together(tmp_path: Path) -> None:
    folder = tmp_path / "station"
    with serving(folder, "--threads", "1", "--log", "json") as (process, address, told):
        assert re.search(r"Set-up code: \w{4}-\w{4}-\w{4}", told)
        until(lambda: answers(address))
        before = children(process)
        assert len(before["web"]) == 1
        assert len(before["worker"]) == 2  # one judges, one learns

        # The port stays open: who asks while the web process is gone waits for the next one.
        os.kill(before["web"][0], signal.SIGKILL)
        assert answers(address)
        assert children(process)["worker"] == before["worker"]
        os.kill(before["worker"][0], signal.SIGKILL)
        until(lambda: len(children(process)["worker"]) == 2)
        ready = f"{address}v1/health"
        until(lambda: httpx.get(ready, timeout=30).status_code == 200)

        other = subprocess.run(command(folder), capture_output=True, text=True, timeout=90)
        assert other.returncode == 2
        assert "another station runs in this folder" in other.stderr

        left = [*children(process)["web"], *children(process)["worker"]]
        process.kill()  # nobody is told, and all notice
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), 30)
    log = (tmp_path / "log").read_text()
    assert '"process": "web"' in log
    code = told.rpartition(" ")[2].strip()
    assert code not in log


@pytest.mark.slow
def test_a_signal_ends_it_in_good_order(tmp_path: Path) -> None:
    with serving(tmp_path / "station", "--threads", "1") as (process, address, _):
        until(lambda: answers(address))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert "stopped" in (tmp_path / "log").read_text()


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OptionError, match=r"--port .* cannot be listened on"):
            listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(OptionError, match=r"--host no\.such"):
        listen("no.such.host.invalid", 0)


def test_a_database_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    url = "postgresql+psycopg://station:secret@127.0.0.1:9/none"
    with pytest.raises(OptionError, match="--database") as told:
        Supervisor({"folder": str(tmp_path / "s"), "port": 0, "database": url})
    assert "secret" not in str(told.value)


def test_a_newer_schema_is_told(settings: Settings) -> None:
    database = Database(settings.database_url)
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(OptionError, match="newer"):
        Supervisor({"folder": str(settings.folder), "port": 0})


def test_settings_are_refused_by_the_option_or_the_file(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from offnominal.cli import app

    def told(*words: str) -> str:
        return str(CliRunner().invoke(app, ["serve", *words], standalone_mode=False).exception)

    folder = tmp_path / "s"
    folder.mkdir()
    assert "--port: " in told(str(folder), "--port", "70000")
    two = '[[sources]]\ntype = "folder"\nname = "{}"\nfolder = "{}"\n'
    for text, words in {
        "queue = 0\n": "station.toml: queue: ",
        "queue = \n": "station.toml: no TOML",
        'trusted_proxies = ["proxy"]\n': "station.toml: trusted_proxies: 'proxy' does not appear",
        "queue = '\xff'\n": "station.toml: no TOML in UTF-8",
        "colour = 1\n": "colour: there is no such setting",
        "timezone = 'Europe/Berln'\n": "timezone: no time zone 'Europe/Berln'",
        "shifts = ['25:00']\n": "shifts: hour must be in 0..23",
        two.format("a", "x") + two.format("a", "y"): "sources: the name 'a' is there twice",
        two.format("http", "x"): "sources: the name 'http' is there twice",
        two.format("a", "x") + two.format("b", "x"): "two sources take pictures from",
        two.format("a", "x") + "done = '.'\n": "sources, number 1.folder: done: is the folder",
    }.items():
        (folder / "station.toml").write_text(text, encoding="latin-1")
        assert words in told(str(folder)), text
    (folder / "station.toml").unlink()
    assert "--database: nothing here speaks" in told(str(folder), "--database", "sqlite+no:///x")
    (folder / "station.sqlite").write_bytes(b"no database" * 1000)
    assert "--database: " in told(str(folder))
    assert "cannot be the station's folder" in told(str(folder / "station.sqlite"))
