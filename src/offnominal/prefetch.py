"""Reading ahead on threads: the next images are decoded while the present one is scored."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from offnominal.errors import ImageError, OptionError

T = TypeVar("T")
R = TypeVar("R")


IN_FLIGHT = 2**30
"""Bytes that results ahead of the consumer, and those in work, may take together."""


def prefetch(
    items: Iterable[T],
    work: Callable[[T], R],
    workers: int = 2,
    ahead: int = 4,
    weigh: Callable[[T], int] | None = None,
) -> Generator[tuple[T, R | None, ImageError | None], None, None]:
    """Apply `work` to items on threads, a few items ahead of the consumer, and keep their order.

    Parameters
    ----------
    items : iterable
        Taken one by one, never more than `ahead` beyond the one the consumer holds. It is only
        ever advanced by the consumer's thread.
    work : callable
        Run on the threads, so it should spend its time outside the interpreter's lock, as
        decoding and resizing do.
    workers : int
        Threads, at least 1.
    ahead : int
        Items in work or waiting, at least 1. Memory is bounded by `ahead` + 1 results.
    weigh : callable or None
        Bytes that `work` needs for an item, found out on the threads and at little cost. No item
        is begun that would bring those in work, waiting and with the consumer above `IN_FLIGHT`
        together; a single one may take more.

    Yields
    ------
    item, result, error
        In the order of `items`: ``(item, work(item), None)``, or ``(item, None, error)`` where
        `work` raised an ImageError. Any other exception, of `work` or of `items`, is raised at its
        turn, after everything before it has been yielded.

    Raises
    ------
    OptionError
        If `workers` or `ahead` is below 1.

    Notes
    -----
    When the consumer stops early (``break``, an exception, Ctrl-C, ``close()``), waiting items are
    dropped, those in work are finished, and the threads end.
    """
    for option, value in (("workers", workers), ("ahead", ahead)):
        if value < 1:
            raise OptionError(f"{option}={value}: expected at least 1")
    return _prefetch(items, work, workers, ahead, weigh)


def _prefetch(
    items: Iterable[T],
    work: Callable[[T], R],
    workers: int,
    ahead: int,
    weigh: Callable[[T], int] | None,
) -> Generator[tuple[T, R | None, ImageError | None], None, None]:
    gate = _Gate()

    def weighed(item: T, turn: int) -> R:
        size = 0
        try:
            size = weigh(item) if weigh else 0
        finally:
            gate.enter(turn, size)
        return work(item)

    turns = itertools.count()
    with ThreadPoolExecutor(workers, thread_name_prefix="offnominal-prefetch") as pool:
        try:
            started = in_order(items, lambda one: pool.submit(weighed, one, next(turns)), ahead)
            with closing(started):
                for found in started:
                    yield found
                    del found
                    gate.leave()
        finally:
            gate.open()


class _Gate:
    """Lets items in by turns, as long as those inside leave room; they leave in the same order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turn = 0
        self._inside: deque[int] = deque()
        self._is_open = False

    def enter(self, turn: int, size: int) -> None:
        """Wait for the turn and for room; whoever comes when nobody is inside has room."""

        def free() -> bool:
            held = sum(self._inside)
            return turn == self._turn and (held == 0 or held + size <= IN_FLIGHT)

        with self._changed:
            self._changed.wait_for(lambda: self._is_open or free())
            self._turn += 1
            self._inside.append(size)
            self._changed.notify_all()

    def leave(self) -> None:
        """The one that has been inside for longest goes."""
        with self._changed:
            self._inside.popleft()
            self._changed.notify_all()

    def open(self) -> None:
        """Nobody needs to wait any longer."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()


def in_order(
    items: Iterable[T], submit: Callable[[T], "Future[R]"], ahead: int
) -> Generator[tuple[T, R | None, ImageError | None], None, None]:
    """What becomes of items that are handed to `submit`, in the order of the items.

    Parameters
    ----------
    items, ahead
        As for `prefetch`.
    submit : callable
        Starts the work on one item. What is not done when the consumer stops is cancelled.

    Yields
    ------
    item, result, error
        As `prefetch` does.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    source = iter(items)
    failure: Exception | None = None
    exhausted = False

    def fill() -> None:
        nonlocal exhausted, failure
        while len(waiting) < ahead and not exhausted:
            try:
                item = next(source)
            except StopIteration:
                exhausted = True
            except Exception as error:
                exhausted, failure = True, error
            else:
                waiting.append((item, submit(item)))

    try:
        fill()
        while waiting:
            settled = _settle(*waiting[0])
            waiting.popleft()
            fill()
            yield settled
            del settled  # while the next one is made, this one is the consumer's alone
        if failure is not None:
            raise failure
    finally:
        for _, future in waiting:
            future.cancel()


def _settle(item: T, future: "Future[R]") -> tuple[T, R | None, ImageError | None]:
    try:
        return item, future.result(), None
    except ImageError as error:
        # Tracebacks hold their frames, and those the half-decoded image: a caller that keeps ten
        # thousand errors would keep ten thousand images.
        error.__cause__ = error.__context__ = None
        return item, None, error.with_traceback(None)


def read_ahead(
    items: Iterable[T],
    work: Callable[[T], R],
    on_error: Callable[[ImageError], None] | None = None,
    weigh: Callable[[T], int] | None = None,
) -> Generator[tuple[T, R], None, None]:
    """:func:`prefetch` where errors are handed to ``on_error``, or raised where there is none."""
    for item, result, error in prefetch(items, work, weigh=weigh):
        if error is None:
            assert result is not None
            yield item, result
            del result
        elif on_error is None:
            raise error
        else:
            on_error(error)
