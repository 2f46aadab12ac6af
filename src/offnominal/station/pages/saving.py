"""Inspections as files: CSV, Parquet, and a ZIP of pictures, made while they are sent."""

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any

from offnominal.station.files import Files
from offnominal.station.sink import Sink
from offnominal.station.store.tables import Inspection

__all__ = ["COLUMNS", "as_csv", "as_parquet", "as_zip", "can_parquet", "plain"]

COLUMNS = {
    **{"id": "int64", "request": "string", "product": "string", "version": "int64"},
    **{"received": "time", "source": "string", "serial": "string", "verdict": "string"},
    **{"reason": "string", "told": "string", "score": "double", "threshold": "double"},
    **{"p_value": "double", "label": "string", "kind": "string", "labelled_by": "string"},
    **{"labelled": "time", "brightness": "double", "sharpness": "double"},
    **{"milliseconds": "double", "width": "int64", "height": "int64", "picture": "string"},
    **{"regions": "string", "meta": "string"},
}
"""Of a file's rows, with their types; regions and metadata are JSON."""

_PICTURES = 2_000
_BYTES = 4 * 10**9
_DANGEROUS = ("=", "+", "-", "@", "\t", "\r")

Parts = Iterable[list[Inspection]]


def plain(row: Inspection) -> dict[str, Any]:
    """An inspection as a row of a file."""
    own: tuple[str, ...] = ("id", "request", "received", "source", "serial", "verdict", "reason")
    own += (
        "told",
        "score",
        "threshold",
        "p_value",
        "label",
        "kind",
        "labelled_by",
        "labelled",
        "brightness",
    )
    own += ("sharpness", "milliseconds", "width", "height")
    found: dict[str, Any] = {name: getattr(row, name) for name in own}
    found["product"] = row.product.name
    found["version"] = row.version.number if row.version else None
    found["picture"] = row.picture.digest if row.picture else None
    found["regions"] = json.dumps(row.regions)
    found["meta"] = json.dumps(row.meta, ensure_ascii=False)
    return {name: found[name] for name in COLUMNS}


def as_csv(parts: Parts) -> Iterator[bytes]:
    """CSV with a head, UTF-8; times are ISO 8601 in UTC."""
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(COLUMNS)
    for part in parts:
        for row in part:
            writer.writerow([_cell(value) for value in plain(row).values()])
        yield sink.getvalue().encode()
        sink.seek(0)
        sink.truncate()
    if rest := sink.getvalue():
        yield rest.encode()


def _cell(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    # A serial number that a spreadsheet would take for a formula is a text to it.
    if isinstance(value, str) and value.startswith(_DANGEROUS):
        return f"'{value}"
    return value


def can_parquet() -> bool:
    """Whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


def as_parquet(parts: Parts) -> Iterator[bytes]:
    """Parquet, a row group for each part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"time": pa.timestamp("us", tz="UTC"), "double": pa.float64()}
    kinds |= {"int64": pa.int64(), "string": pa.string()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    sink = Sink()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pa.Table.from_pylist([plain(row) for row in part], schema))
            yield sink.take()
    yield sink.take()


def as_zip(files: Files, parts: Parts) -> Iterator[bytes]:
    """Pictures as they arrived, the newest 2,000 and 4 GB at most, and what is known of them.

    ``inspections.csv`` in it has all rows whose pictures are there, under ``picture_file``.
    """
    sink = Sink()
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["picture_file", *COLUMNS])
    count = size = 0
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as packed:
        for row in (one for part in parts for one in part):
            if row.picture is None:
                continue
            if count == _PICTURES or size + row.picture.size > _BYTES:
                break
            name = f"{row.verdict}/{row.id}{PurePosixPath(row.picture.file).suffix}"
            try:
                packed.write(files / row.picture.file, name)
            except FileNotFoundError:
                continue
            count, size = count + 1, size + row.picture.size
            writer.writerow([name, *(_cell(value) for value in plain(row).values())])
            yield sink.take()
        packed.writestr("inspections.csv", table.getvalue(), zipfile.ZIP_DEFLATED)
    yield sink.take()
