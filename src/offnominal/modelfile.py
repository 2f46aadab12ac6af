"""A model file: one safetensors file, a JSON header in its metadata, and no pickle.

The header's entry ``offnominal`` is a JSON object with the format's version, the library's version
and what the caller adds; the tensors are named arrays. Nothing here knows what a detector is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from offnominal._version import __version__
from offnominal.atomic import replacing
from offnominal.errors import ModelFileError

__all__ = ["FORMAT", "read", "read_header", "write"]

# 3: rows know what counts and how far the other references are; 2 and 1 did not.
FORMAT = 3
_KEY = "offnominal"


def write(path: Path, header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a model file; it appears whole or not at all.

    Parameters
    ----------
    path : Path
    header : mapping
        Plain values; format and version are added.
    tensors : mapping of str to array

    Raises
    ------
    ModelFileError
        If it cannot be written.
    """
    full = {"format": FORMAT, "version": __version__, **header}
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    path = path.absolute()
    try:
        with replacing(path) as temporary:
            save_file(arrays, temporary, metadata={_KEY: json.dumps(full)})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelFileError(f"{path}: cannot be written ({reason})") from error


def read_header(path: Path) -> dict[str, Any]:
    """The header of a model file, without its tensors.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, foreign, or of another format.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(
            f"{path}: {what}; a model file is made by `offnominal fit GOOD_DIR -o {path.name}`"
        )
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: truncated, or not an Offnominal model file ({error}); copy it again or fit "
            "it anew"
        ) from error
    if _KEY not in metadata:
        raise ModelFileError(
            f"{path}: a safetensors file, but not an Offnominal model; if it holds a network's "
            "weights, give it with --weights"
        )
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        version = int(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: its header is damaged; fit it anew") from error
    if version != FORMAT:
        remedy = "upgrade with `pip install -U offnominal`" if version > FORMAT else "fit it anew"
        raise ModelFileError(
            f"{path}: written by Offnominal {header.get('version')} in format {version}; this is "
            f"{__version__}, which reads format {FORMAT}: {remedy}"
        )
    return header


def read(path: Path, framework: Literal["np", "pt"] = "np") -> dict[str, Any]:
    """The tensors of a model file by name: numpy arrays, or PyTorch's, which are memory-mapped.

    Raises
    ------
    ModelFileError
        If they cannot be read.
    """
    try:
        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: damaged ({error}); copy it again or fit it anew") from error
