"""A PostgreSQL server of the tests' own: the system's programs, a socket, nothing kept."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from offnominal.station.store.database import Database

__all__ = ["Postgres", "running"]

_SERVER = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off"]
_SERVER += ["-c", "synchronous_commit=off", "-c", "shared_buffers=32MB", "-c", "max_connections=60"]


class Postgres:
    """A server that runs, and databases in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        self._template = ""

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def empty(self, template: str = "template1") -> str:
        """URL of a new database."""
        name = f"station_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def migrated(self) -> str:
        """URL of a new database with the schema of today in it."""
        if not self._template:
            url = self.empty()
            made = Database(url)
            made.upgrade()
            made.close()
            self._template = sa.make_url(url).database or ""
        return self.empty(self._template)

    def _run(self, statement: str) -> None:
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


def programs() -> Path | None:
    """The folder of the newest server that is installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if not found and (there := shutil.which("postgres")) is not None:
        return Path(there).parent
    return max(found, key=lambda path: int(path.parent.name), default=None)


@contextmanager
def running() -> Iterator[Postgres]:
    """A server while the block lasts; it never runs as root, which it refuses.

    Raises
    ------
    RuntimeError
        If it does not come up.
    """
    bin = programs()
    assert bin is not None
    as_user: dict[str, Any] = {}
    # A socket's path is short.
    memory = Path("/dev/shm")
    room = memory.is_dir() and shutil.disk_usage(memory).free > 4 * 2**30
    folder = Path(tempfile.mkdtemp(prefix="pg", dir=memory if room else "/tmp"))
    if os.geteuid() == 0:
        entry = pwd.getpwnam("postgres")
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    data = folder / "data"
    try:
        first = [bin / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        first += ["--no-sync", "--locale=C"]
        subprocess.run(first, check=True, capture_output=True, cwd=folder, **as_user)
        with (folder / "log").open("wb") as log:
            command = [bin / "postgres", "-D", data, "-k", folder, *_SERVER]
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **as_user)
        try:
            found = Postgres(folder)
            _wait(found, server)
            yield found
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(found: Postgres, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 30
    while True:
        try:
            found._run("SELECT 1")
            return
        except sa.exc.OperationalError as error:
            if time.monotonic() > until or server.poll() is not None:
                log = (found.folder / "log").read_text()
                raise RuntimeError(f"PostgreSQL does not come up: {log}") from error
            time.sleep(0.05)
