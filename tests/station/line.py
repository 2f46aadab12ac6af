"""A station with a product and stored results, for what stands around it on a line."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image

from offnominal.station.outputs.message import message
from offnominal.station.outputs.settings import queued
from offnominal.station.settings import Settings
from offnominal.station.station import Station
from offnominal.station.store.tables import Delivery, Inspection, Product


@asynccontextmanager
async def a_station(folder: Path, **settings: Any) -> AsyncIterator[Station]:
    """A station with a product; outputs are not running yet."""
    station = Station(Settings(folder=folder, heartbeat=0.05, **settings))
    station.database.upgrade()
    with station.database.writing() as session:
        if session.get(Product, 1) is None:
            session.add(Product(id=1, name="tile", number=7, created=datetime.now(UTC)))
    await station.start()
    try:
        yield station
    finally:
        await station.stop()


def store(station: Station, request: str, verdict: str = "good", **more: Any) -> int:
    """A result with what is owed of it, as the recorder stores it; whoever watches is told."""
    now = datetime.now(UTC)
    told = {"good": "good", "reject": "reject"}.get(verdict, station.settings.fail_safe)
    values: dict[str, Any] = {
        "product_id": 1, "source": "http", "meta": {}, "received": now, "finished": now,
        "score": 1.5, "threshold": 2.0, "regions": [], "milliseconds": 12.0, "told": told,
    }  # fmt: skip
    row = Inspection(request=request, verdict=verdict, **values | more)
    with station.database.writing() as session:
        session.add(row)
        session.flush()
        for output in queued(station.settings.outputs):
            session.add(Delivery(output=output, inspection_id=row.id, next=now))
        told = message(row)
    station.events.publish(
        "inspection", id=row.id, product=1, verdict=verdict, source=row.source, message=told
    )
    return row.id


async def until(true: Callable[[], object], seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


def owed(station: Station) -> int:
    with station.database.reading() as session:
        return session.scalar(sa.select(sa.func.count(Delivery.id))) or 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def png(seed: int, size: int = 16) -> bytes:
    """A small picture, another one for each seed."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
