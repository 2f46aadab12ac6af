"""Scores of a product that can be compared: those of one model, whatever its threshold."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from offnominal.station.store.tables import Inspection, Product, Version

__all__ = ["Known", "comparable", "known"]

_LOOK = 10_000  # rows that are looked at, of the newest
_MOST = 3_000  # of each list


@dataclass(frozen=True)
class Known:
    """Scores of stored parts, the newest first, by what is known of them.

    Attributes
    ----------
    good, bad : list of float
        That somebody labelled.
    unlabelled : list of float
        Of whom nobody said anything; nearly all of them are good.
    elsewhere : int
        Labelled parts whose scores are another model's and cannot be compared.
    """

    good: list[float]
    bad: list[float]
    unlabelled: list[float]
    elsewhere: int


def comparable(session: Session, version: Version) -> list[Version]:
    """A version and those that differ from it in nothing but the threshold, by their numbers."""
    mine = session.scalars(
        sa.select(Version).where(Version.product_id == version.product_id).order_by(Version.number)
    ).all()
    # Which one's scores each version has: its own, or its parent's where only a threshold changed.
    source: dict[int, int] = {}
    for one in mine:
        parent = one.parent_id if one.how == "threshold" else None
        source[one.id] = source.get(parent, one.id) if parent is not None else one.id
    return [one for one in mine if source[one.id] == source[version.id]]


def known(session: Session, product: Product, version: Version) -> Known:
    """Scores of a product's newest parts that are comparable with a version's."""
    ids = [one.id for one in comparable(session, version)]
    row = Inspection
    newest = sa.select(row.score, row.label, row.version_id, row.product_id)
    newest = newest.order_by(row.received.desc(), row.id.desc())
    said: dict[str, list[float]] = {}
    elsewhere = 0
    for label in ("good", "bad"):
        last = newest.where(row.label == label).limit(_LOOK).subquery()
        mine = sa.select(last.c.score).where(
            last.c.product_id == product.id, last.c.score.is_not(None)
        )
        said[label] = list(session.scalars(mine.where(last.c.version_id.in_(ids)).limit(_MOST)))
        others = mine.where(last.c.version_id.not_in(ids)).subquery()
        elsewhere += session.scalar(sa.select(sa.func.count()).select_from(others)) or 0
    last = newest.where(row.product_id == product.id).limit(_MOST).subquery()
    unlabelled = session.scalars(
        sa.select(last.c.score).where(
            last.c.label.is_(None), last.c.score.is_not(None), last.c.version_id.in_(ids)
        )
    ).all()
    return Known(said["good"], said["bad"], list(unlabelled), elsewhere)
