"""From a source to the inspector: which product it is, and patience while the queue is full."""

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from offnominal.errors import OptionError
from offnominal.station.inspection import recipes
from offnominal.station.inspection.request import BusyError, NotStoredError, Request
from offnominal.station.sources.barcodes import barcodes
from offnominal.station.sources.settings import BarcodeRecipe, SourceSettings
from offnominal.station.station import Station
from offnominal.station.store.tables import Inspection, Product

__all__ = ["Shot", "hand_on"]

log = logging.getLogger(__name__)

_BUSY_PAUSE = 0.2  # seconds between two looks for room in the queue, at most
_LONGEST_PAUSE = 5.0  # seconds between two attempts to store a result


@dataclass(frozen=True)
class Shot:
    """A picture of a part, or why there is none.

    Attributes
    ----------
    id : str
        Of the request, the same each time that the same picture is handed on.
    image : bytes or None
        A file's content.
    """

    id: str
    image: bytes | None
    trouble: str = ""
    serial: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    received: datetime = field(default_factory=lambda: datetime.now(UTC))


async def hand_on(station: Station, source: SourceSettings, shot: Shot) -> Inspection:
    """Have a picture inspected; returns when the result is stored, however long the queue is.

    Raises
    ------
    OptionError
        If there is no product that it could be of: nothing is stored, and the station is blind
        until there is one.
    """
    fact = f"product of {source.name}"
    pause = 0.05
    while True:
        try:
            product, trouble = await _product(station, source, shot)
            break
        except OptionError as error:
            if station.state.tell(fact, False, str(error)):
                log.warning("source %s: %s", source.name, error)
            raise
        except SQLAlchemyError as error:
            if station.state.tell("records", False, "they cannot be reached"):
                log.error("source %s: %s", source.name, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    station.state.tell(fact, True)
    serial = shot.serial or station.serials.pop(product, None)
    request = Request(
        id=shot.id,
        product=product,
        image=shot.image,
        source=source.name,
        serial=serial[:200] if serial else None,
        meta=shot.meta,
        received=shot.received,
        trouble=trouble,
    )
    pause = 0.05
    while True:
        try:
            inspection = await station.inspector.inspect(request)
        except BusyError as busy:
            wait = min(pause, busy.retry_after, _BUSY_PAUSE)
        except NotStoredError as error:
            log.warning("source %s: %s", source.name, error)
            wait = pause
        else:
            return inspection
        await asyncio.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _product(station: Station, source: SourceSettings, shot: Shot) -> tuple[int, str]:
    """Its number, and why nothing of it can be inspected although that is known."""
    if source.product:
        product = await asyncio.to_thread(_named, station, source.product)
        return product, shot.trouble
    trouble = shot.trouble
    if isinstance(source.recipe, BarcodeRecipe) and shot.image is not None:
        found = await asyncio.to_thread(barcodes, shot.image)
        for text in found:
            try:
                by = f"source {source.name}"
                return (await recipes.activate(station, barcode=text, by=by)).id, trouble
            except OptionError:
                continue  # of a box, or of the serial number
        told = f"unknown: {', '.join(found)}"[:100] if found else "none in the picture"
        trouble = f"no code of a product: {told}"
    active = await recipes.active(station)
    if active is None:
        raise OptionError(
            f"source {source.name}: no product is chosen; start one on the operator page, or give "
            "product = NAME"
        )
    return active.id, trouble


def _named(station: Station, name: str) -> int:
    query = sa.select(Product.id).where(Product.name == name, Product.archived.is_(None))
    with station.database.reading() as session:
        number = session.scalar(query)
    if number is None:
        raise OptionError(f"product = {name!r}: there is none; make it on the products page")
    return number
