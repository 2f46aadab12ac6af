"""Watching what blinds a station: a full queue, pictures of nothing, models that are no use."""

import asyncio
from collections import Counter
from typing import Any

from offnominal.station.inspection.reasons import code_of
from offnominal.station.station import Station

__all__ = ["Sight", "watch"]

_PAUSE = 0.2  # seconds between two looks
_SIGHT = {"dark", "bright", "blurred", "frozen", "moved", "size", "model", "no-threshold"}
_IN_A_ROW = 3  # pictures; a single one may be of a hand


async def watch(station: Station) -> None:
    """Keep the fact ``queue`` until cancelled."""
    while True:
        full = station.inspector.waiting >= station.settings.queue
        station.state.tell("queue", not full, "it is full" if full else "")
        await asyncio.sleep(_PAUSE)


class Sight:
    """Whether what sources deliver can be inspected; facts ``sight SOURCE``.

    Parameters
    ----------
    station : Station
    """

    def __init__(self, station: Station) -> None:
        self._station = station
        self._faults: Counter[str] = Counter()

    def seen(self, message: dict[str, Any]) -> None:
        """A result is there: several faults in a row blind the station, until one is inspected."""
        source = message["source"]
        if message["verdict"] != "not-inspected":
            if self._faults.pop(source, 0) >= _IN_A_ROW:
                self._station.state.tell(f"sight {source}", True)
        elif code_of(message["reason"]) in _SIGHT and message["told"] != "nothing":
            self._faults[source] += 1
            if self._faults[source] >= _IN_A_ROW:
                self._station.state.tell(f"sight {source}", False, message["reason"])
