"""The rows of a folder of results: lines of JSON, and the CSV and the page made of them."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from offnominal.atomic import writing
from offnominal.exchange import flat
from offnominal.text import cell, json_line

__all__ = ["PAGE", "RESULTS", "name_of", "read_rows", "write_csv", "write_tables"]

PAGE = "index.html"
RESULTS = "results.jsonl"
_COLUMNS = (
    "image", "score", "threshold", "is_anomalous", "p_value", "height", "width",
    "regions", "left", "top", "region_width", "region_height", "area", "peak", "kind",
    "category", "missing_points", "error",
)  # fmt: skip

_Picture = Annotated[str | None, Field(pattern="^(overlays|maps|masks|thumbnails|clouds)/")]
_Side = Annotated[int, Field(ge=1)]


class _Region(BaseModel):
    box: tuple[int, int, int, int]
    area: int
    peak: float = Field(allow_inf_nan=False)
    peak_at: tuple[int, int]


class _Row(BaseModel):
    """What a line of an earlier run must say to count as done, and to be shown."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    image: str
    score: float
    threshold: float | None
    is_anomalous: bool | None
    p_value: float | None = None
    height: _Side
    width: _Side
    regions: list[_Region]
    file: str = ""
    overlay: _Picture = None
    map: _Picture = None
    mask: _Picture = None
    thumbnail: _Picture = None
    cloud: _Picture = None
    missing_points: int | None = None


def name_of(row: dict[str, Any]) -> str:
    """The image of a row as it was named."""
    raw = row.get("image_bytes")
    return os.fsdecode(bytes.fromhex(raw)) if isinstance(raw, str) else str(row["image"])


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows that are there; what a stop cut short or nobody here wrote is passed over."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
                name_of(row), json_line(row)  # what cannot be written again was not written here
                if "score" in row:
                    _Row.model_validate(row, strict=False)
                elif not (isinstance(row["image"], str) and isinstance(row["error"], str)):
                    continue
            except (AttributeError, ValueError, TypeError, KeyError, RecursionError):
                continue
            yield row


def write_tables(
    folder: Path,
    kinds: frozenset[str],
    rows: Callable[[], Iterable[dict[str, Any]]],
    about: Sequence[tuple[str, str]],
) -> None:
    """The CSV and the page of a folder, where they are among the kinds."""
    if "csv" in kinds:
        with (
            writing(folder / "results.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            write_csv(file, rows())
    if "page" in kinds:
        from offnominal.report.inspection import write_inspection

        write_inspection(folder, [row | {"name": name_of(row)} for row in rows()], about)


def write_csv(file: io.TextIOBase, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as a CSV, one by one."""
    table = csv.DictWriter(file, _COLUMNS)
    table.writeheader()
    table.writerows(_flat(row) for row in rows)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the CSV: of the regions, their number and the one with the highest peak."""
    told = flat(row) if "regions" in row else row
    return {name: cell(told.get(name)) for name in _COLUMNS}
