"""Rows that an address names, or the answer that there is none."""

import sqlalchemy as sa
from fastapi import HTTPException
from sqlalchemy.orm import Session

from offnominal.station.language import _
from offnominal.station.store.tables import Product, Version

__all__ = ["product_of", "version_of"]


def product_of(session: Session, product: int) -> Product:
    """A product, with its live version; 404 where there is none."""
    row = session.get(Product, product)
    if row is None:
        raise HTTPException(404, _("There is no such product."))
    return row


def version_of(session: Session, product: int, number: int) -> Version:
    """A version by its number within the product; 404 where there is none."""
    row = session.scalar(sa.select(Version).filter_by(product_id=product, number=number))
    if row is None:
        raise HTTPException(404, _("There is no such version."))
    return row
