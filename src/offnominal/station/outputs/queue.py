"""What outputs owe: rows that stand until they were delivered, in order, whatever happens between.

A delivery is a row of the transaction that stores its inspection (``inspection.record``), so that
there is never one without the other. Each output has a dispatcher, which takes its rows in order
and deletes them when the receiver has taken them: at least once, and once unless the process is
killed in between, for which messages carry an id that stays the same.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from offnominal.station.outputs.message import message
from offnominal.station.outputs.settings import Queued
from offnominal.station.state import State
from offnominal.station.station import Station
from offnominal.station.store.tables import Delivery, Inspection

__all__ = ["Queue", "Send", "delivery_id", "each"]

log = logging.getLogger(__name__)

Send = Callable[[list[dict[str, Any]]], Awaitable[None]]
"""Delivers messages, and takes each out of the list as soon as the receiver has it."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds
_LOOK = 60.0  # seconds without a sign after which the table is looked at all the same


def delivery_id(output: str, request: str) -> str:
    """What a receiver knows a message by: the same each time it is sent."""
    return hashlib.sha256(f"{output}\n{request}".encode()).hexdigest()[:32]


async def each(
    messages: list[dict[str, Any]], send: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    """Send messages one by one."""
    while messages:
        await send(messages[0])
        del messages[0]


def pause_after(attempts: int) -> float:
    """Seconds until the next attempt: twice as long each time, with a share of chance."""
    longest = min(_FIRST_PAUSE * 2 ** min(attempts - 1, 20), _LONGEST_PAUSE)
    return float(longest * random.uniform(0.5, 1.0))


class Queue:
    """What one output owes, and its dispatcher.

    Parameters
    ----------
    station : Station
    settings : WebhookSettings, MqttSettings or FilesSettings
    batch : int
        Messages that are handed to ``send`` at once, and deleted together.
    every : float
        Seconds between two batches that are not full.
    """

    def __init__(
        self, station: Station, settings: Queued, batch: int = 1, every: float = 0.0
    ) -> None:
        self.station, self.settings, self.batch, self.every = station, settings, batch, every
        self.dropped = 0
        self._name = f"output {settings.name}"
        self._state: State = station.state

    async def run(self, connect: "Callable[[], AbstractAsyncContextManager[Send]]") -> None:
        """Deliver until cancelled.

        Parameters
        ----------
        connect : callable
            Gives a context that holds a connection, and in it how to send.
        """
        attempts = 0
        while True:
            try:
                async with connect() as send:
                    async for _ in self._deliver(send):
                        attempts = 0
                        self._tell(True)
            except Exception as error:  # whatever a receiver does, the next attempt comes
                if (task := asyncio.current_task()) and task.cancelling():
                    raise  # it failed while it was being stopped
                attempts += 1
                words = _words(error)
                self._tell(False, words)
                pause = pause_after(attempts)
                log.warning("%s: %s; again in %.1f s", self._name, words, pause)
                try:
                    await asyncio.to_thread(self._failed, words, pause)
                except SQLAlchemyError as trouble:  # the records are what is away
                    log.warning("%s: could not be noted: %s", self._name, trouble)
                await asyncio.sleep(pause)

    async def _deliver(self, send: Send) -> AsyncIterator[None]:
        """Send what is owed as it comes; a step for each time that the receiver was fine."""
        with self.station.events.watching() as events:
            while True:
                rows = await asyncio.to_thread(self._next)
                if rows:
                    left = [message for _, message in rows]
                    try:
                        await send(left)
                    finally:
                        # Also when the station stops now: what was taken is not sent again.
                        taken = [number for number, _ in rows[: len(rows) - len(left)]]
                        await asyncio.shield(asyncio.to_thread(self._delete, taken))
                yield
                if len(rows) == self.batch:
                    continue
                if self.every:
                    await asyncio.sleep(self.every)
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        while (await events.get()).kind != "inspection":
                            pass

    def _tell(self, ok: bool, words: str = "") -> None:
        dropped = f"{self.dropped} results were dropped" if self.dropped else ""
        told = "; ".join(filter(None, (words, dropped)))
        self._state.tell(self._name, ok, told, blinds=False)

    # -- in threads ---------------------------------------------------------------------------

    def _next(self) -> list[tuple[int, dict[str, Any]]]:
        query = (
            sa.select(Delivery.id, Inspection)
            .join(Inspection, Inspection.id == Delivery.inspection_id)
            .where(Delivery.output == self.settings.name)
            .order_by(Delivery.id)
            .limit(self.batch)
        )
        with self.station.database.reading() as session:
            return [(number, message(found)) for number, found in session.execute(query)]

    def _delete(self, numbers: list[int]) -> None:
        if numbers:
            with self.station.database.writing() as session:
                session.execute(sa.delete(Delivery).where(Delivery.id.in_(numbers)))

    def _failed(self, words: str, pause: float) -> None:
        """Note it on the row that could not be delivered; drop what is too much."""
        own = Delivery.output == self.settings.name
        oldest = sa.select(sa.func.min(Delivery.id)).where(own).scalar_subquery()
        again = datetime.now(UTC) + timedelta(seconds=pause)
        with self.station.database.writing() as session:
            noted = {"attempts": Delivery.attempts + 1, "next": again, "error": words[:500]}
            session.execute(sa.update(Delivery).where(Delivery.id == oldest).values(noted))
            count = session.scalar(sa.select(sa.func.count()).where(own)) or 0
            if count <= self.settings.keep:
                return
            edge = sa.select(Delivery.id).where(own).order_by(Delivery.id)
            last = session.scalar(edge.offset(count - self.settings.keep).limit(1))
            session.execute(sa.delete(Delivery).where(own, Delivery.id < last))
        self.dropped += count - self.settings.keep
        self.station.metrics.dropped.labels(self.settings.name).inc(count - self.settings.keep)
        log.error(
            "%s: dropped the %d oldest results, beyond the %d that it may owe",
            *(self._name, count - self.settings.keep, self.settings.keep),
        )


def _words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
