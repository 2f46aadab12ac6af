"""What a PLC sees: the last result, counters, and whether the station can be relied on."""

import asyncio
import math
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from offnominal.station.events import Events
from offnominal.station.inspection import recipes
from offnominal.station.station import Station
from offnominal.station.watch import Sight

__all__ = ["COILS", "REGISTERS", "Signals", "words_of"]

COILS = ("reject", "good", "not inspected", "line stop", "ready", "fault", "new result")
"""By address."""
REGISTERS = {
    "heartbeat": 0,
    "results": 1,
    "recipe": 2,
    "verdict": 3,
    "score in thousandths of the threshold": 4,
    "score": 5,
    "good": 7,
    "reject": 9,
    "not inspected": 11,
    "milliseconds": 13,
    "inspection": 14,
}
"""Addresses; ``score`` is a float32 of two registers, the counts and ``inspection`` have two."""

_VERDICTS = {"good": 1, "reject": 2, "not-inspected": 3}


@dataclass
class Signals:
    """The state of the signals; counts begin with the process.

    Parameters
    ----------
    station : Station
    """

    station: Station
    beats: int = 0
    results: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_VERDICTS, 0))
    last: dict[str, Any] | None = None
    """The message of the last result that the line was told."""
    recipe: int = 0
    events: Events = field(default_factory=Events)
    """``result`` with its message, ``state``, ``beat``: when there is something new to show."""

    async def follow(self) -> None:
        """Keep up with the station until cancelled."""
        sight = Sight(self.station)
        with self.station.events.watching() as events:
            await self._read_recipe()
            beat = asyncio.create_task(self._beat())
            try:
                while True:
                    event = await events.get()
                    if event.kind == "state":
                        self.events.publish("state")
                    elif event.kind == "recipe":
                        await self._read_recipe()
                        self.events.publish("state")
                    elif event.kind == "inspection":
                        told = event.data["message"]
                        self.station.metrics.seen(told)
                        sight.seen(told)
                        self.take(told)
            finally:
                beat.cancel()
                with suppress(asyncio.CancelledError):
                    await beat

    async def _beat(self) -> None:
        while True:
            self.beats += 1
            self.events.publish("beat")
            await asyncio.sleep(self.station.settings.heartbeat)

    async def _read_recipe(self) -> None:
        product = await recipes.active(self.station)
        self.recipe = (product.number or 0) if product is not None else 0

    def take(self, told: dict[str, Any]) -> None:
        """A result is there. In shadow mode the line is told nothing, and sees nothing of it."""
        if told["told"] == "nothing":
            return
        self.last = told
        self.results += 1
        self.counts[told["verdict"]] += 1
        self.events.publish("result", message=told)

    def coils(self) -> list[bool]:
        """As :data:`COILS` names them.

        While the station is blind no part is good, whatever the last one was.
        """
        blind = self.station.state.blind
        told = self.last["told"] if self.last else ""
        verdict = self.last["verdict"] if self.last else ""
        fail_safe = self.station.settings.fail_safe
        return [
            (told == "reject") or (blind and fail_safe == "reject"),
            (told == "good") and not blind,
            verdict == "not-inspected",
            (told == "stop") or (blind and fail_safe == "stop"),
            not blind,
            blind,
            self.results % 2 == 1,
        ]

    def registers(self) -> list[int]:
        """As :data:`REGISTERS` places them, each on [0, 65535]."""
        last = self.last or {}
        score, threshold = last.get("score"), last.get("threshold")
        ratio = 0
        if score is not None and threshold is not None and threshold > 0:
            ratio = min(round(1000 * max(score, 0.0) / threshold), 65535)
        return [
            self.beats % 65536,
            self.results % 65536,
            self.recipe % 65536,
            _VERDICTS.get(last.get("verdict", ""), 0),
            ratio,
            *words_of(score if score is not None else math.nan),
            *(word for count in self.counts.values() for word in divmod(count % 2**32, 65536)),
            min(round(last.get("milliseconds", 0)), 65535),
            *divmod(last.get("id", 0) % 2**32, 65536),
        ]


def words_of(value: float) -> tuple[int, int]:
    """A float32 as two registers, the high word first."""
    high, low = struct.unpack(">HH", struct.pack(">f", value))
    return high, low
