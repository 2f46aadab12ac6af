"""The audit log: added to, within the transaction of what it tells of.

Each row has a seal, the SHA-256 of the row and of the seal before it: who changes, takes out or
moves a row in the database's file breaks the chain there. Triggers of the database refuse changes
that come through the application (``store/triggers.py``).
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from offnominal.station.store.tables import Audit

__all__ = ["broken", "note", "text_of"]

_LOCK = 7_236_485_110  # any number, the same for all who add to the log


def note(session: Session, by: str, action: str, object: str = "", **detail: Any) -> None:
    """Say who did what; no secrets in ``detail``, which is kept for good.

    It is written when the session commits, after all else, so that those who wait for each other's
    rows of the log hold nothing that the other one needs.

    Raises
    ------
    RuntimeError
        If the session is none of ``database.writing()``.
    """
    if not session.info.get("writes"):
        raise RuntimeError("the audit log is written in `database.writing()`")
    told = json.loads(json.dumps(detail, allow_nan=False))
    # What JSON can escape and PostgreSQL's text cannot hold.
    by, object = by.replace("\0", "\ufffd")[:100], object.replace("\0", "\ufffd")[:200]
    notes = session.info.setdefault("notes", [])
    if not notes:
        event.listen(session, "before_commit", _write, once=True)
    notes.append(Audit(by=by, action=action, object=object, detail=told))


def broken(session: Session) -> int | None:
    """The first row whose seal does not fit, by its id; None where all do."""
    last = ""
    rows = sa.select(Audit).order_by(Audit.id).execution_options(yield_per=1000)
    for row in session.scalars(rows):
        if row.seal != _seal(last, row):
            return row.id
        last = row.seal
    return None


def text_of(detail: dict[str, Any]) -> str:
    """A row's details in one line, as an export has them."""
    return json.dumps(detail, ensure_ascii=False, sort_keys=True)


def _write(session: Session) -> None:
    if session.get_bind().dialect.name == "postgresql":
        # SQLite's writers are alone since they began.
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    last = session.scalar(sa.select(Audit.seal).order_by(Audit.id.desc()).limit(1)) or ""
    for row in session.info.pop("notes"):
        row.at = datetime.now(UTC)
        row.seal = last = _seal(last, row)
        session.add(row)
        session.flush()


def _seal(last: str, row: Audit) -> str:
    told = [last, row.at.isoformat(), row.by, row.action, row.object, row.detail]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
