"""Work that is cut into shards: handed out, ticked off, and halved where it kills its workers.

A worker writes what it made of a shard by itself; the driver hears a name. So nothing is lost by
the death of any process, and a rerun does what is missing.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

__all__ = ["MOST", "Died", "Engine", "Function", "Shard", "cut", "run_shards"]

MOST = 256
"""Images of a shard, at most."""

_FIRST = ((1024, 16), (8192, 64))  # shards below these items are of so many
_DEATHS = 3  # of workers, before a shard is halved


@dataclass(frozen=True)
class Shard:
    """Some of the items of a run, one after the other.

    Attributes
    ----------
    start : int
        Number of the first among all items.
    items : tuple of str
        Names of images, or of whatever else is worked at.
    stamps : tuple of str
        What tells each item from another that took its name.
    """

    start: int
    items: tuple[str, ...]
    stamps: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its part's: by names the parts lie in the order of the items.

        Another list of items, or a changed file, gives another name.
        """
        told = "\0".join((*self.items, *self.stamps)).encode("utf-8", "surrogateescape")
        digest = hashlib.sha256(told).hexdigest()[:12]
        return f"{self.start:012d}-{len(self.items):03d}-{digest}"

    def halves(self) -> tuple["Shard", "Shard"]:
        """Two shards of half the items, of one that has several."""
        middle = len(self.items) // 2
        first = Shard(self.start, self.items[:middle], self.stamps[:middle])
        return first, Shard(self.start + middle, self.items[middle:], self.stamps[middle:])


@dataclass(frozen=True)
class Died:
    """The process that worked at a shard is no more."""

    reason: str


class Function(Protocol):
    """What workers do. It travels to them, so it holds plain values."""

    def begin(self) -> None:
        """Make ready, once in each worker, before the first shard."""

    def __call__(self, shard: Shard) -> Any:
        """Work at a shard and write its part; what is returned is small."""


class Engine(Protocol):
    """Who runs workers."""

    def start(self, function: Function) -> None:
        """Start them."""

    @property
    def free(self) -> int:
        """How many wait for a shard."""

    def submit(self, shard: Shard) -> None:
        """Give a shard to one that waits."""

    def wait(self) -> list[tuple[Shard, Any]]:
        """Shards that were worked at, with what was returned, or :class:`Died`.

        An empty list where a worker became free. An error of the function is raised.
        """

    def close(self) -> None:
        """End them."""


def cut(
    items: Iterable[str], stamp: Callable[[str], str], most: int | None = None
) -> Iterator[Shard]:
    """Shards of items, which are taken as they are asked for.

    The first are small, so that a short list is shared out as well; ``most``: all of this length.
    They do not depend on the number of workers, so a rerun with more of them goes on.
    """
    start, source = 0, iter(items)
    while some := tuple(islice(source, most or _length(start))):
        yield Shard(start, some, tuple(map(stamp, some)))
        start += len(some)


def _length(start: int) -> int:
    return next((length for end, length in _FIRST if start < end), MOST)


def run_shards(
    function: Function,
    shards: Iterable[Shard],
    engine: Engine,
    is_there: Callable[[Shard], bool],
    is_written: Callable[[Shard], bool],
    give_up: Callable[[Shard, str], Any],
) -> Iterator[tuple[Shard, Any]]:
    """Work at shards, each once; a worker that dies is replaced, and its shard is tried again.

    A shard that was there when three workers died is halved, and so are its halves, down to the
    single item that kills: that one is given up.

    Parameters
    ----------
    function : Function
    shards : iterable of Shard
        Taken as workers become free.
    engine : Engine
    is_there : callable
        Whether a shard's part was written before.
    is_written : callable
        Whether it is now, asked after a death: the worker may have died with its work done.
    give_up : callable
        Given a shard of one item, and how its workers died; what it returns stands for the work.

    Yields
    ------
    shard, result
        As they end, in no order; None for what was there.
    """
    source, waiting = iter(shards), deque[Shard]()
    deaths: Counter[str] = Counter()
    shard: Shard | None = None
    busy, started = 0, False
    with closing(engine):
        while True:
            if shard is None:
                shard = waiting.popleft() if waiting else next(source, None)
                if shard is not None and is_there(shard):
                    yield shard, None
                    shard = None
                    continue
            if shard is None and not busy:
                return
            if shard is not None and not started:  # where all is there, nobody need start
                engine.start(function)
                started = True
            if shard is not None and engine.free:
                engine.submit(shard)
                shard, busy = None, busy + 1
                continue
            for ended, result in engine.wait():
                busy -= 1
                if not isinstance(result, Died):
                    yield ended, result
                    continue
                deaths[ended.name] += 1
                if is_written(ended):
                    yield ended, None
                elif deaths[ended.name] < _DEATHS:
                    waiting.append(ended)
                elif len(ended.items) > 1:
                    waiting.extend(ended.halves())
                else:
                    yield ended, give_up(ended, result.reason)
