"""A model file: one safetensors file, a JSON header in its metadata, and no pickle.

The metadata's entry ``offnominal`` is a JSON object with the format's version, the library's
version, a checksum of every tensor and what the caller adds; first of all comes ``sha256``, the
digest of the rest of the text. Reading checks both, so a flipped bit anywhere is found before
anything is decided with it. Nothing here knows what a detector is.
"""

import hashlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from offnominal._version import __version__
from offnominal.atomic import replacing
from offnominal.errors import ModelFileError
from offnominal.filekinds import MODEL, is_model, what_is
from offnominal.text import brief

__all__ = ["FORMAT", "Mapped", "is_model", "read", "read_header", "release", "verify", "write"]

# 4: checksums, and sizes that complete the last patch; 3 and before had neither. 6: calibrations in
# the history, and thresholds set by hand; a file of 5 is read as one without.
FORMAT = 6
_READ = (5, FORMAT)
_KEY, _SUMS = "offnominal", "sums"
_DIGEST = '{"sha256": "'
# Of safetensors' names of types those that are written here.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "BOOL": "?",
}  # fmt: skip
_PIECE = 4 * 2**20  # bytes that one thread sums up at a time


class _Header(BaseModel):
    """What every model file says; the rest is its method's own."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: int
    version: str
    method: str
    options: dict[str, Any]
    sums: dict[str, list[int]]


def write(path: Path, header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a model file; it appears whole or not at all.

    Parameters
    ----------
    path : Path
    header : mapping
        Plain values; format, version and checksums are added.
    tensors : mapping of str to array

    Raises
    ------
    ModelFileError
        If it cannot be written, or a number in the header is not finite.
    """
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    sums = {name: _sums(array) for name, array in arrays.items()}
    full = {"format": FORMAT, "version": __version__, **header, _SUMS: sums}
    path = Path(os.path.realpath(path))  # a link leads to the model that is meant
    try:
        text = json.dumps(full, allow_nan=False)
        with replacing(path) as temporary:
            # One entry: of several the library writes now the one first and now the other.
            save_file(arrays, temporary, metadata={_KEY: _signed(text)})
    except (OSError, SafetensorError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelFileError(f"{path}: cannot be written ({reason})") from error


def read_header(path: Path) -> dict[str, Any]:
    """The header of a model file, without its tensors.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, foreign, of another format, or not as it was written.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        name = path.name if path.suffix == ".offn" else "part.offn"
        raise ModelFileError(
            f"{path}: {what}; a model file is made by `offnominal fit GOOD_DIR -o {name}`"
        )
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # the reader has many ways to say that bytes are wrong
        what = "" if path.suffix == ".offn" else what_is(path)  # a part of a model may be anything
        if what and what != MODEL:
            told = f"is {what}, not an Offnominal model file; `offnominal fit` makes one"
            raise ModelFileError(f"{path}: {told}") from error
        raise ModelFileError(
            f"{path}: truncated, or not an Offnominal model file ({brief(error)}); copy it again "
            "or fit it anew"
        ) from error
    if _KEY not in metadata:
        raise ModelFileError(
            f"{path}: a safetensors file, but not an Offnominal model; if it holds a network's "
            "weights, give it with --weights"
        )
    try:
        header = json.loads(metadata[_KEY])
        version = header["format"] if isinstance(header["format"], int) else 0
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{path}: its header is damaged; fit it anew") from error
    if version not in _READ:
        remedy = "install a newer one" if version > FORMAT else "fit it anew"
        raise ModelFileError(
            f"{path}: written by Offnominal {brief(header.get('version'))} in format "
            f"{brief(header['format'])}; this is {__version__}, which reads formats {_READ[0]} to "
            f"{FORMAT}: {remedy}"
        )
    if _signed("{" + metadata[_KEY][len(_signed("{")) :]) != metadata[_KEY]:
        raise ModelFileError(
            f"{path}: its header is not as it was written (checksum); copy it again or fit it anew"
        )
    try:
        return _Header.model_validate(header).model_dump(exclude={"sha256"})
    except ValidationError as error:
        raise ModelFileError(f"{path}: its header is damaged ({first_of(error)})") from error


def _signed(text: str) -> str:
    """The text of a JSON object, with its digest as the first entry."""
    return f'{_DIGEST}{hashlib.sha256(text.encode()).hexdigest()}", {text[1:]}'


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    one = error.errors(include_url=False)[0]
    return brief(f"{'.'.join(map(str, one['loc']))}: {one['msg']}")


def read(
    path: Path,
    header: Mapping[str, Any],
    later: dict[str, Any] | None = None,
    only: str = "",
) -> dict[str, Any]:
    """The arrays of a model file by name; what is written into them changes nothing in the file.

    Large ones, above 4 MiB, are mapped into memory; of the others they are copies, so that nothing
    that is written into the file later changes them.

    Parameters
    ----------
    path : Path
    header : mapping
        What :func:`read_header` gave: its checksums are held against the tensors.
    later : dict or None
        Takes the large tensors, whose checksums :func:`verify` is to compare before they are used:
        to read all of a bank takes longer than to map it.
    only : str
        How the names of those begin that are read.

    Raises
    ------
    ModelFileError
        If they cannot be read, or are not as they were written.
    """
    try:
        # Opening checks that sizes and places fit the file; what it gives would be copies.
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
        tensors = _mapped(path, sorted(name for name in names if name.startswith(only)))
    except Exception as error:
        raise ModelFileError(
            f"{path}: damaged ({brief(error)}); copy it again or fit it anew"
        ) from error
    if odd := header[_SUMS].keys() ^ names:
        raise _changed(path, odd)
    tensors = {name: t if t.nbytes > _PIECE else t.copy() for name, t in tensors.items()}
    large = {name: t for name, t in tensors.items() if t.nbytes > _PIECE and later is not None}
    verify(path, header, {name: t for name, t in tensors.items() if name not in large})
    if later is not None:
        later |= large
    return tensors


def _mapped(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Arrays of a safetensors file that was found to be one."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = 8 + int.from_bytes(data[:8], "little")
    about = json.loads(data[8:start])
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        shape, dtype = about[name]["shape"], np.dtype(_DTYPES[about[name]["dtype"]])
        place = start + about[name]["data_offsets"][0]
        flat = np.frombuffer(data, dtype, math.prod(shape), place)
        found[name] = flat.reshape(shape)
    return found


def release(array: NDArray[Any]) -> None:
    """Give memory back that a mapped array took; where it is used again, the file is read again.

    Nobody may have written into it. Of an array that is not mapped nothing happens.
    """
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.obj if isinstance(base, memoryview) else base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise") and array.nbytes:
        begin = array.ctypes.data - np.frombuffer(base, np.uint8, 1).ctypes.data
        end = begin + array.nbytes
        begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # pages that are all its own
        end = end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            base.madvise(mmap.MADV_DONTNEED, begin, end - begin)


class Mapped:
    """The large arrays of an open file: compared with their checksums once, and watched since.

    What is mapped changes with the file, so one that was written over in place is told before
    anything is decided by it. A file that took its place, as :func:`write` has it, is no matter.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, _state(path)
        self.header: Mapping[str, Any] = {}
        self.tensors: dict[str, Any] = {}

    def __call__(self) -> None:
        """Raise a :class:`ModelFileError` if arrays are not as they were written."""
        verify(self.path, self.header, self.tensors)
        self.tensors = {}
        now = _state(self.path)
        if now != self.found and now[:2] == self.found[:2]:
            raise ModelFileError(
                f"{self.path}: was written over while it was open; load it again, and put new "
                "models in place by renaming, as `cp new.offn tmp && mv tmp part.offn`"
            )


def _state(path: Path) -> tuple[int, ...]:
    """Which file there is, and when it was written; nothing if there is none."""
    try:
        told = path.stat()
    except OSError:
        return ()
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns


def verify(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Hold tensors of a model file against their checksums.

    Raises
    ------
    ModelFileError
        If they are not as they were written.
    """
    if wrong := {name for name, tensor in tensors.items() if _sums(tensor) != header[_SUMS][name]}:
        raise _changed(path, wrong)


def _changed(path: Path, names: Iterable[str]) -> ModelFileError:
    told = "not as written (checksum); copy it again or fit it anew"
    return ModelFileError(f"{path}: {', '.join(sorted(names))} {told}")


def _sums(array: NDArray[Any]) -> list[int]:
    """CRC-32 of each piece of an array, without a copy."""
    data = array.reshape(-1).view(np.uint8).data
    pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
    if len(pieces) < 4:
        return [zlib.crc32(piece) for piece in pieces]
    with ThreadPoolExecutor() as pool:  # the sum leaves the interpreter's lock
        return list(pool.map(zlib.crc32, pieces))
