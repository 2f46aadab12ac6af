"""How a product's accepted parts, and their pictures, went over time: a few of each stretch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from offnominal.station.control import Control, ewma
from offnominal.station.store.scores import comparable
from offnominal.station.store.tables import Inspection, Product, Setting, Version

__all__ = ["Group", "Series", "Trend", "begin_anew", "shown", "trend"]

_GROUPS = 72
_SIZE = 25  # parts of a stretch that are read
_LOOK = 75  # among so many of its first ones
_BASE, _BASE_LOOK, _BASE_LEAST = 200, 2_000, 50
NAMES = ("score", "brightness", "sharpness")


@dataclass(frozen=True)
class Group:
    """Means of some accepted parts of a stretch of time."""

    at: datetime
    parts: int
    values: dict[str, float]


@dataclass(frozen=True)
class Series:
    """One of the things that are watched.

    Attributes
    ----------
    points : list of Group
        Those that have it.
    control : Control or None
        None where too few parts were accepted to know what is usual.
    logarithm : bool
        Whether the chart is that of its logarithm.
    """

    points: list[Group]
    control: Control | None
    logarithm: bool

    @property
    def since(self) -> datetime | None:
        """Since when it is out of its limits, where it is now."""
        place = self.control.alarm if self.control else None
        return None if place is None else self.points[place].at


@dataclass(frozen=True)
class Trend:
    """What became of a product's accepted parts over time.

    Attributes
    ----------
    series : dict of str to Series
        ``score``, ``brightness``, ``sharpness``.
    base : int
        Accepted parts that say what is usual; ``needed`` is how many it takes.
    begin : datetime
        From when on those were taken.
    """

    series: dict[str, Series]
    base: int
    needed: int
    begin: datetime

    @property
    def drift(self) -> datetime | None:
        """Since when the scores drift; None: they do not."""
        return self.series["score"].since

    @property
    def cause(self) -> str:
        """What drifts with the scores: ``light``, ``lens``, or ``part`` where neither does."""
        if self.series["brightness"].since:
            return "light"
        return "lens" if self.series["sharpness"].since else "part"


def begin_anew(session: Session, product: int, at: datetime) -> None:
    """What is usual for a product is what comes from now on: after new light, another lens."""
    session.merge(Setting(name=f"usual.{product}", value={"since": at.isoformat()}))


def trend(
    session: Session, product: Product, start: datetime, end: datetime, groups: int = _GROUPS
) -> Trend | None:
    """The trend of a product from one time to another, in so many groups of parts at most.

    None: no version of it is live.
    """
    if product.live_id is None:
        return None
    live = session.get_one(Version, product.live_id)
    versions = comparable(session, live)
    begin = versions[0].made
    row = session.get(Setting, f"usual.{product.id}")
    if row is not None:
        begin = max(begin, datetime.fromisoformat(row.value["since"]))
    ids = [one.id for one in versions]
    same = {"product": product.id, "versions": ids}
    first = session.execute(_FIRST_ONES, same | {"start": begin, "end": end}).all()
    start = max(start, begin)
    step = max((end - start) / groups, timedelta(seconds=1))
    points = []
    at = start
    while at < end:
        if some := session.execute(_A_FEW, same | {"start": at, "end": at + step}).all():
            points.append((at + step / 2, some))
        at += step
    series = {name: _series(name, first, points) for name in NAMES}
    return Trend(series, len(first), _BASE_LEAST, begin)


def _asked(look: int, most: int) -> sa.Select[Any]:
    """Some accepted parts, of the first ones of a stretch; made once, since it is asked often."""
    row = Inspection
    first = (
        sa.select(row.score, row.brightness, row.sharpness, row.verdict, row.label, row.version_id)
        .where(
            row.product_id == sa.bindparam("product"),
            row.received >= sa.bindparam("start"),
            row.received < sa.bindparam("end"),
        )
        .order_by(row.received, row.id)
        .limit(look)
        .subquery()
    )
    accepted = sa.and_(
        first.c.verdict == "good",
        sa.or_(first.c.label.is_(None), first.c.label == "good"),
        first.c.version_id.in_(sa.bindparam("versions", expanding=True)),
    )
    chosen = sa.select(first.c.score, first.c.brightness, first.c.sharpness)
    return chosen.where(accepted).limit(most)


_FIRST_ONES = _asked(_BASE_LOOK, _BASE)
_A_FEW = _asked(_LOOK, _SIZE)


def _series(
    name: str, first: Sequence[Any], groups: Sequence[tuple[datetime, Sequence[Any]]]
) -> Series:
    usual = [value for one in first if (value := getattr(one, name)) is not None]
    # Scores and sharpness are skewed, and change by shares rather than by steps.
    logarithm = name != "brightness" and bool(usual) and min(usual) > 0
    points = []
    for at, some in groups:
        values = [value for one in some if (value := getattr(one, name)) is not None]
        if values and (not logarithm or min(values) > 0):
            mean = float(np.mean(np.log(values) if logarithm else values))
            points.append(Group(at, len(values), {name: mean}))
    control = None
    if len(usual) >= _BASE_LEAST:
        known = np.log(usual) if logarithm else np.asarray(usual)
        # Equal pictures vary by nothing; what differs from them by a thousandth does not matter.
        sigma = max(float(known.std(ddof=1)), 1e-3 * max(abs(float(known.mean())), 1e-9))
        means, counts = [one.values[name] for one in points], [one.parts for one in points]
        control = ewma(means, counts, float(known.mean()), sigma)
    return Series(points, control, logarithm)


def shown(value: float, logarithm: bool) -> float:
    """A value of a chart in its own unit."""
    return math.exp(value) if logarithm else value
