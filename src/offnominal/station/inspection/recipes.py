"""Which product the line makes now, and switching it."""

import asyncio

import sqlalchemy as sa

from offnominal.errors import OptionError
from offnominal.station.access import audit
from offnominal.station.station import Station
from offnominal.station.store.tables import Product, Setting

__all__ = ["activate", "active"]

_SETTING = "line"


async def active(station: Station) -> Product | None:
    """The product that the line makes; None: nobody has chosen one."""

    def read() -> Product | None:
        with station.database.reading() as session:
            setting = session.get(Setting, _SETTING)
            return session.get(Product, setting.value["product"]) if setting else None

    product = await asyncio.to_thread(read)
    return product if product is not None and product.archived is None else None


async def activate(
    station: Station,
    *,
    number: int | None = None,
    name: str | None = None,
    barcode: str | None = None,
    by: str = "station",
) -> Product:
    """Have the line make the product with this number, name or code.

    Raises
    ------
    OptionError
        If there is none; the line makes what it made.
    """
    given = {"number": number, "name": name, "barcode": barcode}
    key, value = next((one for one in given.items() if one[1] is not None), ("number", None))

    def write() -> Product:
        query = sa.select(Product).where(getattr(Product, key) == value)
        with station.database.writing() as session:
            product = session.scalar(query.where(Product.archived.is_(None)))
            if product is None:
                raise OptionError(f"no product has the {key} {value!r}")
            setting = session.get(Setting, _SETTING)
            if setting is None or setting.value["product"] != product.id:
                session.merge(Setting(name=_SETTING, value={"product": product.id}))
                audit.note(session, by, "line.switch", product.name)
            return product

    product = await asyncio.to_thread(write)
    station.events.publish("recipe", product=product.id, number=product.number)
    return product
