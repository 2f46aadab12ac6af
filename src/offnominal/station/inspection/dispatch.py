"""Handing pictures to the processes that judge, and what is done when one of those dies."""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offnominal.errors import OffnominalError
from offnominal.station.files import Files
from offnominal.station.inspection.client import Link
from offnominal.station.inspection.process import judges, start_worker
from offnominal.station.inspection.reasons import reason
from offnominal.station.inspection.wire import Message
from offnominal.station.settings import Settings
from offnominal.station.state import State

__all__ = ["Dispatch", "Model"]

log = logging.getLogger(__name__)

_AHEAD = 3  # pictures that a worker is given at a time: it decodes while it computes
_LIVES = 2  # workers that a job may end before it is given up
_STUCK = 3.0  # deadlines without a word after which a worker is ended
_LONG = 30.0  # seconds that this is at least

Model = dict[str, str]
"""``file`` within the station's folder, and its ``digest``."""


@dataclass(eq=False)
class _Job:
    """A picture on its way to a worker."""

    message: dict[str, Any]
    content: bytes
    answer: "asyncio.Future[Message]"
    deaths: int = 0
    sent: float = 0.0


class Dispatch:
    """The workers of a station, and the pictures that they have.

    Parameters
    ----------
    settings : Settings
    files : Files
    state : State
        Is told while no worker is there.
    live : callable
        Gives the models of products that are live; may wait for the database.
    supervised : bool
        Whether somebody else starts the processes, and starts them again.

    Attributes
    ----------
    links : dict
        Each worker, with what it judges now.
    seconds : float
        What a picture takes a worker, lately.
    """

    def __init__(
        self,
        settings: Settings,
        files: Files,
        state: State,
        live: Callable[[], list[Model]],
        supervised: bool,
    ) -> None:
        self._settings, self._state, self._live = settings, state, live
        self._supervised = supervised
        self._queue: deque[_Job] = deque()
        self._models: OrderedDict[str, Model] = OrderedDict()  # the last used ones
        self._met: set[Link] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.seconds = 0.1

        def link(name: str) -> Link:
            start = None if supervised else lambda: start_worker(name, settings, files.folder)
            return Link(files.folder, name, start, self._pump)

        self.links: dict[Link, list[_Job]] = {link(name): [] for name in judges(settings)}

    def start(self) -> None:
        """Watch over the workers; those of a supervisor are reached at once."""
        self._keep(self._watch())
        if self._supervised:
            self._wake()

    async def stop(self) -> None:
        """Let go of the workers."""
        for task in self._tasks:
            task.cancel()
        for link in self.links:
            await link.stop()

    async def judge(self, message: dict[str, Any], content: bytes, seconds: float) -> Message:
        """What a worker says of a picture.

        Raises
        ------
        TimeoutError
            If none did within that time.
        """
        self._used(message["model"])
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        job = _Job(message | {"do": "judge"}, content, answer)
        self._queue.append(job)
        self._wake()
        self._pump()
        return await asyncio.wait_for(job.answer, max(0.0, seconds))

    async def warm(self, model: Model) -> None:
        """Have all workers that are there open a model; one is waited for.

        Raises
        ------
        OffnominalError
            If it cannot be used.
        """
        self._wake()
        until = time.monotonic() + self._settings.deadline
        while not any(link.connected for link in self.links) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        asked = [link.ask({"do": "warm", "model": model}) for link in self.links if link.connected]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, tuple) and "error" in answer[0]:
                raise OffnominalError(answer[0]["error"])
        self._used(model)

    def _wake(self) -> None:
        for link in self.links:
            link.wake()

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _used(self, model: Model) -> None:
        self._models[model["digest"]] = model
        self._models.move_to_end(model["digest"])
        while len(self._models) > self._settings.models:
            self._models.popitem(last=False)

    def _pump(self) -> None:
        """Hand out what waits to workers that have room; called whenever something changed."""
        self._tell()
        for link, flying in self.links.items():
            if not link.connected:
                self._met.discard(link)
                flying.clear()  # each has heard of it by its own future
            elif link not in self._met:
                self._met.add(link)
                self._greet(link)
        while self._queue:
            job = self._queue[0]
            if job.answer.done():  # its deadline passed
                self._queue.popleft()
                continue
            free = self._free(alone=job.deaths > 0)
            if free is None:
                return
            self._queue.popleft()
            self._send(free, job)

    def _tell(self) -> None:
        """Say whether anybody is there to judge; workers of our own come when they are needed."""
        there = sum(link.connected for link in self.links)
        asked = self._supervised or any(link.deaths for link in self.links)
        words = f"{there} of {len(self.links)}"
        self._state.tell("workers", there > 0 or not asked, words)

    def _free(self, alone: bool) -> Link | None:
        """The worker with the most room.

        A job that a worker died of is given alone: of those that it had at that time nobody knows
        which one it was.
        """
        there = [
            (len(flying), link)
            for link, flying in self.links.items()
            if link.connected and not any(job.deaths for job in flying)
        ]
        room = [(count, link) for count, link in there if count < (1 if alone else _AHEAD)]
        return min(room, key=lambda one: one[0])[1] if room else None

    def _send(self, link: Link, job: _Job) -> None:
        job.sent = time.monotonic()
        self.links[link].append(job)
        future = link.ask(job.message, job.content)
        future.add_done_callback(lambda done: self._came_back(link, job, done))

    def _came_back(self, link: Link, job: _Job, done: "asyncio.Future[Message]") -> None:
        flying = self.links[link]
        if job in flying:
            flying.remove(job)
        error = None if done.cancelled() else done.exception()
        if error is None:
            took = (time.monotonic() - job.sent) / (len(flying) + 1)
            self.seconds += 0.1 * (took - self.seconds)
            if not job.answer.done():
                job.answer.set_result(done.result())
        elif not job.answer.done():
            job.deaths += 1
            if job.deaths >= _LIVES:
                facts = {"verdict": "not-inspected", "reason": reason("worker")}
                job.answer.set_result((facts, None))
            else:
                self._queue.appendleft(job)
        self._pump()

    def _greet(self, link: Link) -> None:
        """A worker is there, or there again: it opens the models that were used last."""
        for model in self._models.values():
            _open(link, model)
        if not self._models and self._supervised:
            self._keep(self._warm_live())

    async def _warm_live(self) -> None:
        """Open the models of products that are live, after a start."""
        for model in await asyncio.to_thread(self._live):
            for link in self.links:
                if link.connected:
                    _open(link, model)

    async def _watch(self) -> None:
        """End workers that say nothing although they have something to do."""
        while True:
            await asyncio.sleep(1)
            limit = max(_LONG, _STUCK * self._settings.deadline)
            for link in self.links:
                if link.pending and time.monotonic() - link.heard > limit:
                    link.kill()
            self._pump()


def _open(link: Link, model: Model) -> None:
    """Have a model opened; if that fails, it is told with the first picture."""
    link.ask({"do": "warm", "model": model}).add_done_callback(lambda done: done.exception())
