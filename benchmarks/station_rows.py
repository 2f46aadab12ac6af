"""A station's history of any length, written fast: what its pages and searches are measured on."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa

from offnominal.station.store.database import Database
from offnominal.station.store.tables import Base, Inspection, Label, Picture, Product, Version

__all__ = ["write_history"]

_PART = 20_000
_SOURCES = ("http", "camera north", "camera south", "folder")
_KINDS = ("scratch", "dent", "stain")
_REASONS = (
    "dark: the picture is darker than the references",
    "timeout: the deadline passed",
    "unreadable: the picture cannot be read (truncated)",
)
_ADD_CONSTRAINTS = "the history is for an empty station"


def write_history(
    database: Database,
    count: int = 1_000_000,
    products: int = 3,
    days: int = 120,
    until: datetime | None = None,
    seed: int = 0,
) -> None:
    """Fill an empty station's records with inspections, labels and pictures' rows.

    Four in a hundred parts are rejected, one in two hundred is not inspected, one in fifty was
    labelled; scores are log-normal and drift a little at the end; serial numbers count up. The
    pictures' files are not written.

    Parameters
    ----------
    database : Database
        With its schema, and without products.
    count, products, days : int
    until : datetime or None
        When the last one was received; None: now.
    seed : int
    """
    until = until or datetime.now(UTC)
    begin = until - timedelta(days=days)
    rng = np.random.default_rng(seed)
    with database.writing() as session:
        if session.scalar(sa.select(sa.func.count()).select_from(Product)):
            raise ValueError(_ADD_CONSTRAINTS)
        for number in range(1, products + 1):
            good = np.exp(rng.normal(-0.5, 0.15, 60)).tolist()
            facts = {
                "method": "anomalydino",
                "smoothing": 4.0,
                "good_scores": good,
                "good_kind": "leave-one-out",
                "leave_one_out": "exact",
            }
            row = Product(name=f"Part {number}", number=number, created=begin, shadow=False)
            row.cost_miss, row.cost_reject = 50.0, 2.0
            session.add(row)
            session.flush()
            version = Version(
                product_id=row.id,
                number=1,
                file=f"models/{row.id}/1.offn",
                digest=f"{number:064d}",
                made_by="benchmark",
                made=begin,
                how="fit",
                threshold=1.0,
                facts=facts,
            )
            session.add(version)
            session.flush()
            row.live_id = version.id
    with database.reading() as session:
        known = session.execute(sa.select(Version.product_id, Version.id)).all()
    for start in range(0, count, _PART):
        stop = min(start + _PART, count)
        parts = list(_part(rng, known, start, stop, count, begin, days))
        with database.engine.connect() as connection:
            connection = connection.execution_options(offnominal_writes=True)
            with connection.begin():
                for table, rows in (
                    (Picture, [one for one, _, _ in parts]),
                    (Inspection, [one for _, one, _ in parts]),
                    (Label, [one for _, _, one in parts if one]),
                ):
                    connection.execute(Base.metadata.tables[table.__tablename__].insert(), rows)
    if not database.is_sqlite:  # numbers were given, so the sequences stand where they stood
        with database.engine.begin() as connection:
            for name in ("inspections", "pictures"):
                told = f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), {count})"
                connection.exec_driver_sql(told)
        # As autovacuum does by and by; SQLite is measured as it is, without statistics.
        with database.engine.connect() as connection:
            on = connection.execution_options(isolation_level="AUTOCOMMIT")
            on.exec_driver_sql("VACUUM ANALYZE")


Row = dict[str, Any]


def _part(
    rng: np.random.Generator,
    known: Any,
    start: int,
    stop: int,
    count: int,
    begin: datetime,
    days: int,
) -> Iterator[tuple[Row, Row, Row | None]]:
    size = stop - start
    which = rng.integers(len(known), size=size)
    wrong, blind = rng.random(size) < 0.04, rng.random(size) < 0.005
    late = np.clip((np.arange(start, stop) / count - 0.97) / 0.03, 0, 1)
    scores = np.exp(rng.normal(-0.5, 0.15, size) + 0.08 * late + np.where(wrong, 1.2, 0.0))
    said, sources = rng.random(size), rng.integers(len(_SOURCES), size=size)
    light, sharp = rng.normal(0.5, 0.01, size) - 0.03 * late, rng.normal(3, 0.2, size)
    took = rng.gamma(4, 12, size)
    for place in range(size):
        number = start + place + 1
        received = begin + timedelta(days=days * number / count)
        product, version = known[which[place]]
        score = None if blind[place] else float(scores[place])
        verdict = "not-inspected" if score is None else "reject" if score > 1 else "good"
        label = None
        # Half of what was rejected was looked at, and some of what passed.
        if score is not None and said[place] < (0.4 if verdict == "reject" else 0.008):
            label = "bad" if wrong[place] or said[place] < 0.001 else "good"
        kind = _KINDS[number % 3] if label == "bad" else None
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        name = f"pictures/{digest[:2]}/{digest}.png"
        picture = {"id": number, "digest": digest, "file": name, "size": 80_000, "kept": received}
        box = [{"box": [10, 10, 20, 20], "area": 300, "peak": 1.5, "peak_at": [20, 20]}]
        labelled = received + timedelta(hours=2)
        inspection = {
            "id": number,
            "request": f"r{number}",
            "product_id": product,
            "version_id": version,
            "source": _SOURCES[sources[place]],
            "serial": f"SN{number:09d}",
            "meta": {"order": f"A{number // 500}"},
            "received": received,
            "finished": received + timedelta(milliseconds=float(took[place])),
            "picture_id": number,
            "width": 256,
            "height": 256,
            "score": score,
            "threshold": 1.0,
            "pixel_threshold": 1.2,
            "p_value": None if score is None else min(1.0, float(np.exp(-3 * score))),
            "verdict": verdict,
            "reason": _REASONS[number % 3] if score is None else "",
            "told": "reject" if score is None else verdict,
            "regions": box if verdict == "reject" else [],
            "brightness": float(light[place]),
            "sharpness": float(sharp[place]),
            "milliseconds": float(took[place]),
            "label": label,
            "kind": kind,
            "labelled_by": "Ada" if label else None,
            "labelled": labelled if label else None,
        }
        by = {"inspection_id": number, "label": label, "kind": kind, "by": "Ada", "at": labelled}
        yield picture, inspection, by if label else None
