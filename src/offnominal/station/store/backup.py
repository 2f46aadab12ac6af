"""Everything of a station as one file: rows as JSON lines, and the files beside them.

The same file restores to SQLite and to PostgreSQL, whichever it came from. It holds what the
station's folder holds: hashes of passwords and the station's own secrets are among it.
"""

import base64
import hashlib
import json
import stat
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import IO, Any

import sqlalchemy as sa

from offnominal._version import __version__
from offnominal.station.sink import Sink
from offnominal.station.station import Station
from offnominal.station.store.manifest import FORMAT, Entry, Kind, Manifest, Pictures, Table, fits
from offnominal.station.store.restoring import restore
from offnominal.station.store.tables import Base

__all__ = ["Pictures", "backup", "restore"]

_CHUNK = 2**20
_LEFT_OUT = {"sessions"}  # who is logged in
_PART = 2_000


def backup(station: Station, pictures: Pictures = "all") -> Iterator[bytes]:
    """The station as a zip file, piece by piece; nobody waits for it, and it needs no room.

    Rows are those of one moment. Files that are gone when their turn comes are named in the
    manifest.

    Parameters
    ----------
    station : Station
    pictures : {"all", "labelled", "none"}
        Of inspections; those of references are always there.
    """
    sink = Sink()
    made = datetime.now(UTC)
    tables: dict[str, Table] = {}
    files: dict[str, Entry] = {}
    missing: list[str] = []
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as packed:
        with station.database.engine.connect() as connection:
            if not station.database.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                revision = _revision(connection)
                for table in Base.metadata.sorted_tables:
                    if table.name not in _LEFT_OUT:
                        name = f"rows/{table.name}.jsonl"
                        with packed.open(_info(name, made, True), "w", force_zip64=True) as file:
                            hashed = _Hashed(file)
                            count = 0
                            for lines, number in _rows(connection, table):
                                hashed.write(lines)
                                count += number
                                yield sink.take()
                        files[name] = hashed.entry()
                        columns = {column.name: _kind(column) for column in table.columns}
                        tables[table.name] = Table(rows=count, columns=columns)
                wanted = _wanted(connection, station, pictures)
                for name in wanted:
                    if not fits(name):
                        missing.append(name)
                        continue
                    try:
                        opened = (station.files / name).open("rb")
                    except OSError:
                        missing.append(name)
                        continue
                    with opened, packed.open(_info(name, made), "w", force_zip64=True) as file:
                        hashed = _Hashed(file)
                        while piece := opened.read(_CHUNK):
                            hashed.write(piece)
                            yield sink.take()
                    files[name] = hashed.entry()
        manifest = Manifest(
            format=FORMAT,
            offnominal=__version__,
            schema_=revision,
            made=made,
            database="sqlite" if station.database.is_sqlite else "postgresql",
            pictures=pictures,
            missing=missing,
            tables=tables,
            files=files,
        )
        packed.writestr(_info("manifest.json", made, True), manifest.model_dump_json(indent=1))
    yield sink.take()


class _Hashed:
    """Writing on, and what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self._size = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._size += len(content)

    def entry(self) -> Entry:
        return Entry(size=self._size, digest=self._hash.hexdigest())


def _info(name: str, made: datetime, packed: bool = False) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, made.timetuple()[:6])
    info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    info.external_attr = (stat.S_IFREG | 0o600) << 16
    return info


def _revision(connection: sa.Connection) -> str:
    return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())


def _kind(column: sa.Column[Any]) -> Kind:
    name = type(column.type).__name__
    return {"Moment": "time", "LargeBinary": "bytes", "JSON": "json"}.get(name, "plain")  # type: ignore[return-value]  # the values above are of it


def _rows(connection: sa.Connection, table: sa.Table) -> Iterator[tuple[bytes, int]]:
    """A table as JSON lines, in the order of its keys: parents come before their children."""
    kinds = {column.name: _kind(column) for column in table.columns}
    asked = table.select().order_by(*table.primary_key.columns)
    for part in connection.execution_options(yield_per=_PART).execute(asked).partitions():
        lines = []
        for row in part:
            values = row._mapping
            plain = {name: _plain(kind, values[name]) for name, kind in kinds.items()}
            lines.append(json.dumps(plain, separators=(",", ":"), allow_nan=False))
        yield ("\n".join(lines) + "\n").encode(), len(lines)


def _plain(kind: Kind, value: Any) -> Any:
    if value is None or kind in ("plain", "json"):
        return value
    return value.isoformat() if kind == "time" else base64.b64encode(value).decode()


def _wanted(connection: sa.Connection, station: Station, pictures: Pictures) -> Iterator[str]:
    """Names of files, within the station's folder."""
    tables = Base.metadata.tables
    yield from connection.execute(sa.select(tables["versions"].c.file).distinct()).scalars()
    folder = station.files.folder
    for path in sorted((folder / "references").rglob("*")):
        if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix()
    if (folder / "station.toml").is_file():
        yield "station.toml"
    if pictures == "none":
        return
    picture, inspection = tables["pictures"], tables["inspections"]
    asked = sa.select(picture.c.file).order_by(picture.c.id)
    if pictures == "labelled":
        said = sa.exists().where(
            inspection.c.picture_id == picture.c.id, inspection.c.label.is_not(None)
        )
        asked = asked.where(said)
    yield from connection.execution_options(yield_per=_PART).execute(asked).scalars()
