"""The process that looks after the others: starts them, starts them again, ends them all."""

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any

from filelock import FileLock, Timeout

from offnominal.errors import OptionError
from offnominal.station.access.listening import check_listening
from offnominal.station.access.setup import setup_code
from offnominal.station.inspection.process import LEARNER, judges, start_worker
from offnominal.station.settings import Settings
from offnominal.station.station import Station

__all__ = ["Supervisor", "listen"]

log = logging.getLogger(__name__)

_LONG_LIFE = 30.0  # seconds after which a process counts as one that works
_LONGEST_PAUSE = 30.0  # seconds between two starts of one that dies at once
_GRACE = 20.0  # seconds that a process is given to end by itself
_LOOK = 0.1  # seconds between two looks

Process = subprocess.Popen[bytes]


class Child:
    """A process that is to run.

    Parameters
    ----------
    name : str
    start : callable
        Starts it.
    """

    def __init__(self, name: str, start: Callable[[], Process]) -> None:
        self.name, self._start = name, start
        self.process: Process | None = None
        self._began, self._pause, self._again = 0.0, 0.0, 0.0

    def look(self) -> None:
        """Start it, if it does not run and its pause is over."""
        now = time.monotonic()
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return
            _close(self.process)
            self.process = None
            long = now - self._began > _LONG_LIFE
            self._pause = (
                0.0 if long or code == 0 else min(max(0.25, 2 * self._pause), _LONGEST_PAUSE)
            )
            self._again = now + self._pause
            log.warning("%s ended (%s); again in %.2f s", self.name, _how(code), self._pause)
        if now >= self._again:
            self._began = now
            self.process = self._start()

    def end(self) -> None:
        """Ask it to end."""
        if self.process is not None:
            _close(self.process)
            with suppress(ProcessLookupError):
                self.process.terminate()

    def wait(self, until: float) -> None:
        """Wait for its end, and kill it when the time is over."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("%s does not end, and is killed", self.name)
            self.process.kill()
            self.process.wait()


class Supervisor:
    """A station with all its processes.

    Parameters
    ----------
    options : dict
        What of the settings the command line gave, as JSON takes it.

    Raises
    ------
    OptionError
        If another station uses the folder, the database cannot be used, the port is taken, or the
        station would be open to everybody.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.settings = Settings(**options)
        station = Station(self.settings, supervised=True)
        try:
            self._lock = _locked(station)
            station.database.upgrade()
            self.warning = check_listening(self.settings, station)
            self.socket = listen(self.settings.host, self.settings.port)
            self.code = setup_code(station)
        finally:
            station.database.close()
        self._stop = Event()
        order = {"options": options, "socket": self.socket.fileno()}
        folder = station.files.folder
        self._web = Child("web", lambda: _start_web(order))

        def worker(name: str) -> Child:
            return Child(name, lambda: start_worker(name, self.settings, folder))

        self._workers = [worker(name) for name in (*judges(self.settings), LEARNER)]

    @property
    def address(self) -> str:
        """Where to look, in a browser."""
        host, port = self.socket.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        scheme = "https" if self.settings.tls_cert else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"

    def run(self) -> None:
        """Look after the processes until SIGTERM or SIGINT; then end them in good order."""
        before = {
            number: signal.signal(number, lambda *_: self._stop.set())
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        children = [*self._workers, self._web]
        try:
            while not self._stop.wait(_LOOK):
                for child in children:
                    child.look()
        finally:
            # The web process first: it still answers what it accepted, for which it needs workers.
            self._web.end()
            self._web.wait(time.monotonic() + _GRACE)
            for child in self._workers:
                child.end()
            for child in self._workers:
                child.wait(time.monotonic() + 2)
            self.socket.close()
            self._lock.release()
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, and stays open while the process behind it is started anew.

    Raises
    ------
    OptionError
        If it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(512)
    except OSError as error:
        made.close()
        if isinstance(error, socket.gaierror):
            told = f"--host {host}: no address of this machine ({error.strerror})"
        else:
            told = (
                f"--port {port}: cannot be listened on at {host} ({error.strerror}); end what "
                "uses it, or give another"
            )
        raise OptionError(told) from error
    made.set_inheritable(True)
    return made


def _locked(station: Station) -> FileLock:
    place = station.files / "run" / "lock"
    place.parent.mkdir(exist_ok=True, mode=0o700)
    lock = FileLock(place, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OptionError(
            f"{station.files.folder}: another station runs in this folder; end it, or name "
            "another folder"
        ) from error
    return lock


def _start_web(order: dict[str, Any]) -> Process:
    process = subprocess.Popen(
        [sys.executable, "-m", "offnominal.station.web"],
        stdin=subprocess.PIPE,
        pass_fds=(order["socket"],),
        start_new_session=True,  # Ctrl-C is for the supervisor
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended at once, which is seen
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return process


def _close(process: Process) -> None:
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
