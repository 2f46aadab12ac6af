"""The images of a run, listed as they are worked at: a folder, a list, or other names."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from offnominal.errors import OptionError
from offnominal.extras import needs
from offnominal.paths import PassedOver, find_images, stamp, walk_in_order
from offnominal.scale.parts import is_url

__all__ = ["listed", "stamp_of"]

_LISTS = (".txt", ".parquet")
_COLUMNS = ("image", "path", "url", "file")
_ROWS = 4096  # of a list, in memory at once


def listed(names: Sequence[str], passed: PassedOver) -> Iterator[str]:
    """Names of the images, in the order in which one process would score them.

    A single folder, and a single list (``.txt``: a name a line; ``.parquet``: a column named
    image, path, url or file), are read as they are needed; several names, and patterns, at once.

    Raises
    ------
    OptionError
        If there is no image, or a list cannot be read.
    """
    if len(names) == 1 and Path(names[0]).suffix.lower() in _LISTS:
        found = _of_list(names[0])
    elif len(names) == 1 and Path(names[0]).is_dir():
        found = map(str, walk_in_order(names[0], passed))
    else:
        yield from map(str, find_images(names, passed))
        return
    empty = True
    for name in found:
        empty = False
        yield name
    if empty:
        if Path(names[0]).is_dir():
            find_images(names)  # says what it looked for
        raise OptionError(f"{names[0]}: names no image")


def stamp_of(name: str) -> str:
    """What tells a file from another of its name; of what lies in a store, nothing."""
    return "" if is_url(name) else stamp(name)


def _of_list(name: str) -> Iterator[str]:
    rows = _of_table(name) if name.lower().endswith(".parquet") else _of_text(name)
    for row in rows:
        if row:
            yield row if is_url(row) else str(Path(row))


def _of_text(name: str) -> Iterator[str]:
    try:
        # Some editors begin a file with a mark of its encoding.
        with Path(name).open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
            for line in lines:
                yield line.rstrip("\r\n")
    except OSError as error:
        raise OptionError(f"{name}: cannot be read ({error.strerror})") from error


def _of_table(name: str) -> Iterator[str]:
    parquet = needs("pyarrow.parquet", "scale", name)
    try:
        with parquet.ParquetFile(name) as table:
            there = [one for one in _COLUMNS if one in table.schema_arrow.names]
            if not there:
                told = f"has no column named {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}"
                raise OptionError(f"{name}: {told}; rename the one with the images")
            for batch in table.iter_batches(_ROWS, columns=there[:1]):
                yield from (str(one or "") for one in batch.column(0).to_pylist())
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{name}: cannot be read as Parquet ({error})") from error
