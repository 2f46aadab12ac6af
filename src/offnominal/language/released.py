"""The checkpoints that came with AnomalyCLIP and APRIL-GAN: their tensors by our names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from offnominal.errors import ModelFileError

__all__ = ["Released", "is_pickled", "read_released"]


class Released(NamedTuple):
    """What a checkpoint holds; the arguments are told by the tensors' shapes."""

    method: str
    learner: dict[str, Any]
    tensors: dict[str, Tensor]
    # AnomalyCLIP's token embeddings (T, width) after the normal prompt's learned vectors.
    witness: Tensor | None = None


def is_pickled(path: Path) -> bool:
    """Whether a file looks like one of ``torch.save``: a zip archive, or the older form."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")


def read_released(path: Path, advice: str) -> Released:
    """Open a checkpoint, from which nothing but tensors is unpickled.

    Parameters
    ----------
    path : Path
    advice : str
        What an error tells to do.

    Raises
    ------
    ModelFileError
        If it is damaged or foreign, or would run code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a damaged or unsafe file
        raise ModelFileError(
            f"{path}: not a checkpoint that can be read without running code from it "
            f"({type(error).__name__}); {advice}"
        ) from error
    parts = content if isinstance(content, Mapping) else {}
    layers, prompts = parts.get("trainable_linearlayer"), parts.get("prompt_learner")
    if isinstance(layers, Mapping):
        return _layers(path, layers, advice)
    return _prompts(path, prompts if isinstance(prompts, Mapping) else {}, advice)


def _prompts(path: Path, stored: Mapping[str, Any], advice: str) -> Released:
    inner = {name: each.float() for name, each in stored.items() if isinstance(each, Tensor)}
    if not {"ctx_pos", "ctx_neg"} <= set(inner):
        raise ModelFileError(
            f"{path}: neither AnomalyCLIP's checkpoint, which has ctx_pos and ctx_neg under "
            f"prompt_learner, nor APRIL-GAN's, which has trainable_linearlayer; {advice}"
        )
    contexts = {"normal": inner["ctx_pos"], "abnormal": inner["ctx_neg"]}
    # (1, 1, length, width): one prompt of one object.
    tensors = {name: e.reshape(-1, e.shape[-1] if e.ndim else 1) for name, e in contexts.items()}
    while (name := f"compound_prompts_text.{len(tensors) - 2}") in inner:
        tensors[f"deep.{len(tensors) - 2}"] = inner[name]
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if any(len(shape) != 2 for shape in shapes):
        raise ModelFileError(f"{path}: its prompts are not rows of vectors, but {shapes}; {advice}")
    (length, width), (deep_length, _) = shapes[0], shapes[-1]
    learner = {
        "width": width, "length": length, "depth": len(shapes) - 1, "deep_length": deep_length
    }  # fmt: skip
    # Beside the prompts the released code keeps buffers, and projections that it never uses.
    witness = inner.get("token_suffix_pos")
    witness = None if witness is None else witness.reshape(-1, width)
    return Released("anomalyclip", learner, tensors, witness)


def _layers(path: Path, stored: Mapping[str, Any], advice: str) -> Released:
    tensors: dict[str, Tensor] = {}
    for name, each in stored.items():
        _, number, kind = (*name.split("."), "", "")[:3]
        if not isinstance(each, Tensor) or not number.isdigit():
            raise ModelFileError(f"{path}: {name} is no layer of APRIL-GAN's; {advice}")
        tensors[f"layers.{number}.{kind}"] = each.float()
    first = tensors.get("layers.0.weight")
    if first is None or first.ndim != 2:
        raise ModelFileError(f"{path}: has no weights of linear layers; {advice}")
    levels = sum(name.endswith("weight") for name in tensors)
    learner = {"width": first.shape[1], "embed_dim": first.shape[0], "levels": levels}
    return Released("april-gan", learner, tensors)
