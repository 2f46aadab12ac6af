"""Several questions in flight, their answers in order."""

from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from anyio import Lock, Semaphore, to_thread
from anyio.from_thread import start_blocking_portal

from offnominal.errors import ImageError

__all__ = ["in_order"]

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")


def in_order(
    items: Iterable[T],
    prepare: Callable[[T], P],
    work: Callable[[P], Awaitable[R]],
    concurrency: int,
    resource: AbstractAsyncContextManager[Any],
) -> Generator[tuple[T, R | None, ImageError | None], None, None]:
    """Do `work` on items, several at a time, and keep their order.

    As :func:`offnominal.prefetch.prefetch`, but for work that waits for a network: when the
    consumer stops (``break``, an exception, Ctrl-C), what is under way is broken off at once, where
    threads would have to wait for their replies.

    Parameters
    ----------
    items : iterable
        Taken one by one, at most 2 `concurrency` beyond the one that the consumer holds. Only ever
        advanced by the consumer's thread.
    prepare : callable
        Run on a thread, on one item after the other and in their order, so that the next ones are
        ready when their turn comes.
    work : callable
        Started in the order of the items, on what `prepare` made of each; at most `concurrency` at
        a time. Tasks of one event loop, on a thread of its own, so that it does not matter whether
        the consumer has a loop already, as a notebook does.
    concurrency : int
    resource : asynchronous context manager
        Open while there is work; entered and left on the loop.

    Yields
    ------
    item, result, error
        In the order of `items`; one of the last two is None. Any other exception than an
        ImageError, of `work` or of `items`, is raised at its turn.
    """
    line, free = Lock(), Semaphore(concurrency)

    async def one(item: T) -> R:
        async with line:  # first come, first served
            prepared = await to_thread.run_sync(prepare, item)
            await free.acquire()
        try:
            return await work(prepared)
        finally:
            free.release()

    waiting: deque[tuple[T, Future[R]]] = deque()
    source = iter(items)
    broken: Exception | None = None
    exhausted = False
    with (
        start_blocking_portal(name="offnominal-chat") as portal,
        portal.wrap_async_context_manager(resource),
    ):
        try:
            while True:
                while len(waiting) < 2 * concurrency and not exhausted:
                    try:
                        item = next(source)
                    except StopIteration:
                        exhausted = True
                    except Exception as error:
                        exhausted, broken = True, error
                    else:
                        waiting.append((item, portal.start_task_soon(one, item)))
                if not waiting:
                    break
                result: R | None = None
                failure: ImageError | None = None
                try:
                    result = waiting[0][1].result()
                except ImageError as error:
                    # As in `prefetch`: tracebacks hold their frames, and those the image.
                    error.__cause__ = error.__context__ = None
                    failure = error.with_traceback(None)
                yield waiting.popleft()[0], result, failure
            if broken is not None:
                raise broken
        finally:
            for _, future in waiting:
                future.cancel()
