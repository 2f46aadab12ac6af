"""What another version would say of the parts that were inspected."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from offnominal.errors import OptionError
from offnominal.station.inspection.learner import Told
from offnominal.station.station import Station
from offnominal.station.store.tables import Inspection, Picture, Version

__all__ = ["MOST", "Pair", "compare", "known_bad", "summary"]

MOST = 5000
"""Pictures that are judged anew at once."""


@dataclass(frozen=True)
class Pair:
    """Two judgements of one part.

    Attributes
    ----------
    inspection : int
    label : str or None
        What people said of it.
    before, after : float or None
        Scores; they are comparable where both versions have the same references' scale only.
    was, now : str
        Verdicts.
    """

    inspection: int
    label: str | None
    before: float | None
    was: str
    after: float | None
    now: str

    @property
    def flips(self) -> bool:
        """Whether the verdicts differ."""
        return self.was != self.now


async def compare(
    station: Station,
    product: int,
    candidate: int,
    against: int | None,
    last: int,
    told: Told | None = None,
) -> dict[str, Any]:
    """Judge the last stored pictures of a product by a version, beside what was said of them.

    All known-bad parts among ten times as many are looked at besides, however old.

    Parameters
    ----------
    candidate : int
        Row of the version.
    against : int or None
        Row of another, which judges them as well; None: the verdicts that are on record.
    last : int

    Returns
    -------
    dict
        ``pairs``, as :class:`Pair` has them; ``unreadable``, how many pictures were; ``before`` and
        ``after``, thresholds.

    Raises
    ------
    OptionError
        If no picture is kept of any part, or there are more than :data:`MOST`.
    """
    if not 1 <= last <= MOST:
        raise OptionError(f"{last} pictures: give 1 to {MOST}")
    rows, files = await run_in_threadpool(_stored, station, product, last)
    if not rows:
        raise OptionError("no picture is kept of any inspected part: there is nothing to compare")
    models = await run_in_threadpool(_models, station, candidate, against)
    names = [name for _row, name in rows]
    after = await station.learner.run("score", told, model=models[0], pictures=names)
    before = None
    if against is not None:
        before = await station.learner.run("score", told, model=models[1], pictures=names)
    pairs, unreadable = [], 0
    for number, (row, _name) in enumerate(rows):
        now = after["scores"][number]
        then = before["scores"][number] if before else None
        if "error" in now or (then and "error" in then):
            unreadable += 1
            continue
        pairs.append(
            Pair(
                row.id,
                row.label,
                then["score"] if then else row.score,
                _verdict(then) if then else row.verdict,
                now["score"],
                _verdict(now),
            )
        )
    return {
        "pairs": [asdict(one) for one in pairs],
        "unreadable": unreadable,
        "gone": files,
        "before": before["threshold"] if before else None,
        "after": after["threshold"],
        "candidate": candidate,
        "against": against,
        "last": last,
    }


def summary(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many verdicts flip, and which way that is, by what people said.

    Keys: ``all``, ``flips``, ``to_good``, ``to_reject``; ``cured`` (false alarms that are none any
    more), ``new_alarms`` (parts known to be good that would be rejected), ``new_misses`` (known bad
    that would pass), ``found`` (misses that would be found), ``bad`` and ``passed`` (known bad, and
    how many of them would pass).
    """
    kinds: Counter[str] = Counter()
    for one in pairs:
        kinds["all"] += 1
        kinds["flips"] += one.flips
        kinds["to_good"] += one.flips and one.now == "good"
        kinds["to_reject"] += one.flips and one.now == "reject"
        kinds["cured"] += one.flips and one.label == "good" and one.now == "good"
        kinds["new_alarms"] += one.flips and one.label == "good" and one.now == "reject"
        kinds["new_misses"] += one.flips and one.label == "bad" and one.now == "good"
        kinds["found"] += one.flips and one.label == "bad" and one.now == "reject"
        kinds["bad"] += one.label == "bad"
        kinds["passed"] += one.label == "bad" and one.now == "good"
    names = ("all", "flips", "to_good", "to_reject", "cured", "new_alarms", "new_misses", "found")
    return {name: kinds[name] for name in (*names, "bad", "passed")}


def known_bad(session: Session, product: int) -> int:
    """How many parts of a product are known to be bad, with a picture."""
    asked = sa.select(sa.func.count()).select_from(Inspection)
    asked = asked.where(
        Inspection.label == "bad",
        Inspection.product_id == product,
        Inspection.picture_id.is_not(None),
    )
    return session.scalar(asked) or 0


def _verdict(told: dict[str, Any]) -> str:
    if told["is_anomalous"] is None:
        return "not-inspected"
    return "reject" if told["is_anomalous"] else "good"


def _stored(station: Station, product: int, last: int) -> tuple[list[tuple[Inspection, str]], int]:
    """Inspections with the names of their pictures, and how many of those are gone."""
    row = Inspection
    asked = (
        sa.select(row, Picture.file)
        .join(Picture, Picture.id == row.picture_id)
        .where(row.product_id == product, row.verdict != "not-inspected", row.score.is_not(None))
        .order_by(row.received.desc(), row.id.desc())
    )
    with station.database.reading() as session:
        found = {one.id: (one, name) for one, name in session.execute(asked.limit(last))}
        bad = asked.where(row.label == "bad").limit(min(last * 10, MOST))
        found |= {one.id: (one, name) for one, name in session.execute(bad)}
    there = [pair for pair in found.values() if (station.files / pair[1]).is_file()]
    return there, len(found) - len(there)


def _models(station: Station, candidate: int, against: int | None) -> list[str]:
    with station.database.reading() as session:
        wanted = [one for one in (candidate, against) if one is not None]
        return [session.get_one(Version, one).file for one in wanted]
