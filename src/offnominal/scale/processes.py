"""Workers that are processes of this machine, each replaced when it dies."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from offnominal.scale.failures import Failed, StartDeaths
from offnominal.scale.shards import Died, Function, Shard

__all__ = ["Processes", "in_words", "undisturbed"]

_READY = "ready"
_SECONDS = 5.0  # for a worker to end by itself


class _Worker:
    """A process with a pipe to it, and the shard that it is at."""

    def __init__(self, function: Function) -> None:
        # Not forked: threads of torch and of an object store's client do not survive that, and a
        # worker must not hold the pipes of others, by whose end they learn that the driver died.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, function), name="offnominal-worker"
        )
        with undisturbed():
            self.process.start()
        theirs.close()
        self.shard: Shard | None = None
        self.ready = False


class Processes:
    """A number of processes; see :class:`.shards.Engine`.

    Parameters
    ----------
    workers : int
        Each computes with its share of the cores, or with ``OMP_NUM_THREADS`` threads where that
        is set.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._all: list[_Worker] = []
        self._deaths = StartDeaths()
        self._function: Function | None = None

    def start(self, function: Function) -> None:
        """Start the processes."""
        self._function = function
        with _threads(max(1, _cores() // self.workers)):
            for _ in range(self.workers):
                self._all.append(_Worker(function))

    @property
    def free(self) -> int:
        """Processes that are ready and have no shard."""
        return sum(one.ready and one.shard is None for one in self._all)

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes, for whoever watches over them."""
        return [one.process.pid or 0 for one in self._all]

    def submit(self, shard: Shard) -> None:
        """Give a shard to a process that waits."""
        worker = next(one for one in self._all if one.ready and one.shard is None)
        worker.shard = shard
        with suppress(OSError):  # it died as it waited: reading from the pipe says so
            worker.pipe.send(shard)

    def wait(self) -> list[tuple[Shard, Any]]:
        """What processes say, as soon as one of them does."""
        assert self._function is not None
        ended: list[tuple[Shard, Any]] = []
        pipes = {one.pipe: one for one in self._all}
        for pipe in wait(list(pipes)):
            worker = pipes[pipe]  # type: ignore[index]  # nothing but these was waited for
            try:
                told = worker.pipe.recv()
            except (EOFError, OSError):
                ended += self._replace(worker)
                continue
            if isinstance(told, Failed):
                raise told.again()
            if told == _READY and not worker.ready:
                worker.ready = True
                self._deaths.ready()
            elif worker.shard is not None:
                ended.append((worker.shard, told))
                worker.shard = None
        return ended

    def close(self) -> None:
        """Let the processes end: each when its shard is written; what does not end is killed."""
        for one in self._all:
            one.pipe.close()
        for one in self._all:
            one.process.join(_SECONDS)
            if one.process.is_alive():
                one.process.kill()
                one.process.join()
        self._all = []

    def _replace(self, worker: _Worker) -> list[tuple[Shard, Any]]:
        """Another process in the place of one that died; the shard that it was at."""
        assert self._function is not None
        worker.pipe.close()
        worker.process.join()
        reason = in_words(worker.process.exitcode)
        if not worker.ready:
            self._deaths.died(reason)
        self._all.remove(worker)
        with _threads(max(1, _cores() // self.workers)):
            self._all.append(_Worker(self._function))
        return [] if worker.shard is None else [(worker.shard, Died(reason))]


def _work(pipe: Connection, function: Function) -> None:
    """A worker's whole life: it ends with its driver, whose end of the pipe closes then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the driver's to answer
    told: Any
    try:
        function.begin()
        told = _READY
    except Exception as error:
        told = Failed(error)
    while True:
        try:
            pipe.send(told)
            shard = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            told = function(shard)
        except Exception as error:
            told = Failed(error)


def in_words(code: int | None) -> str:
    """How a process ended."""
    if code is not None and code < 0:
        try:
            return f"ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"ended by signal {-code}"
    return f"ended with code {code}"


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def undisturbed() -> Iterator[None]:
    """A process that is started meanwhile hears of no Ctrl-C, which its driver answers.

    From its first moment on, before it could say so itself; where a system has no such masks, from
    then on.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Processes that are started meanwhile compute with so many threads, unless others say."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
