"""Watching all products for drift, and telling outputs and pages of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from offnominal.station.station import Station
from offnominal.station.store.tables import Product
from offnominal.station.store.trend import trend
from offnominal.station.tasks import together

__all__ = ["Drift", "drifting", "running"]

_EVERY = 60.0
_DAY = timedelta(days=1)
_CAUSES = {
    "light": "and so does the brightness of the pictures: look at the light",
    "lens": "and so does their sharpness: look at the lens and its focus",
    "part": "and brightness and sharpness do not: look at the parts and the tool",
}


@dataclass(frozen=True)
class Drift:
    """A product whose accepted parts score otherwise than they used to."""

    product: int
    name: str
    since: datetime
    rises: bool
    cause: str

    @property
    def words(self) -> str:
        """In English, as outputs send them."""
        way = "rise" if self.rises else "fall"
        return f"scores of accepted parts {way}, {_CAUSES[self.cause]}"


def drifting(station: Station, now: datetime | None = None) -> dict[int, Drift | None]:
    """What drifts, of each product that judges; over the last day."""
    now = now or datetime.now(UTC)
    found: dict[int, Drift | None] = {}
    with station.database.reading() as session:
        live = sa.select(Product).where(Product.live_id.is_not(None), Product.archived.is_(None))
        for product in session.scalars(live):
            told = trend(session, product, now - _DAY, now)
            found[product.id] = None
            if told is not None and told.drift is not None:
                control = told.series["score"].control
                rises = control is not None and control.rises
                found[product.id] = Drift(product.id, product.name, told.drift, rises, told.cause)
    return found


@asynccontextmanager
async def running(station: Station) -> AsyncIterator[None]:
    """Look every minute while the block lasts."""
    async with together(station, {"drift": lambda: _watch(station)}):
        yield


async def _watch(station: Station) -> None:
    told: set[str] = set()
    while True:
        try:
            found = await asyncio.to_thread(drifting, station)
        except sa.exc.SQLAlchemyError:  # whoever inspects says that the records are out of reach
            await asyncio.sleep(_EVERY)
            continue
        now = {f"drift {number}": one for number, one in found.items()}
        for name, one in now.items():
            words = f"{one.name}: {one.words}" if one else ""
            station.state.tell(name, one is None, words, blinds=False)
        for name in told - now.keys():
            station.state.forget(name)
        told = set(now)
        await asyncio.sleep(_EVERY)
