"""Reading ahead on threads: the next images are decoded while the present one is scored."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from offnominal.errors import ImageError, OptionError

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    items: Iterable[T], work: Callable[[T], R], workers: int = 2, ahead: int = 4
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
    return _prefetch(items, work, workers, ahead)


def _prefetch(
    items: Iterable[T], work: Callable[[T], R], workers: int, ahead: int
) -> Generator[tuple[T, R | None, ImageError | None], None, None]:
    with ThreadPoolExecutor(workers, thread_name_prefix="offnominal-prefetch") as pool:
        yield from in_order(items, lambda item: pool.submit(work, item), ahead)


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
) -> Generator[tuple[T, R], None, None]:
    """:func:`prefetch` where errors are handed to ``on_error``, or raised where there is none."""
    for item, result, error in prefetch(items, work):
        if error is None:
            assert result is not None
            yield item, result
        elif on_error is None:
            raise error
        else:
            on_error(error)
