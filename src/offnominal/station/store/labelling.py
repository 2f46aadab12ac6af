"""What people say of inspections: kept each time, and the last one counts."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from offnominal.errors import OptionError
from offnominal.station.access import audit
from offnominal.station.store.tables import Inspection, Label

__all__ = ["MOST", "LabelName", "label", "undo"]

LabelName = Literal["good", "bad"]
MOST = 1_000
"""Inspections that are labelled at once."""


def label(
    session: Session,
    inspections: Sequence[int],
    label: LabelName | None,
    by: str,
    kind: str | None = None,
) -> list[int]:
    """Say of some inspections what they are; None takes back what was said.

    Parameters
    ----------
    session : Session
        That writes.
    inspections : sequence of int
        At most ``MOST``; those that say so already stay as they are.
    label : {"good", "bad"} or None
    by : str
    kind : str or None
        The kind of defect, of what is bad.

    Returns
    -------
    list of int
        Those that changed, in the order of their numbers.

    Raises
    ------
    OptionError
        If there are too many, or one that there is not.
    """
    if len(inspections) > MOST:
        raise OptionError(f"{len(inspections)} labels at once: give {MOST} at most")
    kind = kind if label == "bad" else None
    rows = session.scalars(sa.select(Inspection).where(Inspection.id.in_(inspections))).all()
    if missing := set(inspections) - {row.id for row in rows}:
        raise OptionError(f"inspection {min(missing)}: there is none of this number")
    changed = [row for row in rows if (row.label, row.kind) != (label, kind)]
    now = datetime.now(UTC)
    for row in changed:
        _say(session, row, label, kind, by, now)
    numbers = sorted(row.id for row in changed)
    if numbers:
        which = str(numbers[0]) if len(numbers) == 1 else f"{len(numbers)} inspections"
        audit.note(
            session, by, "inspection.label", which, label=label, kind=kind, inspections=numbers
        )
    return numbers


def undo(session: Session, inspection: int, by: str) -> bool:
    """Go back to what was said of an inspection before; once more brings back the last.

    Returns
    -------
    bool
        Whether there was anything to go back from.

    Raises
    ------
    OptionError
        If there is no such inspection.
    """
    row = session.get(Inspection, inspection)
    if row is None:
        raise OptionError(f"inspection {inspection}: there is none of this number")
    said = sa.select(Label).where(Label.inspection_id == inspection).order_by(Label.id.desc())
    last = session.scalars(said.limit(2)).all()
    if not last:
        return False
    label, kind = (last[1].label, last[1].kind) if len(last) == 2 else (None, None)
    _say(session, row, label, kind, by, datetime.now(UTC))
    audit.note(session, by, "inspection.label.undo", str(inspection), label=label, kind=kind)
    return True


def _say(
    session: Session, row: Inspection, label: str | None, kind: str | None, by: str, now: datetime
) -> None:
    row.label, row.kind = label, kind
    row.labelled_by, row.labelled = (by, now) if label else (None, None)
    session.add(Label(inspection_id=row.id, label=label, kind=kind, by=by, at=now))
