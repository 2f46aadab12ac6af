"""Shifts: which one a moment belongs to, and from when to when it lasts."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

from offnominal.station.settings import Settings

__all__ = ["Shift", "shift_at", "shift_of", "zone_of"]


@dataclass(frozen=True)
class Shift:
    """A shift.

    Attributes
    ----------
    day : date
        On which it begins, in the station's own time.
    number : int
        From 1, in the order of the settings.
    start, end : datetime
        UTC; the end is the next one's start.
    """

    day: date
    number: int
    start: datetime
    end: datetime


def zone_of(settings: Settings) -> tzinfo | None:
    """The station's time zone; None: the machine's."""
    return ZoneInfo(settings.timezone) if settings.timezone else None


def shift_at(settings: Settings, moment: datetime) -> Shift:
    """The shift that a moment belongs to."""
    day = moment.astimezone(zone_of(settings)).date()
    for back in (day, day - timedelta(days=1)):
        for number in range(len(settings.shifts), 0, -1):
            shift = shift_of(settings, back, number)
            if shift.start <= moment < shift.end:
                return shift
    raise AssertionError("shifts follow one another without a gap")


def shift_of(settings: Settings, day: date, number: int) -> Shift:
    """A day's shift of this number.

    Raises
    ------
    LookupError
        If there is none of this number.
    """
    starts = sorted(time.fromisoformat(one) for one in settings.shifts)
    if not 1 <= number <= len(starts):
        raise LookupError(f"shift {number}: there are {len(starts)} a day")
    zone = zone_of(settings)
    last = number == len(starts)
    after = starts[0] if last else starts[number]
    start = _utc(day, starts[number - 1], zone)
    return Shift(day, number, start, _utc(day + timedelta(days=last), after, zone))


def _utc(day: date, at: time, zone: tzinfo | None) -> datetime:
    moment = datetime.combine(day, at)
    return (moment.replace(tzinfo=zone) if zone else moment.astimezone()).astimezone(UTC)
