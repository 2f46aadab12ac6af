"""Safetensors files of a training: a JSON header, tensors, and a digest of both.

Model files have a format of their own, whose large banks are summed up piece by piece.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import safe_open

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Damaged", "open_sealed", "sealed", "validated"]

M = TypeVar("M", bound=BaseModel)

_DIGEST = "sha256"


class Damaged(Exception):  # noqa: N818 (it says what a file is)
    """What is wrong with a file, in words."""


def sealed(key: str, header: Mapping[str, Any], tensors: "Mapping[str, Tensor]") -> bytes:
    """The bytes of a file; the same for the same header and tensors."""
    from safetensors.torch import save

    # One entry of metadata: the order of several would not be the same twice.
    text = json.dumps({**header, _DIGEST: _digest(header, tensors)})
    return save(dict(tensors), metadata={key: text})


def open_sealed(
    path: Path, key: str, always: bool = True
) -> "tuple[dict[str, Any] | None, dict[str, Tensor], dict[str, str]]":
    """The header, None if there is none under the key, the tensors and all of the metadata.

    ``always``: whether every file has a digest; those of earlier versions may have none.

    Raises
    ------
    Damaged
        If it is no safetensors file, or not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the reader has many ways to say that bytes are wrong
        raise Damaged(str(error)[:200]) from error
    if key not in metadata:
        return None, tensors, metadata
    try:
        header = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise Damaged(f"its header is no JSON: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise Damaged("its header is no JSON object")
    digest = header.pop(_DIGEST, None)
    if (always or digest is not None) and digest != _digest(header, tensors):
        raise Damaged("not as it was written (checksum)")
    return header, tensors, metadata


def validated(schema: type[M], header: Any) -> M:
    """A header as its schema has it; else Damaged."""
    try:
        return schema.model_validate(header)
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        place = ".".join(map(str, one["loc"]))
        raise Damaged(f"its header is damaged: {place[:100]!r}: {one['msg'][:200]}") from error


def _digest(header: Mapping[str, Any], tensors: "Mapping[str, Tensor]") -> str:
    import torch

    total = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
