"""Finding inspections among a million, newest first, without ever reading all of them.

Rows are walked along the index that narrows the most, from where the last page ended (no OFFSET),
and at most ``LOOK`` of them for one answer: what is rarer than that is found by asking on from
there. A few serial numbers, or scores far out, are looked up by their own index instead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, selectinload

from offnominal.station.store.criteria import Place, Search
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Inspection

__all__ = ["COUNTED", "LOOK", "Count", "Found", "Place", "Search", "count", "find", "walk"]

LOOK = 24_000
"""Rows that one answer may look at."""
COUNTED = 10_000
"""Beyond so many it is said that there are more, and not how many."""
_RARE = 60_000  # entries of an index that is not in the order of time, which are sorted instead
_STEPS = (1_000, 5_000, LOOK - 6_000)
_RARE_STEPS = (1_000, 9_000)
_COUNT_LOOK = 10_000  # rows that counting may look at
_END = "\U0010ffff"  # after every other character

Condition = sa.ColumnElement[bool]


@dataclass(frozen=True)
class Found:
    """Part of a list.

    Attributes
    ----------
    rows : list of Inspection
        The newest first.
    older, newer : Place or None
        Where to go on, in either direction; None where nothing lies there.
    looked : Place or None
        How far was looked where that was not to the end, and fewer were found than asked for.
    """

    rows: list[Inspection]
    older: Place | None
    newer: Place | None
    looked: Place | None


class Count(NamedTuple):
    """How many; or, where it is not exact, that there are more than that."""

    number: int
    exact: bool


def find(session: Session, search: Search, zone: tzinfo | None, limit: int = 60) -> Found:
    """The newest that are looked for, or those beyond a place.

    Parameters
    ----------
    session : Session
    search : Search
    zone : tzinfo or None
        What times without one are in; None: the machine's.
    limit : int
    """
    up = search.before is not None and search.after is None
    start = search.before if up else search.after
    at = Place.of(start) if start else None
    rows, looked = _found(session, search, zone, at, up, limit + 1)
    more = len(rows) > limit
    rows = rows[:limit]
    if up:
        rows.reverse()
    first, last = (Place(row.received, row.id) for row in (rows[0], rows[-1])) if rows else (at, at)
    on = looked if looked and not more else None
    if up:
        return Found(rows, last, first if more else on, on)
    return Found(rows, last if more else on, first if at else None, on)


def walk(
    database: Database, search: Search, zone: tzinfo | None, limit: int = 2_000
) -> Iterator[list[Inspection]]:
    """All that are looked for, in parts, each read by itself: nobody waits while it is sent."""
    at: Place | None = Place.of(search.after) if search.after else None
    while True:
        with database.reading() as session:
            rows, looked = _found(session, search, zone, at, False, limit)
        if rows:
            yield rows
        if len(rows) == limit:
            at = Place(rows[-1].received, rows[-1].id)
        elif looked is None:
            return
        else:
            at = looked


def count(session: Session, search: Search, zone: tzinfo | None) -> Count:
    """How many there are, as far as that is quickly known."""
    rare = _rare(session, search)
    given = set(search.words())
    if rare is not None and given in ({"serial"}, {"product", "least"}, {"product", "most"}):
        return _up_to(_number(session, sa.select(Inspection.id).where(rare).limit(COUNTED + 1)))
    ways = _ways(rare, search, zone)
    if not _beyond(search):
        return _up_to(_number(session, ways(None, False).limit(COUNTED + 1)))
    end = _boundary(session, ways(None, False), _COUNT_LOOK)
    some = sa.select(Inspection.id).where(*_conditions(search))
    if rare is None:
        some = some.where(*_between(search, zone, None, end, False))
    else:
        here = ways(None, False).limit(_COUNT_LOOK).subquery()
        some = some.join(here, here.c.id == Inspection.id)
    number = _number(session, some.limit(COUNTED + 1))
    return Count(min(number, COUNTED), number <= COUNTED and end is None)


def _up_to(number: int) -> Count:
    return Count(min(number, COUNTED), number <= COUNTED)


def _number(session: Session, some: sa.Select[Any]) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(some.subquery())) or 0


def _found(
    session: Session,
    search: Search,
    zone: tzinfo | None,
    at: Place | None,
    up: bool,
    limit: int,
) -> tuple[list[Inspection], Place | None]:
    """So many rows beyond a place, and how far was looked where that was not to the end."""
    rare = _rare(session, search)
    ways = _ways(rare, search, zone)
    wanted = sa.select(Inspection).options(
        selectinload(Inspection.product),
        selectinload(Inspection.version),
        selectinload(Inspection.picture),
    )
    found: list[Inspection] = []
    for step in _STEPS if rare is None else _RARE_STEPS:
        if rare is None:
            end = _boundary(session, ways(at, up), step)
            some = wanted.where(*_between(search, zone, at, end, up))
        else:
            # Sorting them takes most of the time, so it is done once.
            ids = session.execute(ways(at, up).limit(step)).all()
            end = Place(ids[-1].received, ids[-1].id) if len(ids) == step else None
            some = wanted.where(Inspection.id.in_([one.id for one in ids]))
        some = some.where(*_conditions(search))
        some = some.order_by(*_order(Inspection, up)).limit(limit - len(found))
        found += session.scalars(some)
        if len(found) == limit or end is None:
            return found, None
        at = end
    return found, at


def _between(
    search: Search, zone: tzinfo | None, at: Place | None, end: Place | None, up: bool
) -> list[Condition]:
    """The driver's rows from beyond a place to another one, that included."""
    row = Inspection
    found = [*_driver(search), *_within(row.received, _times(search, zone))]
    found += _beyond_place(row, at, up)
    if end is not None:
        # The first of the two is for the index to use.
        found.append(row.received <= end.received if up else row.received >= end.received)
        found.append(sa.not_(sa.and_(*_beyond_place(row, end, up))))
    return found


_Ways = Callable[[Place | None, bool], sa.Select[Any]]


def _ways(rare: Condition | None, search: Search, zone: tzinfo | None) -> _Ways:
    """Times and numbers of what may be looked for, beyond a place, up or down from there."""
    times = _times(search, zone)

    def ways(at: Place | None, up: bool) -> sa.Select[Any]:
        table: Any = Inspection.__table__.c
        if rare is not None:
            # A limit keeps it a query of its own, which reads this index and not that of the time.
            inner = sa.select(Inspection.received, Inspection.id).where(rare).limit(_RARE)
            table = inner.subquery().c
        some = sa.select(table.received, table.id)
        if rare is None:
            some = some.where(*_driver(search))
        some = some.where(*_within(table.received, times), *_beyond_place(table, at, up))
        return some.order_by(*_order(table, up))

    return ways


def _boundary(session: Session, ways: sa.Select[Any], step: int) -> Place | None:
    """The last of so many rows; None where there are fewer."""
    row = session.execute(ways.offset(step - 1).limit(1)).first()
    return None if row is None else Place(row.received, row.id)


def _order(table: Any, up: bool) -> tuple[Any, Any]:
    if up:
        return table.received.asc(), table.id.asc()
    return table.received.desc(), table.id.desc()


def _beyond_place(table: Any, at: Place | None, up: bool) -> list[Condition]:
    if at is None:
        return []
    received, number = table.received, table.id
    if up:
        return [received >= at.received, sa.or_(received > at.received, number > at.id)]
    return [received <= at.received, sa.or_(received < at.received, number < at.id)]


def _driver(search: Search) -> list[Condition]:
    """The one condition whose index, in the order of time, is likely to be the shortest."""
    if search.label in ("good", "bad"):
        return [Inspection.label == search.label]
    if search.kind is not None:  # only of those that are bad
        return [Inspection.label == "bad"]
    if search.verdict in ("reject", "not-inspected"):
        return [Inspection.verdict == search.verdict]
    if search.product is not None:
        return [Inspection.product_id == search.product]
    if search.verdict is not None:
        return [Inspection.verdict == search.verdict]
    return []


def _beyond(search: Search) -> bool:
    """Whether anything is looked for that the driver and the times do not settle."""
    given = set(search.words()) - {"since", "until"}
    if given == {"label"}:
        return search.label in ("none", "any")
    return given not in (set(), {"verdict"}, {"product"})


def _rare(session: Session, search: Search) -> Condition | None:
    """A condition that few rows meet, by an index that has not the order of time."""
    chosen: list[Condition] = []
    if search.serial is not None:
        chosen.append(_begins(search.serial))
    if search.product is not None and (search.least is not None or search.most is not None):
        chosen.append(sa.and_(Inspection.product_id == search.product, *_scores(search)))
    for one in chosen:
        if _number(session, sa.select(Inspection.id).where(one).limit(_RARE + 1)) <= _RARE:
            return one
    return None


def _begins(serial: str) -> Condition:
    return sa.and_(Inspection.serial >= serial, Inspection.serial < serial + _END)


def _scores(search: Search) -> list[Condition]:
    found: list[Condition] = []
    if search.least is not None:
        found.append(Inspection.score >= search.least)
    if search.most is not None:
        found.append(Inspection.score <= search.most)
    return found


_Times = tuple[datetime | None, datetime | None]


def _times(search: Search, zone: tzinfo | None) -> _Times:
    """From when, and until before when."""
    since, until = search.since, search.until
    return (
        None if since is None else _moment(since, zone, False),
        None if until is None else _moment(until, zone, True),
    )


def _within(received: Any, times: _Times) -> list[Condition]:
    since, until = times
    found = [] if since is None else [received >= since]
    return found if until is None else [*found, received < until]


def _moment(when: datetime | date, zone: tzinfo | None, to_its_end: bool) -> datetime:
    if not isinstance(when, datetime):
        day = when + timedelta(days=1) if to_its_end and when < date.max else when
        when = datetime.combine(day, time())
    if when.tzinfo is not None:
        return when
    try:
        return when.replace(tzinfo=zone) if zone else when.astimezone()
    except (OverflowError, OSError, ValueError):  # the first and the last years there are
        return when.replace(tzinfo=UTC)


def _conditions(search: Search) -> list[Condition]:
    """All but the times; written so that no index is chosen by them, but by the driver alone."""
    row = Inspection
    score, serial, label = row.score + 0, row.serial.concat(""), row.label.concat("")
    found: list[Condition] = []
    if search.least is not None:
        found.append(score >= search.least)
    if search.most is not None:
        found.append(score <= search.most)
    numbers = {row.product_id: search.product, row.version_id: search.version}
    found += [column + 0 == value for column, value in numbers.items() if value is not None]
    texts = {row.verdict: search.verdict, row.source: search.source, row.kind: search.kind}
    found += [column.concat("") == value for column, value in texts.items() if value is not None]
    if search.serial is not None:
        found += [serial >= search.serial, serial < search.serial + _END]
    if search.label == "none":
        found.append(label.is_(None))
    elif search.label == "any":
        found.append(label.is_not(None))
    elif search.label is not None:
        found.append(label == search.label)
    return found
