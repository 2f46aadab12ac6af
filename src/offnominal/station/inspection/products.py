"""What the inspector has to know of products, looked up no oftener than it changes."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa

from offnominal.errors import OptionError
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Product, Version

__all__ = ["Known", "Products"]

T = TypeVar("T")

_FRESH = 1.0  # seconds for which what is known is believed
_NAMES = 1000  # that are remembered for that long
_DIGITS = 9  # of a product's number


@dataclass
class Known:
    """A product and the version that judges, as they were a moment ago."""

    product: Product
    version: Version | None
    until: float = field(default_factory=lambda: time.monotonic() + _FRESH)


class Products:
    """Products by their ids, and by whatever they are called.

    Parameters
    ----------
    database : Database
    pool : Executor
        Where the database is waited for.
    """

    def __init__(self, database: Database, pool: Executor) -> None:
        self._database, self._pool = database, pool
        self._known: dict[int, Known] = {}
        self._names: dict[str, tuple[int, float]] = {}

    def forget(self, product: int) -> None:
        """Believe nothing that was known of one that was changed."""
        self._known.pop(product, None)
        self._names.clear()

    async def get(self, number: int) -> Known:
        """A product that is not archived.

        Raises
        ------
        OptionError
            If there is none.
        """
        known = self._known.get(number)
        if known is None or known.until < time.monotonic():

            def read() -> Product | None:
                with self._database.reading() as session:
                    return session.get(Product, number)

            product = await self._in_thread(read)
            if product is None or product.archived is not None:
                raise OptionError(f"product {number}: there is none; make it on the products page")
            known = self._known[number] = Known(product, product.live)
        return known

    async def named(self, text: str) -> int:
        """The product of this number, name or barcode.

        Raises
        ------
        OptionError
            If there is none.
        """
        known = self._names.get(text)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        found = await self._in_thread(lambda: self._by_text(text))
        if found is None:
            raise OptionError(
                f"product {text[:100]!r}: there is none; make it on the products page"
            )
        if len(self._names) >= _NAMES:
            self._names.clear()
        self._names[text] = found, time.monotonic() + _FRESH
        return found

    def _by_text(self, text: str) -> int | None:
        ways = [Product.name == text, Product.barcode == text]
        if text.isascii() and text.isdecimal() and len(text) <= _DIGITS:
            ways.insert(0, Product.number == int(text))
        with self._database.reading() as session:
            for way in ways:
                query = sa.select(Product.id).where(way, Product.archived.is_(None))
                if (found := session.scalar(query)) is not None:
                    return found
        return None

    def live(self, most: int) -> list[dict[str, str]]:
        """Models of products that are live, the newest first."""
        query = sa.select(Version).join(Product, Product.live_id == Version.id)
        query = query.where(Product.archived.is_(None)).order_by(Version.id.desc()).limit(most)
        with self._database.reading() as session:
            rows = session.scalars(query)
            return [{"file": one.file, "digest": one.digest} for one in rows]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
