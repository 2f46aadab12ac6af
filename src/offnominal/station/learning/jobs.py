"""What takes longer than a page: it goes on when the page is closed, and is there again after."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from offnominal.atomic import write_atomically
from offnominal.errors import OffnominalError, OptionError
from offnominal.station.events import Events
from offnominal.station.inspection.learner import Told

__all__ = ["Job", "Jobs"]

_KEPT = 50  # finished jobs whose outcome can still be asked for


@dataclass
class Job:
    """A piece of work, as pages show it.

    Attributes
    ----------
    id : str
    product : int
    kind : str
        ``fit``, ``add``, ``forget``, ``compare``.
    total : int
        How many pictures each stage has; 0: not known.
    stage, done : str, int
        As the learner told them.
    state : {"running", "done", "failed"}
    error : str
        In words, of one that failed.
    interrupted : bool
        Whether it failed because the station was ended meanwhile: it can be started again.
    result : dict
        What came of one that is done.
    """

    id: str
    product: int
    kind: str
    by: str
    total: int = 0
    stage: str = ""
    done: int = 0
    state: Literal["running", "done", "failed"] = "running"
    error: str = ""
    interrupted: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))


class Jobs:
    """All of them, in the web process.

    Parameters
    ----------
    events : Events
        Told of each step, as ``job``.
    folder : Path
        A note of each lies there while it goes on: one that is found was interrupted, and is told
        so until another of its kind is started.
    """

    def __init__(self, events: Events, folder: Path) -> None:
        self._events, self._folder = events, folder
        self._jobs: dict[str, Job] = {one.id: one for one in _interrupted(folder)}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next: dict[int, Callable[[], Job]] = {}

    def start(
        self,
        product: int,
        kind: str,
        by: str,
        work: Callable[[Told], Awaitable[dict[str, Any]]],
        total: int = 0,
    ) -> Job:
        """Begin; to be called in the event loop.

        Raises
        ------
        OptionError
            If another job of that product goes on, since two that learn would not know of each
            other; or if nothing can be written in the station's folder.
        """
        if self.running(product):
            raise OptionError("this product is being worked on; wait until that is done")
        job = Job(secrets.token_hex(8), product, kind, by, total)
        self._note(job)
        before = self.last(product, kind)
        if before is not None:
            self._forget(before)
        self._jobs[job.id] = job
        finished = [one for one in self._jobs.values() if one.state != "running"]
        for old in finished[: max(0, len(finished) - _KEPT)]:
            self._forget(old)
            del self._jobs[old.id]
        task = asyncio.get_running_loop().create_task(self._run(job, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def then(
        self,
        product: int,
        kind: str,
        by: str,
        work: Callable[[Told], Awaitable[dict[str, Any]]],
        total: int = 0,
    ) -> None:
        """Begin that as soon as the product's job that goes on is done; not if it fails."""
        self._next[product] = partial(self.start, product, kind, by, work, total)

    async def _run(self, job: Job, work: Callable[[Told], Awaitable[dict[str, Any]]]) -> None:
        def told(stage: str, done: int) -> None:
            job.stage, job.done = stage, done
            self._events.publish("job", id=job.id, product=job.product)

        try:
            job.result = await work(told)
            job.state = "done"
        except OffnominalError as error:
            job.state, job.error = "failed", str(error)
        except asyncio.CancelledError:
            job.state, job.interrupted = "failed", True
            raise
        except Exception as error:  # the page must not wait for ever; the log has the rest
            job.state, job.error = "failed", f"{type(error).__name__}: {error}"
            raise
        finally:
            if not job.interrupted:
                self._forget(job)
            follows = self._next.pop(job.product, None)
            if follows is not None and job.state == "done":
                follows()
            self._events.publish("job", id=job.id, product=job.product)

    def running(self, product: int) -> Job | None:
        """What goes on for a product now."""
        own = (job for job in self._jobs.values() if job.product == product)
        return next((job for job in own if job.state == "running"), None)

    def last(self, product: int, kind: str) -> Job | None:
        """The newest job of a kind."""
        own = [job for job in self._jobs.values() if (job.product, job.kind) == (product, kind)]
        return own[-1] if own else None

    def get(self, id: str) -> Job | None:
        """One of them, while it is kept."""
        return self._jobs.get(id)

    async def close(self) -> None:
        """Break off what goes on: nothing half done is ever live."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _note(self, job: Job) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = {name: getattr(job, name) for name in ("product", "kind", "by", "total")}
        told = names | {"started": job.started.isoformat()}
        write_atomically(self._place(job), json.dumps(told).encode())

    def _forget(self, job: Job) -> None:
        self._place(job).unlink(missing_ok=True)

    def _place(self, job: Job) -> Path:
        return self._folder / f"{job.id}.json"


def _interrupted(folder: Path) -> list[Job]:
    """What went on when the station ended, in whatever way that was; the oldest first."""
    found = []
    for path in folder.glob("*.json"):
        try:
            told = json.loads(path.read_bytes())
            started = datetime.fromisoformat(told.pop("started"))
            job = Job(path.stem, **told, state="failed", interrupted=True, started=started)
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # a damaged note must not keep the station from starting
        found.append(job)
    return sorted(found, key=lambda one: one.started)
