"""Products by JSON, and switching the one that the line makes."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from offnominal.errors import OptionError
from offnominal.station.access.who import Who, scoped
from offnominal.station.inspection import recipes
from offnominal.station.station import Here
from offnominal.station.store.tables import Product

__all__ = ["router"]

router = APIRouter(tags=["products"])

_NONE: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such product."}}
Number = Annotated[int, Field(ge=0, lt=2**31)]


class Made(BaseModel):
    """A product."""

    id: int
    name: str
    number: int | None
    barcode: str | None
    shadow: bool
    version: int | None
    """Of the model that judges; None: nothing is inspected yet."""
    threshold: float | None
    active: bool
    """Whether the line makes it now."""


@router.get("/v1/products")
async def products(station: Here, who: Annotated[Who, Depends(scoped("read"))]) -> list[Made]:
    """All that are not archived, by name."""
    active = await recipes.active(station)

    def read() -> list[Product]:
        known = sa.select(Product).where(Product.archived.is_(None)).order_by(Product.name)
        with station.database.reading() as session:
            return list(session.scalars(known))

    found = await run_in_threadpool(read)
    return [_made(one, active) for one in found]


@router.post("/v1/products/{product}/activate", responses=_NONE)
async def activate(
    product: Number, station: Here, who: Annotated[Who, Depends(scoped("inspect"))]
) -> Made:
    """Have the line make a product, by its id: pictures that name none are of it from now on."""

    def read() -> str | None:
        with station.database.reading() as session:
            row = session.get(Product, product)
            return row.name if row is not None else None

    name = await run_in_threadpool(read)
    try:
        if name is None:
            raise OptionError(f"product {product}: there is none")
        row = await recipes.activate(station, name=name, by=who.name)
    except OptionError as error:
        raise HTTPException(404, str(error)) from error
    return _made(row, row)


def _made(row: Product, active: Product | None) -> Made:
    live = row.live
    return Made(
        id=row.id,
        name=row.name,
        number=row.number,
        barcode=row.barcode,
        shadow=row.shadow,
        version=live.number if live else None,
        threshold=live.threshold if live else None,
        active=active is not None and active.id == row.id,
    )
