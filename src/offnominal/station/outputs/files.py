"""A file for each day, CSV or Parquet; whole rows only, each once.

CSV: a row is on the disk before it counts as delivered, and half a row that a power cut left is
taken away when the file is opened again. Parquet files cannot be added to, so a day is a folder of
pieces, which readers take as one table.
"""

import asyncio
import csv
import io
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

from offnominal.atomic import replacing
from offnominal.extras import needs
from offnominal.station.outputs.message import COLUMNS
from offnominal.station.outputs.queue import Queue, Send
from offnominal.station.outputs.settings import FilesSettings
from offnominal.station.station import Station

__all__ = ["as_csv", "run", "write_parquet"]

_BATCH = 500
_NUMBERS = {"score", "threshold", "p_value", "brightness", "sharpness", "milliseconds"}
_WHOLE = {"id", "recipe", "version"}
_TIMES = {"received", "finished"}


def as_csv(messages: Iterable[dict[str, Any]], header: bool = True) -> str:
    """Messages as lines of CSV; lists and objects as JSON.

    Text that a spreadsheet would take for a formula gets an apostrophe in front: serial numbers and
    labels come from outside.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    writer.writerows([_plain(one[name]) for name in COLUMNS] for one in messages)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False) if value else ""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def write_parquet(messages: Iterable[dict[str, Any]], path: Path) -> None:
    """Messages as a Parquet file, which is there whole or not at all.

    Raises
    ------
    MissingExtraError
        Without pyarrow.
    """
    arrow = needs("pyarrow", "benchmark", "Parquet")
    parquet = needs("pyarrow.parquet", "benchmark", "Parquet")
    kinds = {
        **dict.fromkeys(_NUMBERS, arrow.float64()),
        **dict.fromkeys(_WHOLE, arrow.int64()),
        **dict.fromkeys(_TIMES, arrow.timestamp("us", tz="UTC")),
    }
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in COLUMNS])
    rows = [{name: _typed(name, one[name]) for name in COLUMNS} for one in messages]
    table = arrow.Table.from_pylist(rows, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        parquet.write_table(table, temporary)


def _typed(name: str, value: Any) -> Any:
    if name in _TIMES:
        return datetime.fromisoformat(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


async def run(station: Station, settings: FilesSettings) -> None:
    """Write until cancelled."""
    zone = ZoneInfo(station.settings.timezone) if station.settings.timezone else None
    write = _append_csv if settings.format == "csv" else _add_parquet

    @asynccontextmanager
    async def connect() -> AsyncIterator[Send]:
        known: dict[Path, set[str]] = {}  # requests that files have, of the days at hand

        async def send(messages: list[dict[str, Any]]) -> None:
            days: dict[str, list[dict[str, Any]]] = {}
            for one in messages:
                at = datetime.fromisoformat(one["received"]).astimezone(zone)
                days.setdefault(at.date().isoformat(), []).append(one)
            for day, rows in days.items():
                path = settings.folder / f"{settings.name} {day}"
                await asyncio.to_thread(write, path, rows, known)
            messages.clear()
            while len(known) > 2:  # a new day began
                del known[min(known)]

        yield send

    every = settings.every if settings.format == "parquet" else 0.0
    await Queue(station, settings, _BATCH, every).run(connect)


def _append_csv(name: Path, rows: list[dict[str, Any]], known: dict[Path, set[str]]) -> None:
    path = name.with_name(f"{name.name}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if path not in known:
            known[path] = _whole_rows(file)
        new = [one for one in rows if one["request"] not in known[path]]
        file.seek(0, os.SEEK_END)
        file.write(as_csv(new, header=file.tell() == 0).encode())
        file.flush()
        os.fsync(file.fileno())
    known[path] |= {one["request"] for one in new}


def _whole_rows(file: BinaryIO) -> set[str]:
    """Requests of the rows that are there; what is no whole row at the end is taken away."""
    file.seek(0)
    content = file.read()
    end = place = 0
    quotes = 0
    for line in content.splitlines(keepends=True):
        place += len(line)
        quotes += line.count(b'"')  # a line break within quotes ends no row
        if quotes % 2 == 0 and line.endswith(b"\n"):
            end = place
    file.truncate(end)
    table = csv.DictReader(io.StringIO(content[:end].decode(), newline=""))
    return {row["request"].removeprefix("'") for row in table}


def _add_parquet(name: Path, rows: list[dict[str, Any]], known: dict[Path, set[str]]) -> None:
    """A piece more of a day's folder."""
    if name not in known:
        parquet = needs("pyarrow.parquet", "benchmark", "Parquet")
        pieces = name.glob("*.parquet")
        known[name] = {
            request
            for piece in pieces
            for request in parquet.read_table(piece, columns=["request"])["request"].to_pylist()
        }
    new = [one for one in rows if one["request"] not in known[name]]
    if new:
        write_parquet(new, name / f"{len(known[name]):08d}.parquet")
        known[name] |= {one["request"] for one in new}
