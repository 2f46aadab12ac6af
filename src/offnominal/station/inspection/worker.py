"""A process that judges pictures, or learns; it outlives the web process that asks it.

``python -m offnominal.station.inspection.worker`` reads from its standard input one line of JSON:
its ``name``, the station's ``folder``, how many ``models`` it keeps, and how it is to ``log``. When
that input ends, whoever started it is gone, and so goes it.
"""

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from offnominal.errors import OffnominalError
from offnominal.station.inspection.judge import Ready, judge, opening, prepare
from offnominal.station.inspection.models import Models
from offnominal.station.inspection.order import standing_order
from offnominal.station.inspection.tasks import TASKS
from offnominal.station.inspection.wire import listening, receive, send
from offnominal.station.logs import set_up_logs

__all__ = ["serve"]

log = logging.getLogger(__name__)

_AHEAD = 8  # messages that are decoded while others are judged

# What the one thread that computes does next, and whom it tells.
_Job = Callable[[], None]


def serve(folder: Path, name: str, models: int) -> None:
    """Take connections, one after the other, and do what each asks, in one thread."""
    jobs: queue.Queue[_Job] = queue.Queue(_AHEAD)
    open_models = Models(folder, models)
    with listening(folder, name) as listener, ThreadPoolExecutor(2) as pool:

        def accept() -> None:
            while True:
                try:
                    connection = listener.accept()
                except (AuthenticationError, EOFError, ConnectionError):
                    log.warning("refused a connection without the key")
                    continue
                reading = (connection, jobs, pool, open_models)
                threading.Thread(target=_read, args=reading, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        while True:
            jobs.get()()


def _read(
    connection: Connection, jobs: "queue.Queue[_Job]", pool: ThreadPoolExecutor, models: Models
) -> None:
    """Take messages of a connection until its other side is gone."""
    lock = threading.Lock()

    def answer(message: dict[str, Any], content: bytes | None = None) -> bool:
        try:
            with lock:
                send(connection, message, content)
        except OSError:
            return False  # who asked is gone, and asks again
        return True

    try:
        answer({"hello": os.getpid()})
        while True:
            message, content = receive(connection)
            what, number = message["do"], message["job"]
            if what == "judge":
                given = (message["model"], content or b"", message["sight"], message["checks"])
                ready = pool.submit(prepare, models, *given)
                jobs.put(_judging(number, ready, answer))
            elif what == "warm":
                opened = pool.submit(opening, models, message["model"])
                jobs.put(_warming(number, opened, answer))
            else:
                jobs.put(_working(number, message["task"], message["given"], answer))
    except (EOFError, OSError):
        connection.close()


def _judging(number: int, ready: "Future[Ready]", answer: Callable[..., bool]) -> _Job:
    def job() -> None:
        try:
            found, patches = judge(ready.result())
        except Exception as error:  # a defect, or no memory: the part is not inspected
            log.exception("judging failed")
            answer({"job": number, "error": f"{type(error).__name__}: {error}"})
        else:
            answer({"job": number} | found, patches)

    return job


def _warming(number: int, opened: "Future[str]", answer: Callable[..., bool]) -> _Job:
    def job() -> None:
        trouble = opened.result()
        answer({"job": number} | ({"error": trouble} if trouble else {}))

    return job


def _working(number: int, task: str, given: dict[str, Any], answer: Callable[..., bool]) -> _Job:
    def job() -> None:
        def told(stage: str, count: int) -> None:
            if not answer({"job": number, "stage": stage, "count": count}):
                raise OffnominalError(f"{task}: nobody waits for it any more")

        try:
            done = TASKS[task](told, **given)
        except OffnominalError as error:
            answer({"job": number, "error": str(error)})
        except Exception as error:
            log.exception("%s failed", task)
            answer({"job": number, "error": f"{task} failed ({type(error).__name__}: {error})"})
        else:
            answer({"job": number, "done": done})

    return job


def main() -> None:
    """Entry point of the process."""
    told = json.loads(standing_order(lambda: os._exit(0)) or "null")
    if told is None:
        sys.exit("started by the station, which says what to do on its standard input")
    set_up_logs(told["log"], told["name"])
    folder = Path(told["folder"])
    os.chdir(folder)  # names of files in messages, and of references in models, are within it
    serve(folder, told["name"], told["models"])


if __name__ == "__main__":
    main()
