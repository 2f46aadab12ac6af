"""What happens now, to pages that are open: server-sent events with a heartbeat."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent

from offnominal.station.access.who import Who, allowed
from offnominal.station.pages.facts import what_blinds
from offnominal.station.station import Here, Station

__all__ = ["BEAT", "happening", "router"]

router = APIRouter()

BEAT = 2.0
"""Seconds between two signs of life; a page that misses three of them says that it is blind."""
# Whoever is logged out, or whose session ran out, is not told for longer than that.
_LONGEST = 300.0


async def happening(
    station: Station, beat: float = BEAT, longest: float = _LONGEST
) -> AsyncIterator[ServerSentEvent]:
    """Events as they come, and a heartbeat that says in which state the station is.

    The stream ends after a while, and the browser comes back: it is then asked again who it is.
    """
    end = time.monotonic() + longest
    with station.events.watching() as queue:
        yield ServerSentEvent(event="beat", data=_beat(station), retry=1000)
        due = time.monotonic() + beat
        while (now := time.monotonic()) < end:
            try:
                async with asyncio.timeout(max(0.0, due - now)):
                    event = await queue.get()
            except TimeoutError:
                due = time.monotonic() + beat
                yield ServerSentEvent(event="beat", data=_beat(station))
            else:
                sign = {name: one for name, one in event.data.items() if name != "message"}
                yield ServerSentEvent(event=event.kind, data=sign)


def _beat(station: Station) -> dict[str, Any]:
    return {"blind": station.state.blind, "why": what_blinds(station.state)}


@router.get("/events", response_class=EventSourceResponse)
async def events(
    station: Here, who: Annotated[Who, Depends(allowed("operator"))]
) -> AsyncIterator[ServerSentEvent]:
    """The stream; for who is logged in."""
    async for event in happening(station):
        yield event
