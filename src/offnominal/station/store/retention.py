"""Which pictures are kept: rules, what they would delete, and deleting it; records stay."""

import asyncio
import contextlib
import time as clock
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, BeforeValidator, Field
from sqlalchemy.orm import Session

from offnominal.station.access import audit
from offnominal.station.shifts import zone_of
from offnominal.station.station import Station
from offnominal.station.store.tables import Inspection, PatchScores, Picture, Setting

__all__ = ["Plan", "Rules", "apply", "plan", "rules", "running", "set_rules"]

_NAME = "retention"
_NIGHT = time(3, 0)
_PART = 1_000  # pictures looked at, or deleted, in one transaction
_FRESH = 3_600.0  # seconds in which a file was wanted again
_EXAMPLES = 12


def _blank(value: Any) -> Any:
    return None if value == "" else value


_Days = Annotated[Annotated[int, Field(ge=1, le=36_500)] | None, BeforeValidator(_blank)]
_Gigabytes = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(_blank)
]


class Rules(BaseModel):
    """What is kept how long. What somebody labelled is always kept."""

    accepted_days: _Days = None
    """Pictures of accepted parts; None: always."""
    accepted_share: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Percent of accepted parts that are kept as long as rejected ones."""
    rejected_days: _Days = None
    """Pictures of what was rejected or not inspected."""
    most_gigabytes: _Gigabytes = None
    """Of all pictures together: beyond it the oldest accepted ones go, then the oldest others."""


@dataclass
class Plan:
    """What rules delete, found so far.

    Attributes
    ----------
    pictures, bytes : int
        That go.
    all_pictures, all_bytes : int
        That there are.
    oldest, newest : datetime or None
        Of those that go.
    examples : list of int
        Inspections whose pictures go.
    done : bool
        Whether everything was looked at.
    """

    pictures: int = 0
    bytes: int = 0
    all_pictures: int = 0
    all_bytes: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None
    examples: list[int] = field(default_factory=list)
    done: bool = False

    def take(self, row: "_Row") -> None:
        """Count one that goes."""
        self.pictures += 1
        self.bytes += row.size
        self.oldest = min(self.oldest or row.kept, row.kept)
        self.newest = max(self.newest or row.kept, row.kept)
        if len(self.examples) < _EXAMPLES and row.inspection is not None:
            self.examples.append(row.inspection)


@dataclass(frozen=True)
class _Row:
    """A picture, and the most that any of its inspections asks for.

    ``stands`` is its place in the walk, ``kept`` when it was last shown.
    """

    id: int
    file: str
    size: int
    stands: datetime
    kept: datetime
    inspection: int | None
    labelled: bool
    accepted: bool


def rules(session: Session) -> Rules:
    """The rules in force; without any, everything is kept."""
    row = session.get(Setting, _NAME)
    return Rules() if row is None else Rules.model_validate(row.value)


def set_rules(session: Session, new: Rules, by: str) -> None:
    """Put rules in force, from the next night on."""
    session.merge(Setting(name=_NAME, value=new.model_dump()))
    audit.note(session, by, "retention.rules", **new.model_dump())


def plan(station: Station, new: Rules, into: Plan | None = None) -> Plan:
    """What rules would delete now; it is filled in part by part, so that it can be watched."""
    found = into or Plan()
    for row in _going(station, new, datetime.now(UTC), found):
        found.take(row)
    found.done = True
    return found


def apply(station: Station, by: str = "station") -> Plan:
    """Delete what the rules in force delete: rows say that a picture is gone, then its file goes.

    Where it is stopped between the two, files that nobody refers to stay.
    """
    found = Plan()
    with station.database.reading() as session:
        new = rules(session)
    if new == Rules(accepted_share=new.accepted_share):
        return found
    part: list[_Row] = []
    for row in _going(station, new, datetime.now(UTC), found):
        part.append(row)
        if len(part) == _PART:
            _delete(station, part, found)
            part = []
    _delete(station, part, found)
    found.done = True
    if found.pictures:
        with station.database.writing() as session:
            audit.note(session, by, "retention.delete", pictures=found.pictures, bytes=found.bytes)
    return found


@asynccontextmanager
async def running(station: Station) -> AsyncIterator[None]:
    """Delete every night, at three in the station's time, while the block lasts."""
    task = asyncio.create_task(_nightly(station))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _nightly(station: Station) -> None:
    zone = zone_of(station.settings)
    while True:
        now = datetime.now(UTC).astimezone(zone)
        night = datetime.combine(now.date(), _NIGHT, now.tzinfo)
        if night <= now:
            night += timedelta(days=1)
        await asyncio.sleep((night - now).total_seconds())
        try:
            await asyncio.to_thread(apply, station)
        except (sa.exc.SQLAlchemyError, OSError) as error:  # the next night tries again
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                await asyncio.to_thread(_failed, station, error)


def _failed(station: Station, error: Exception) -> None:
    with station.database.writing() as session:
        audit.note(session, "station", "retention.failed", error=type(error).__name__)


def _going(station: Station, new: Rules, now: datetime, found: Plan) -> Iterator[_Row]:
    """Pictures that rules delete: first those too old, then as many as are too much."""
    left = 0
    for row in _pictures(station):
        found.all_pictures += 1
        found.all_bytes += row.size
        if _too_old(row, new, now):
            yield row
        else:
            left += row.size
    if new.most_gigabytes is None:
        return
    most = int(new.most_gigabytes * 1e9)
    for accepted in (True, False):
        if left <= most:
            return
        for row in _pictures(station):
            if left <= most:
                return
            if row.accepted == accepted and not row.labelled and not _too_old(row, new, now):
                left -= row.size
                yield row


def _too_old(row: _Row, new: Rules, now: datetime) -> bool:
    days = new.rejected_days
    if row.accepted and not _of_the_share(row, new.accepted_share):
        given = [one for one in (new.accepted_days, days) if one is not None]
        days = min(given) if given and new.accepted_days is not None else None
    return not row.labelled and days is not None and row.kept < now - timedelta(days=days)


def _of_the_share(row: _Row, percent: float) -> bool:
    # A step that has no factor in common with 10,000 spreads neighbours over the whole of it.
    return (row.inspection or row.id) * 7_919 % 10_000 < percent * 100


def _pictures(station: Station) -> Iterator[_Row]:
    """All pictures, the oldest first, in parts that hold up nobody."""
    at: tuple[datetime, int] | None = None
    while True:
        with station.database.reading() as session:
            rows = _some(session, at)
        yield from rows
        if len(rows) < _PART:
            return
        at = rows[-1].stands, rows[-1].id


def _some(session: Session, at: tuple[datetime, int] | None) -> list[_Row]:
    asked = sa.select(Picture).order_by(Picture.kept, Picture.id).limit(_PART)
    if at is not None:
        kept, number = at
        asked = asked.where(Picture.kept >= kept, sa.or_(Picture.kept > kept, Picture.id > number))
    pictures = session.scalars(asked).all()
    shown = _inspections(session, [one.id for one in pictures])
    found = []
    for one in pictures:
        mine = shown.get(one.id, [])
        latest = max((row.received for row in mine), default=one.kept)
        found.append(
            _Row(
                id=one.id,
                file=one.file,
                size=one.size,
                stands=one.kept,
                kept=max(one.kept, latest),
                inspection=max((row.id for row in mine), default=None),
                labelled=any(row.label for row in mine),
                accepted=bool(mine) and all(row.verdict == "good" for row in mine),
            )
        )
    return found


def _inspections(session: Session, pictures: list[int]) -> dict[int, list[Any]]:
    row = Inspection
    asked = sa.select(row.picture_id, row.id, row.received, row.label, row.verdict)
    found: dict[int, list[Any]] = {}
    for one in session.execute(asked.where(row.picture_id.in_(pictures))):
        found.setdefault(one.picture_id, []).append(one)
    return found


def _delete(station: Station, part: list[_Row], found: Plan) -> None:
    now = clock.time()
    going = [row for row in part if not _fresh(station, row.file, now)]
    ids = [row.id for row in going]
    if not ids:
        return
    with station.database.writing() as session:
        # Whoever was labelled or shown again meanwhile is left alone.
        mine = sa.select(Inspection.id).where(
            Inspection.picture_id.in_(ids), Inspection.label.is_(None)
        )
        session.execute(sa.delete(PatchScores).where(PatchScores.inspection_id.in_(mine)))
        session.execute(
            sa.update(Inspection)
            .where(Inspection.picture_id.in_(ids), Inspection.label.is_(None))
            .values(picture_id=None)
        )
        used = sa.exists().where(Inspection.picture_id == Picture.id)
        gone = set(
            session.scalars(
                sa.delete(Picture).where(Picture.id.in_(ids), ~used).returning(Picture.id)
            )
        )
    for row in going:
        if row.id in gone:
            found.take(row)
            _unlink(station, row.file, now)


def _fresh(station: Station, file: str, now: float) -> bool:
    try:
        return (station.files / file).stat().st_mtime > now - _FRESH
    except FileNotFoundError:
        return False


def _unlink(station: Station, file: str, now: float) -> None:
    """Remove a file, unless the same picture arrives just now and is written beside it."""
    path = station.files / file
    aside = path.with_name(f".going-{path.name}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if aside.stat().st_mtime > now - _FRESH and not path.exists():
            aside.rename(path)
            return
        aside.unlink()
