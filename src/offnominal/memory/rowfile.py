"""Rows in a file of their own: written in pieces, mapped when read, never whole in memory.

The file is a safetensors file with one tensor, ``rows`` (N, D) float16: a header of 4096 bytes, so
that rows begin on a page, then row after row. The header is written last. What a process left
unfinished therefore cannot be opened, and nothing is ever unpickled. Features of unit length lose
less in float16 (11 bits of mantissa) than in bfloat16 (8), and take the same room.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from offnominal.errors import ModelFileError, OptionError
from offnominal.memory.search.cutting import batches
from offnominal.text import brief

__all__ = ["RowFile", "RowWriter"]

Halves = NDArray[np.float16]

_HEADER = 4096
_PIECE = 2**26  # bytes that are read at once


class RowWriter:
    """A file of rows that grows; it gets its name when it is closed, and not before.

    Parameters
    ----------
    path : Path
        Written beside itself, as ``path.part``, until :meth:`close`.
    dim : int
        Length of a row.

    Raises
    ------
    OptionError
        If the file cannot be written, or there is one.
    """

    def __init__(self, path: Path, dim: int) -> None:
        if path.exists():  # a model may be using it, which is of no use without it
            raise OptionError(f"{path}: is there already; take it away, or name another file")
        self.path, self.dim, self.count = path, dim, 0
        self._sum = 0
        self._part = path.with_name(path.name + ".part")
        try:
            self._file = self._part.open("w+b")
            self._file.write(bytes(_HEADER))
        except OSError as error:
            raise OptionError(f"{path}: cannot be written ({error.strerror})") from error

    def append(self, rows: NDArray[np.floating]) -> None:
        """Write rows (n, dim) of any float dtype, rounded to float16, behind those that are there.

        Raises
        ------
        OptionError
            If a value does not fit, or the disk is full.
        """
        with np.errstate(over="ignore"):  # which is refused
            halves: Halves = np.ascontiguousarray(rows, dtype="<f2")
        if halves.ndim != 2 or halves.shape[1] != self.dim:
            raise OptionError(f"rows: shape {rows.shape}; {self.path} takes (n, {self.dim})")
        if not np.isfinite(halves).all():
            raise OptionError("rows: some values are not finite in float16, which ends at 65504")
        data = halves.reshape(-1).view(np.uint8).data
        try:
            self._file.write(data)
        except OSError as error:
            raise OptionError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._sum = zlib.crc32(data, self._sum)
        self.count += len(halves)

    @property
    def rows(self) -> Halves:
        """The rows so far (n, dim), mapped."""
        self._file.flush()
        return _mapped(self._part, self.count, self.dim)

    def close(self) -> "RowFile":
        """Write the header, and give the file its name."""
        end = self.count * self.dim * 2
        about = {
            "__metadata__": {"kind": "offnominal rows", "crc32": f"{self._sum:08x}"},
            "rows": {"dtype": "F16", "shape": [self.count, self.dim], "data_offsets": [0, end]},
        }
        text = json.dumps(about).encode().ljust(_HEADER - 8)
        try:
            self._file.seek(0)
            self._file.write(len(text).to_bytes(8, "little") + text)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self.path)
        except OSError as error:
            raise OptionError(f"{self.path}: cannot be written ({error.strerror})") from error
        return RowFile(self.path)

    def discard(self) -> None:
        """Give up what was written."""
        self._file.close()
        self._part.unlink(missing_ok=True)


class RowFile:
    """A finished file of rows.

    Attributes
    ----------
    rows : float16 array of shape (N, dim), mapped
    crc32 : str
        Of all rows, as the file says; :meth:`verify` compares it.

    Raises
    ------
    ModelFileError
        If there is no such file, or it is another.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ModelFileError(
                f"{path}: the file with the bank's rows does not exist; bring it back to where it "
                "was when the model was fitted, or fit anew"
            )
        try:
            with safe_open(path, framework="np") as file:  # which holds sizes against the file
                shape = file.get_slice("rows").get_shape()
                self.crc32: str = (file.metadata() or {})["crc32"]
        except (SafetensorError, OSError, KeyError) as error:
            told = "unfinished, truncated, or no file of a bank's rows"
            raise ModelFileError(f"{path}: {told} ({brief(error)}); fit anew") from error
        self.rows = _mapped(path, *shape)

    def verify(self) -> Self:
        """Read all rows once, and raise a :class:`ModelFileError` if one is not as written."""
        step, found = max(1, _PIECE // (2 * self.rows.shape[1])), 0
        for some in batches(len(self.rows), step):
            found = zlib.crc32(self.rows[some].reshape(-1).view(np.uint8).data, found)
        if f"{found:08x}" != self.crc32:
            raise ModelFileError(f"{self.path}: rows are not as written (checksum); fit anew")
        return self


def _mapped(path: Path, count: int, dim: int) -> Halves:
    if not count:
        return np.empty((0, dim), np.float16)
    mapped: Any = np.memmap(path, "<f2", "r", _HEADER, (count, dim))
    return np.asarray(mapped)
