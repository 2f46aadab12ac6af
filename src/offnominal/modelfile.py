"""A model file: one safetensors file, a JSON header in its metadata, and no pickle.

The metadata's entry ``offnominal`` is a JSON object with the format's version, the library's
version, a checksum of every tensor and what the caller adds; first of all comes ``sha256``, the
digest of the rest of the text. Reading checks both, so a flipped bit anywhere is found before
anything is decided with it. Nothing here knows what a detector is.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from offnominal._version import __version__
from offnominal.atomic import replacing
from offnominal.errors import ModelFileError
from offnominal.text import brief

__all__ = ["FORMAT", "is_model", "read", "read_header", "verify", "write"]

# 4: checksums, and sizes that complete the last patch; 3 and before had neither.
FORMAT = 5
_KEY, _SUMS = "offnominal", "sums"
_DIGEST = '{"sha256": "'
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


def is_model(path: Path) -> bool:
    """Whether a file is a model file, of whatever format, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(_PIECE)
    except OSError:
        return False
    return b'"__metadata__"' in head and f'"{_KEY}"'.encode() in head


def read_header(path: Path) -> dict[str, Any]:
    """The header of a model file, without its tensors.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, foreign, of another format, or not as it was written.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(
            f"{path}: {what}; a model file is made by `offnominal fit GOOD_DIR -o {path.name}`"
        )
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # the reader has many ways to say that bytes are wrong
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
    if version != FORMAT:
        remedy = "upgrade with `pip install -U offnominal`" if version > FORMAT else "fit it anew"
        raise ModelFileError(
            f"{path}: written by Offnominal {brief(header.get('version'))} in format "
            f"{brief(header['format'])}; this is {__version__}, which reads format {FORMAT}: "
            f"{remedy}"
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
    framework: Literal["np", "pt"] = "np",
    later: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The tensors of a model file by name: numpy arrays, or PyTorch's, which are memory-mapped.

    Parameters
    ----------
    path : Path
    header : mapping
        What :func:`read_header` gave: its checksums are held against the tensors.
    framework : {"np", "pt"}
    later : dict or None
        Takes the large tensors, whose checksums :func:`verify` is to compare before they are used:
        to read all of a bank takes longer than to map it.

    Raises
    ------
    ModelFileError
        If they cannot be read, or are not as they were written.
    """
    try:
        with safe_open(path, framework=framework) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ModelFileError(
            f"{path}: damaged ({brief(error)}); copy it again or fit it anew"
        ) from error
    if odd := header[_SUMS].keys() ^ tensors.keys():
        raise _changed(path, odd)
    large = {name: t for name, t in tensors.items() if t.nbytes > _PIECE and later is not None}
    verify(path, header, {name: t for name, t in tensors.items() if name not in large})
    if later is not None:
        later |= large
    return tensors


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


def _sums(tensor: Any) -> list[int]:
    """CRC-32 of each piece of an array, or of a CPU tensor, without a copy."""
    array: NDArray[Any] = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
    data = array.reshape(-1).view(np.uint8).data
    pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
    if len(pieces) < 4:
        return [zlib.crc32(piece) for piece in pieces]
    with ThreadPoolExecutor() as pool:  # the sum leaves the interpreter's lock
        return list(pool.map(zlib.crc32, pieces))
