"""Saving an index with its model: a tensor in the model file, or lists in a file beside it.

The tensor holds a JSON header, the rows that the entries are where that is not simply their
number, and FAISS' own bytes. Of an index ``disk`` those bytes are in a file beside the model, which
FAISS maps into memory. There is no pickle in either. What is read is compared with a digest before
FAISS sees it, and with the bank before it is used.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from offnominal.atomic import replacing
from offnominal.errors import ModelFileError
from offnominal.memory.bank import MemoryBank
from offnominal.memory.index import FaissIndex
from offnominal.memory.index_choice import load_faiss
from offnominal.memory.index_open import CLASSES, open_faiss

__all__ = ["attach_indexes", "lists_path", "load_index", "save_index", "save_indexes"]

_FORMAT = 1
_LENGTH = 8  # bytes that say how long the header is
_BUFFER = "index"
_NUMBERS = ("effort", "named", "neighbours", "queries", "built", "entries", "dim", "bytes")


def save_indexes(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Tensors for the model file, one for each bank that has an index.

    Parameters
    ----------
    model : nn.Module
    path : Path
        Model file that is being written; lists on disk are written beside it.

    Returns
    -------
    dict of str to Tensor
        uint8 tensors, under the bank's name and ``.index``.
    """
    found = {}
    for name, bank in model.named_modules():
        if isinstance(bank, MemoryBank) and isinstance(bank.index, FaissIndex):
            key = f"{name}.{_BUFFER}"
            found[key] = save_index(bank.index, lists_path(path, key))
    return found


def attach_indexes(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give every bank the index that was saved with it, once its rows are there.

    Parameters
    ----------
    model : nn.Module
    tensors : dict of str to Tensor
        As :func:`save_indexes` gave them.
    path : Path
        Model file that they come from.

    Raises
    ------
    ModelFileError
        If an index is damaged, is not that of its bank, or its lists are not beside the model.
    OptionError
        If FAISS is not installed.
    """
    for key, tensor in tensors.items():
        bank = model.get_submodule(key.removesuffix(_BUFFER).rstrip("."))
        if not isinstance(bank, MemoryBank):
            raise ModelFileError(f"{path}: {key} belongs to no bank; fit it anew")
        index = load_index(tensor, lists_path(path, key), path)
        if index.dim != bank.dim or len(index) > len(bank):
            raise ModelFileError(
                f"{path}: its search index is of {len(index)} rows of length {index.dim}, and its "
                f"bank of {len(bank)} of length {bank.dim}; fit it anew"
            )
        bank.index = index


def lists_path(path: Path, key: str = f"bank.{_BUFFER}") -> Path:
    """Where the lists of an index on disk lie: ``part.offn.index`` beside ``part.offn``."""
    name = key.removesuffix(_BUFFER).strip(".")
    return path.with_name(path.name + ("" if name == "bank" else f".{name}") + ".index")


def save_index(index: FaissIndex, lists: Path) -> Tensor:
    """An index as a uint8 tensor; of an index ``disk``, the lists go to the file ``lists``.

    Raises
    ------
    ModelFileError
        If the lists cannot be written, or those that it reads have gone since it was opened.
    """
    if index.kind == "disk":
        body = np.empty(0, np.uint8)
        length, digest = _write(index, lists)
    else:
        body = load_faiss().serialize_index(index.faiss)
        length, digest = len(body), hashlib.sha256(body).hexdigest()
    header = {
        "format": _FORMAT,
        "kind": index.kind,
        "target": index.target,
        "recall": index.recall,
        "effort": index.effort,
        "named": index.named,
        "neighbours": index.neighbours,
        "queries": index.queries,
        "built": index.built,
        "entries": int(index.faiss.ntotal),
        "dim": index.dim,
        "mapped": index.rows is not None,
        "bytes": length,
        "sha256": digest,
    }
    text = json.dumps(header).encode()
    rows = b"" if index.rows is None else index.rows.astype("<i4").tobytes()
    parts = [len(text).to_bytes(_LENGTH, "little"), text, rows]
    start = np.frombuffer(b"".join(parts), np.uint8)
    return torch.from_numpy(np.concatenate([start, body]))


def load_index(tensor: Tensor, lists: Path, model: Path) -> FaissIndex:
    """Read what :func:`save_index` wrote; lists on disk are mapped, not read into memory.

    Parameters
    ----------
    tensor : Tensor
        (n,) uint8.
    lists : Path
        Where the lists of an index ``disk`` are.
    model : Path
        Model file, for messages.

    Raises
    ------
    ModelFileError
        If the tensor or the file of lists is damaged, missing or of another model.
    """
    damaged = f"{model}: its search index is damaged"
    raw = tensor.cpu().numpy()
    try:
        start = _LENGTH + int.from_bytes(raw[:_LENGTH].tobytes(), "little")
        header = json.loads(raw[_LENGTH:start].tobytes())
        numbers = {name: int(header[name]) for name in _NUMBERS}
        kind, version = header["kind"], int(header["format"])
        target, recall = float(header["target"]), float(header["recall"])
        mapped, digest = bool(header["mapped"]), str(header["sha256"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{damaged}; copy the model again, or fit it anew") from error
    if version > _FORMAT:
        raise ModelFileError(
            f"{model}: its search index is of a newer format; run `pip install -U offnominal`"
        )
    entries = numbers["entries"]
    stop = start + (4 * entries if mapped else 0)
    inside = kind in CLASSES and min(numbers.values()) >= 0 and numbers["neighbours"] > 0
    size = stop + (0 if kind == "disk" else numbers["bytes"])
    if raw.ndim != 1 or raw.dtype != np.uint8 or len(raw) != size or not inside:
        raise ModelFileError(f"{damaged}; copy the model again, or fit it anew")
    if kind == "disk":
        _check_lists(lists, model, numbers["bytes"], digest)
        source: Path | npt.NDArray[np.uint8] = lists
    else:
        body = raw[stop:]
        if hashlib.sha256(body.data).hexdigest() != digest:
            raise ModelFileError(f"{damaged}; copy the model again, or fit it anew")
        source = body
    made = open_faiss(source, kind, entries, numbers["dim"], damaged)
    index = FaissIndex(kind, made, numbers["neighbours"], target)
    index.effort, index.named, index.recall = numbers["effort"], numbers["named"], recall
    index.queries, index.built = numbers["queries"], numbers["built"]
    if mapped:
        index.rows = np.frombuffer(raw[start:stop].tobytes(), "<i4").astype(np.int32)
        known = np.sort(index.rows[index.rows >= 0])
        if (known != np.arange(len(known))).any():
            raise ModelFileError(f"{damaged}; copy the model again, or fit it anew")
    if kind == "disk":
        index.lists = lists, numbers["bytes"], digest
    return index


def _write(index: FaissIndex, lists: Path) -> tuple[int, str]:
    """Write the lists, or copy them where they are in a file already; their length and digest."""
    try:
        if index.lists is not None:
            source, length, digest = index.lists
            if (source.stat().st_size, _digest(source)) != (length, digest):
                raise ModelFileError(
                    f"{source}: was replaced since the model was opened, so its search index "
                    "cannot be saved; open the model again, or fit it anew"
                )
            if lists.exists() and lists.samefile(source):
                return length, digest
        with replacing(lists) as temporary:
            if index.lists is None:
                load_faiss().write_index(index.faiss, str(temporary))
            else:
                shutil.copyfile(source, temporary)
            length, digest = temporary.stat().st_size, _digest(temporary)
    except (OSError, RuntimeError) as error:
        raise ModelFileError(
            f"{lists}: the lists of the search index cannot be written ({error})"
        ) from error
    return length, digest


def _check_lists(lists: Path, model: Path, length: int, digest: str) -> None:
    if not lists.is_file():
        raise ModelFileError(
            f"{lists}: does not exist; {model.name} was fitted with `--search disk`, which keeps "
            "its lists in that file: copy both together, or fit anew"
        )
    if lists.stat().st_size != length or _digest(lists) != digest:
        raise ModelFileError(
            f"{lists}: is not the file that was saved with {model.name}, or is damaged; copy both "
            "together, or fit anew"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
