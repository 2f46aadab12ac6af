"""Counting what happened between two times, from an index alone."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from offnominal.station.store.tables import Inspection

__all__ = ["Counts", "counts", "reasons"]


@dataclass(frozen=True)
class Counts:
    """How many parts, by what became of them.

    Attributes
    ----------
    good, reject, not_inspected : int
        By the verdict; what was not inspected is never good.
    false_alarms : int
        Rejected, and good as somebody said.
    misses : int
        Passed as good, and bad as somebody said.
    labelled : int
        Parts of which somebody said anything.
    """

    good: int = 0
    reject: int = 0
    not_inspected: int = 0
    false_alarms: int = 0
    misses: int = 0
    labelled: int = 0

    @property
    def all(self) -> int:
        """All parts that came."""
        return self.good + self.reject + self.not_inspected


def counts(
    session: Session, start: datetime, end: datetime, product: int | None = None
) -> dict[int, Counts]:
    """Counts by product, from a time to before another; products without parts are left out."""
    row = Inspection
    asked = sa.select(row.product_id, row.verdict, row.label, sa.func.count())
    asked = asked.where(row.received >= start, row.received < end)
    if product is not None:
        asked = asked.where(row.product_id == product)
    found: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one, verdict, label, number in session.execute(
        asked.group_by(row.product_id, row.verdict, row.label)
    ):
        mine = found[one]
        mine[verdict.replace("-", "_")] += number
        mine["labelled"] += number if label else 0
        mine["false_alarms"] += number if (verdict, label) == ("reject", "good") else 0
        mine["misses"] += number if (verdict, label) == ("good", "bad") else 0
    return {one: Counts(**mine) for one, mine in found.items()}


def reasons(session: Session, start: datetime, end: datetime) -> list[tuple[str, int]]:
    """Why parts were not inspected, the most frequent first: the code of the reason, and how many.

    The latest 20,000 of them are looked at.
    """
    row = Inspection
    some = sa.select(row.reason).where(
        row.verdict == "not-inspected", row.received >= start, row.received < end
    )
    some = some.order_by(row.received.desc(), row.id.desc()).limit(20_000)
    found: dict[str, int] = defaultdict(int)
    for reason in session.scalars(some):
        found[reason.partition(":")[0]] += 1
    return sorted(found.items(), key=lambda each: (-each[1], each[0]))
