"""A station made of a backup: checked before anything is there, and then all of it at once."""

import base64
import hashlib
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from offnominal._version import __version__
from offnominal.errors import OptionError
from offnominal.station.store.database import Database, revisions
from offnominal.station.store.manifest import FORMAT, Entry, Kind, Manifest, fits

__all__ = ["restore"]

_CHUNK = 2**20
_LONGEST_LINE = 2**26  # bytes of one row
_PART = 2_000


def restore(file: Path, folder: Path, database: str = "") -> None:
    """Make a station of a backup.

    Nothing is there before everything was checked, and written.

    Parameters
    ----------
    file : Path
    folder : Path
        Where there is nothing yet, or an empty folder.
    database : str
        URL of an empty database; empty: SQLite in the folder.

    Raises
    ------
    OptionError
        If the folder or the database is not empty, the file is no backup, is damaged, holds what
        no backup holds or more than there is room for, or is of a newer release.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{folder}: is not empty; restore into a new folder")
    # Beside it, so that it takes its place in one step.
    aside = folder.with_name(f".{folder.name}-restoring")
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True, mode=0o700)
    try:
        with zipfile.ZipFile(file) as packed:
            manifest = _checked(packed, file, aside)
            for name, entry in manifest.files.items():
                if not name.startswith("rows/"):
                    _extract(packed, name, entry, aside / name, file)
            records = Database(database or f"sqlite:///{aside / 'station.sqlite'}")
            try:
                _fill(records, packed, manifest, file)
            finally:
                records.close()
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise OptionError(f"{file}: is no backup, or is damaged ({error})") from error
    except OSError as error:
        raise OptionError(f"{file}: cannot be restored ({error.strerror or error})") from error
    finally:
        if aside.exists():
            shutil.rmtree(aside)


def _checked(packed: zipfile.ZipFile, file: Path, aside: Path) -> Manifest:
    entries = {info.filename: info for info in packed.infolist()}
    if len(entries) != len(packed.infolist()):
        raise OptionError(f"{file}: holds two files of one name; it is no backup")
    if "manifest.json" not in entries or entries["manifest.json"].file_size > 2**30:
        raise OptionError(f"{file}: has no manifest; it is no backup, or not all of one")
    try:
        manifest = Manifest.model_validate_json(packed.read("manifest.json"))
    except ValidationError as error:
        where = ".".join(str(one) for one in error.errors()[0]["loc"])
        raise OptionError(f"{file}: its manifest is wrong at {where or 'its beginning'}") from error
    if manifest.format != FORMAT or manifest.schema_ not in revisions():
        raise OptionError(
            f"{file}: made by offnominal {manifest.offnominal}, which is newer than this "
            f"{__version__}; update first"
        )
    if set(entries) != {*manifest.files, "manifest.json"}:
        raise OptionError(f"{file}: holds other files than its manifest says")
    for name, entry in manifest.files.items():
        if not fits(name):
            raise OptionError(f"{file}: holds {name[:100]!r}, which no backup holds")
        if stat.S_ISLNK(entries[name].external_attr >> 16):
            raise OptionError(f"{file}: holds a link, {name[:100]!r}, which no backup holds")
        if entries[name].file_size != entry.size or entry.size < 0:
            raise OptionError(f"{file}: {name} has another size than the manifest says")
    if {f"rows/{name}.jsonl" for name in manifest.tables} - entries.keys():
        raise OptionError(f"{file}: misses rows that its manifest names")
    need = sum(entry.size for entry in manifest.files.values())
    free = shutil.disk_usage(aside).free
    if need > free:
        raise OptionError(
            f"{file}: needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {aside.parent}"
        )
    return manifest


def _pieces(packed: zipfile.ZipFile, name: str, entry: Entry, file: Path) -> Iterator[bytes]:
    """An entry's content, never more than was announced, and checked at its end."""
    hashed, size = hashlib.sha256(), 0
    with packed.open(name) as opened:
        while piece := opened.read(_CHUNK):
            size += len(piece)
            hashed.update(piece)
            if size > entry.size:
                break
            yield piece
    if size != entry.size or hashed.hexdigest() != entry.digest:
        raise OptionError(f"{file}: {name} is damaged (its digest is another)")


def _extract(packed: zipfile.ZipFile, name: str, entry: Entry, path: Path, file: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("xb") as target:
        for piece in _pieces(packed, name, entry, file):
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())


def _fill(records: Database, packed: zipfile.ZipFile, manifest: Manifest, file: Path) -> None:
    inspector = sa.inspect(records.engine)
    if inspector.get_table_names():
        raise OptionError("--database: is not empty; restore into a new one")
    records.upgrade(manifest.schema_)
    there = sa.MetaData()
    there.reflect(records.engine)
    try:
        with records.engine.connect() as connection:
            connection = connection.execution_options(offnominal_writes=True)
            with connection.begin():
                for table in there.sorted_tables:
                    if table.name in manifest.tables:
                        _insert(connection, table, packed, manifest, file)
                if not records.is_sqlite:
                    _count_on(connection, there)
    except (sa.exc.SQLAlchemyError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{file}: its rows do not fit ({type(error).__name__})") from error
    records.upgrade()


def _insert(
    connection: sa.Connection,
    table: sa.Table,
    packed: zipfile.ZipFile,
    manifest: Manifest,
    file: Path,
) -> None:
    told = manifest.tables[table.name]
    name = f"rows/{table.name}.jsonl"
    part: list[dict[str, Any]] = []
    count = 0
    for line in _lines(_pieces(packed, name, manifest.files[name], file), name):
        row = json.loads(line)
        if row.keys() != told.columns.keys():
            raise OptionError(f"{file}: row {count + 1} of {table.name} has other columns")
        part.append({key: _value(told.columns[key], value) for key, value in row.items()})
        count += 1
        if len(part) == _PART:
            connection.execute(table.insert(), part)
            part = []
    if part:
        connection.execute(table.insert(), part)
    if count != told.rows:
        raise OptionError(f"{file}: {table.name} has {count} rows, not {told.rows}")


def _lines(pieces: Iterator[bytes], name: str) -> Iterator[bytes]:
    held = b""
    for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        if len(held) > _LONGEST_LINE:
            raise OptionError(f"{name}: a row is longer than any is")
        yield from whole
    if held:
        yield held


def _value(kind: Kind, value: Any) -> Any:
    if value is None or kind in ("plain", "json"):
        return value
    return (
        datetime.fromisoformat(value).astimezone(UTC) if kind == "time" else base64.b64decode(value)
    )


def _count_on(connection: sa.Connection, there: sa.MetaData) -> None:
    """PostgreSQL's own counters go on after the rows' numbers."""
    for table in there.sorted_tables:
        if "id" in table.columns:
            last = connection.execute(sa.select(sa.func.max(table.c.id))).scalar()
            if last is not None:
                told = sa.func.setval(sa.func.pg_get_serial_sequence(table.name, "id"), last)
                connection.execute(sa.select(told))
