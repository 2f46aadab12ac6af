"""The web process's side of a worker: sends what is to be done, and hears when the worker dies."""

import asyncio
import itertools
import logging
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from offnominal.errors import OffnominalError
from offnominal.station.inspection.wire import Message, connect, receive, send

__all__ = ["Link", "WorkerDiedError"]

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 10.0  # seconds between two starts of a worker that dies at once
_LONG_LIFE = 30.0  # seconds after which a worker counts as one that works

# Called in the event loop with each message about a task that is not its last.
Progress = Callable[[str, int], None]


class WorkerDiedError(OffnominalError):
    """The worker ended, or was ended, while it had something to do."""


class Link:
    """A worker, as the event loop sees it.

    Parameters
    ----------
    folder : Path
        The station's.
    name : str
        The worker's.
    start : callable or None
        Starts the process, at the first :meth:`wake` and whenever it has died; None: a supervisor
        does, and the link only connects.
    changed : callable
        Called in the event loop when the worker came, went, or has room again.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        start: "Callable[[], subprocess.Popen[bytes]] | None",
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.name = folder, name
        self.pid: int | None = None
        self.connected = False
        self.deaths = 0
        self.heard = time.monotonic()
        self._start, self._changed = start, changed
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: dict[int, tuple[asyncio.Future[Message], Progress | None]] = {}
        self._numbers = itertools.count(1)
        self._outbox: queue.SimpleQueue[tuple[dict[str, Any], bytes | None] | None] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._connection: Connection | None = None

    @property
    def pending(self) -> int:
        """How many answers it owes."""
        return len(self._pending)

    def wake(self) -> None:
        """See to it that there is a worker; nobody waits."""
        if self._thread is None and not self._stopping.is_set():
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, args=(loop,), name=self.name)
            self._thread.daemon = True
            self._thread.start()

    def ask(
        self,
        message: dict[str, Any],
        content: bytes | None = None,
        progress: Progress | None = None,
    ) -> "asyncio.Future[Message]":
        """Send a message; what comes of it is the last answer.

        Raises
        ------
        WorkerDiedError
            At once, or from the future, if there is no worker any more.
        """
        if self._outbox is None:
            raise WorkerDiedError(f"{self.name} is not there")
        number = next(self._numbers)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        if not self._pending:
            self.heard = time.monotonic()
        self._pending[number] = future, progress
        self._outbox.put((message | {"job": number}, content))
        return future

    def kill(self) -> None:
        """End a worker that does not answer any more; another is started in its place."""
        if self.pid is not None:
            log.warning("ending %s, which does not answer", self.name)
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Let go of the worker, and end it if it was started here."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()
        elif (connection := self._connection) is not None:
            _shut(connection)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    # -- the thread ---------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        pause = 0.1
        while not self._stopping.is_set():
            began = time.monotonic()
            self._revive()
            connection = self._reach()
            if connection is not None:
                self._talk(connection, loop)
            if self._stopping.is_set():
                break
            pause = 0.1 if time.monotonic() - began > _LONG_LIFE else min(2 * pause, _LONGEST_PAUSE)
            if self._start is not None:
                self._stopping.wait(pause)
        if self._process is not None:
            self._process.wait()

    def _revive(self) -> None:
        if self._start is None:
            return
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = self._start()

    def _reach(self) -> Connection | None:
        """A connection, as soon as there is one; None: the process ended before."""
        while not self._stopping.is_set():
            with suppress(OSError, EOFError, AuthenticationError):
                return connect(self.folder, self.name)
            if self._process is not None and self._process.poll() is not None:
                return None
            self._stopping.wait(0.05)
        return None

    def _talk(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        outbox: queue.SimpleQueue[tuple[dict[str, Any], bytes | None] | None] = queue.SimpleQueue()

        def write() -> None:
            with suppress(OSError):  # the reader hears of it as well
                while (item := outbox.get()) is not None:
                    send(connection, *item)

        writer = threading.Thread(target=write, name=f"{self.name}-out", daemon=True)
        writer.start()
        self._connection = connection
        try:
            hello, _ = receive(connection)
            loop.call_soon_threadsafe(self._came, hello["hello"], outbox)
            while True:
                message = receive(connection)
                loop.call_soon_threadsafe(self._heard, message)
        except (EOFError, OSError, ValueError, KeyError):
            pass
        finally:
            self._connection = None
            outbox.put(None)
            with suppress(RuntimeError):  # the loop is over, and with it who waited
                loop.call_soon_threadsafe(self._went)
            writer.join(5)
            connection.close()

    # -- in the event loop --------------------------------------------------------------------

    def _came(self, pid: int, outbox: Any) -> None:
        self.pid, self._outbox, self.connected = pid, outbox, True
        self.heard = time.monotonic()
        self._changed()

    def _heard(self, message: Message) -> None:
        self.heard = time.monotonic()
        head, content = message
        number = head.pop("job")
        if number not in self._pending:
            return
        future, progress = self._pending[number]
        if "stage" in head:
            if progress is not None:
                progress(head["stage"], head["count"])
            return
        del self._pending[number]
        if not future.done():
            future.set_result((head, content))
        self._changed()

    def _went(self) -> None:
        if self._stopping.is_set():
            log.debug("%s: let go", self.name)
        elif self.connected:
            self.deaths += 1
            log.warning("%s (process %s) ended", self.name, self.pid)
        self.pid, self._outbox, self.connected = None, None, False
        pending, self._pending = self._pending, {}
        for future, _ in pending.values():
            if not future.done():
                future.set_exception(WorkerDiedError(f"{self.name} ended"))
        self._changed()


def _shut(connection: Connection) -> None:
    """End a connection that another thread reads from, which closing it would not do."""
    with suppress(OSError):
        copy = socket.socket(fileno=os.dup(connection.fileno()))
        try:
            copy.shutdown(socket.SHUT_RDWR)
        finally:
            copy.close()
