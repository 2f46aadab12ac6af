"""What a backup says of itself."""

import re
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["FORMAT", "Entry", "Kind", "Manifest", "Pictures", "Table", "fits"]

FORMAT = 1
Pictures = Literal["all", "labelled", "none"]
Kind = Literal["plain", "time", "bytes", "json"]
"""How a column's values are written: as JSON has them, ISO 8601, or base64."""


class Entry(BaseModel):
    """A file: bytes, and their SHA-256."""

    model_config = ConfigDict(extra="forbid")
    size: int
    digest: str


class Table(BaseModel):
    """How many rows, and what their columns hold."""

    model_config = ConfigDict(extra="forbid")
    rows: int
    columns: dict[str, Kind]


class Manifest(BaseModel):
    """What a backup holds; its last entry, since digests are known when all is written."""

    model_config = ConfigDict(extra="forbid")
    format: int
    offnominal: str
    schema_: str
    made: datetime
    database: str
    pictures: Pictures
    missing: list[str]
    tables: dict[str, Table]
    files: dict[str, Entry]


_NAMES = re.compile(
    r"manifest\.json|rows/[a-z_]{1,50}\.jsonl|station\.toml"
    r"|(models|references)(/[^/\\:\x00-\x1f]{1,200}){1,6}"
    r"|pictures/[0-9a-f]{2}/[0-9a-f]{64}(\.[a-z0-9]{1,5})?"
)


def fits(name: str) -> bool:
    """Whether a file of a backup may have this name: within the folder, where such files lie."""
    odd = {".", ".."} & set(name.split("/"))
    return bool(_NAMES.fullmatch(name)) and not odd
