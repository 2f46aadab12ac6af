"""Inspections as a worker would have stored them: real pictures, real maps."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import offnominal
from offnominal.prediction import Prediction
from offnominal.station.learning.versions import record
from offnominal.station.station import Station
from offnominal.station.store.tables import Inspection, PatchScores, Picture, Product

__all__ = ["FACTS", "NOW", "a_picture", "add", "add_judged", "add_product"]

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
FACTS = {
    "method": "anomalydino",
    "smoothing": 4.0,
    "good_scores": [0.5, 0.6, 0.7, 0.8],
    "good_kind": "leave-one-out",
    "leave_one_out": "exact",
}


def add_product(
    station: Station, name: str = "Tile", threshold: float = 1.0, **facts: Any
) -> tuple[int, int]:
    """A product with one live version, whose file is not there; ids of both."""
    made = {"digest": "0" * 64, "threshold": threshold, "promise": "", "facts": FACTS | facts}
    with station.database.writing() as session:
        row = Product(name=name, created=NOW - timedelta(days=30))
        session.add(row)
        session.flush()
        version = record(session, row.id, made, f"models/{row.id}/1.offn", "ada", "fit")
        version.made = NOW - timedelta(days=20)
        row.live_id = version.id
        return row.id, version.id


def a_picture(shade: int = 128, side: int = 24) -> bytes:
    """A PNG of a grey gradient."""
    pixels = np.linspace(0, shade, side * side, dtype=np.uint8).reshape(side, side)
    sink = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(sink, "png")
    return sink.getvalue()


def add(
    station: Station,
    product: int,
    version: int | None,
    scores: Sequence[float | None],
    every: timedelta = timedelta(minutes=1),
    last: datetime = NOW,
    pictures: Sequence[bytes] = (),
    **same: Any,
) -> list[int]:
    """Inspections with these scores, the last one at ``last``; their ids in the order of time."""
    found = []
    with station.database.writing() as session:
        for place, score in enumerate(scores):
            received = last - every * (len(scores) - 1 - place)
            row = Inspection(
                request=f"{product} {received.isoformat()} {place} {len(found)} {id(scores)}",
                product_id=product,
                version_id=version,
                source="http",
                meta={},
                received=received,
                finished=received + timedelta(milliseconds=20),
                score=score,
                threshold=None if score is None else 1.0,
                verdict="not-inspected" if score is None else "reject" if score > 1 else "good",
                reason="timeout: the deadline passed" if score is None else "",
                told="reject" if score is None or score > 1 else "good",
                regions=[],
                brightness=0.5,
                sharpness=3.0,
                milliseconds=20.0,
            )
            for name, value in same.items():
                setattr(row, name, value)
            if pictures:
                row.picture = _picture(station, session, pictures[place % len(pictures)], received)
            session.add(row)
            session.flush()
            found.append(row.id)
    return found


def add_judged(
    station: Station, product: int, version: int, model: Path, pictures: Sequence[Path]
) -> list[tuple[int, Prediction]]:
    """Pictures that the model judges, stored with their maps; ids and what it said."""
    detector = offnominal.load(model)
    found = []
    for place, one in enumerate(detector.stream(list(pictures))):
        content = pictures[place].read_bytes()
        told = one.to_dict()
        [number] = add(
            station,
            product,
            version,
            [one.score],
            last=NOW + timedelta(seconds=place),
            pictures=[content],
            threshold=one.threshold,
            pixel_threshold=one.pixel_threshold,
            p_value=one.p_value,
            regions=told["regions"],
            verdict="reject" if one.is_anomalous else "good",
            width=told["width"],
            height=told["height"],
        )
        rows, columns = one.patch_scores.shape
        values = one.patch_scores.astype("<f4").tobytes()
        kept = PatchScores(inspection_id=number, rows=rows, columns=columns, values=values)
        with station.database.writing() as session:
            session.add(kept)
        found.append((number, one))
    return found


def _picture(station: Station, session: Any, content: bytes, kept: datetime) -> Picture:
    digest, name = station.files.keep_picture(content, ".png")
    known = session.query(Picture).filter_by(digest=digest).one_or_none()
    return known or Picture(digest=digest, file=name, size=len(content), kept=kept)
