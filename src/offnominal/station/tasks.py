"""Tasks that go on for as long as the station does."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from offnominal.station.station import Station

__all__ = ["together"]

log = logging.getLogger(__name__)

_PAUSE = 2.0  # seconds until what ended begins again, and until it is believed


@asynccontextmanager
async def together(
    station: Station, works: dict[str, Callable[[], Awaitable[None]]]
) -> AsyncIterator[None]:
    """Run them while the block lasts; one that fails is logged, blinds the station, begins again.

    Works mend what can be expected to go wrong themselves. What is left is records that cannot be
    reached, or a fault of the program, and no part may pass unseen because of it.
    """

    async def watched(name: str, work: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        well = None
        while True:
            try:
                await work()
                return
            except Exception as error:
                log.exception("%s ended", name)
                if well is not None:
                    well.cancel()
                station.state.tell(name, False, f"ended: {type(error).__name__}: {error}")
            await asyncio.sleep(_PAUSE)
            # What works again says so itself, or has nothing to say but that.
            well = loop.call_later(_PAUSE, station.state.forget_trouble, name, "ended: ")

    tasks = [asyncio.create_task(watched(name, work), name=name) for name, work in works.items()]
    await asyncio.sleep(0)  # those who watch events do so before the first one
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=10)
