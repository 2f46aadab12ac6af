"""Everything that tells others, while the station runs."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import sqlalchemy as sa

from offnominal.station.outputs import files, modbus, mqtt, opcua, webhook
from offnominal.station.outputs.settings import (
    FilesSettings,
    ModbusSettings,
    MqttSettings,
    OpcUaSettings,
    OutputSettings,
    WebhookSettings,
)
from offnominal.station.outputs.signals import Signals
from offnominal.station.station import Station
from offnominal.station.store.tables import Delivery
from offnominal.station.tasks import together
from offnominal.station.watch import watch

__all__ = ["running"]

log = logging.getLogger(__name__)


@asynccontextmanager
async def running(station: Station) -> AsyncIterator[None]:
    """Deliver while the block lasts.

    Raises
    ------
    MissingExtraError
        If an output needs a package that is not installed.
    """
    outputs = station.settings.outputs
    names = [one.name for one in outputs]
    await asyncio.to_thread(_forget_others, station, names)
    signals = Signals(station)
    works = {f"output {one.name}": partial(_work, station, signals, one) for one in outputs}
    own: dict[str, Callable[[], Awaitable[None]]] = {
        "signals": signals.follow,
        "watch": partial(watch, station),
    }
    async with together(station, own | works):
        yield


async def _work(station: Station, signals: Signals, output: OutputSettings) -> None:
    match output:
        case WebhookSettings():
            await webhook.run(station, output)
        case MqttSettings():
            await mqtt.run(station, output)
        case FilesSettings():
            await files.run(station, output)
        case ModbusSettings():
            await modbus.run(signals, output)
        case OpcUaSettings():
            await opcua.run(signals, output)


def _forget_others(station: Station, names: list[str]) -> None:
    """Nobody is owed any more what was owed by an output that the settings do not have."""
    others = Delivery.output.not_in(names)
    with station.database.writing() as session:
        count = session.scalar(sa.select(sa.func.count()).where(others))
        session.execute(sa.delete(Delivery).where(others))
    if count:
        log.warning("%d results were owed by outputs that the settings no longer have", count)
