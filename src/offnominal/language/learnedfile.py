"""Files of what was learned on other images: AnomalyCLIP's and CoOp's prompts, APRIL-GAN's layers.

One safetensors file of what was learned alone. The header's metadata has one entry,
``offnominal_learned``, a JSON object: the format's and the library's version, the method, the
learner's settings, how images were read (levels, resolution, ...), the CLIP model it was trained
with and the digest of its weights, and how it was trained. The checkpoints that AnomalyCLIP's and
APRIL-GAN's authors released are read as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from offnominal._version import __version__
from offnominal.atomic import write_atomically
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.learned import AnomalyCLIPPrompts, CoOpPrompts, LearnedModule, Projections
from offnominal.sealed import Damaged, open_sealed, sealed, validated
from offnominal.text import printable

__all__ = ["LearnedFile", "read_learned", "write_learned"]

FORMAT = 1
_KEY = "offnominal_learned"
_PICKLED = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # how both forms of torch.save begin

L = TypeVar("L", bound=LearnedModule)
Tensors = dict[str, Tensor]

_LEARNED: dict[str, type[LearnedModule]] = {
    kind.method: kind for kind in (AnomalyCLIPPrompts, CoOpPrompts, Projections)
}
_ADVICE = "make one with `offnominal train`, or name a checkpoint that the authors released"


@dataclass(frozen=True)
class LearnedFile:
    """What a file says of the prompts or layers in it.

    Attributes
    ----------
    method : str
        The detector that they are for.
    learner : dict
        Constructor arguments of the prompts or layers.
    reading : dict
        The detector's options that they were trained under, such as ``layers``; those that a user
        does not give are taken from here.
    backbone : dict
        ``name`` and ``digest`` of the CLIP model, and the digest of its ``text`` tower; empty for a
        released checkpoint.
    training : dict
        Data, options, epochs, losses; for people.
    witness : Tensor of shape (T, width) or None
        Of AnomalyCLIP's released checkpoint only: the model's token embeddings after the normal
        prompt's learned vectors, by which the model can be told.
    """

    method: str
    learner: dict[str, Any]
    reading: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    witness: Tensor | None = None


def write_learned(path: Path, learned: LearnedModule, about: LearnedFile) -> None:
    """Write prompts or layers; the file appears whole or not at all, the same bytes for the same.

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    header: dict[str, Any] = {"format": FORMAT, "version": __version__}
    for name in ("method", "learner", "reading", "backbone", "training"):
        header[name] = getattr(about, name)
    tensors = {name: t.detach().cpu().contiguous() for name, t in learned.state_dict().items()}
    write_atomically(path, sealed(_KEY, header, tensors))


def read_learned(path: Path, kind: type[L]) -> tuple[L, LearnedFile]:
    """Open a file of ours or a released checkpoint, from which only tensors are unpickled.

    Parameters
    ----------
    path : Path
    kind : type of LearnedModule
        What is looked for, such as ``CoOpPrompts``, or ``LearnedPrompts`` of any method.

    Returns
    -------
    learned, about : LearnedModule, LearnedFile
        The first on the CPU, frozen.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, foreign, of a newer format, or holds something else.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path}: {what}; {_ADVICE}")
    try:
        with path.open("rb") as file:
            pickled = file.read(4) in _PICKLED
        tensors, about = _read_released(path) if pickled else _read_ours(path, kind.holds)
    except _NotLearnedError as error:
        raise ModelFileError(f"{path}: {error}; {_ADVICE}") from error.__cause__
    try:
        learned = _filled(_LEARNED[about.method], about.learner, tensors)
    except (TypeError, ValueError, RuntimeError, OptionError) as error:
        reason = str(error)[:300]
        raise ModelFileError(f"{path}: its tensors do not fit its settings ({reason})") from error
    if not isinstance(learned, kind):
        wanted = kind.holds if kind.holds != learned.holds else f"those of {kind.method}"
        raise ModelFileError(
            f"{path}: {learned.holds} of {about.method}, not {wanted}; use --method "
            f"{about.method} and --set {learned.option}={path}"
        )
    learned.requires_grad_(False)
    return learned, about


def _filled(kind: type[LearnedModule], settings: dict[str, Any], tensors: Tensors) -> LearnedModule:
    """Prompts or layers of some settings, made of tensors; nothing is made that these do not have.

    Raises
    ------
    ValueError, TypeError, RuntimeError, OptionError
        If the two do not fit, or a number is not finite.
    """
    sizes = [len(tensors) + 1, *(side for tensor in tensors.values() for side in tensor.shape)]
    if any(isinstance(value, int) and value > max(sizes) for value in settings.values()):
        raise ValueError(f"settings {settings} are larger than the tensors")
    if not all(each.is_floating_point() and each.isfinite().all() for each in tensors.values()):
        raise ValueError("numbers that are not finite")
    with torch.device("meta"):
        learned = kind(**settings)
    learned.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    return learned


class _Header(BaseModel):
    """What the header of a file says."""

    model_config = ConfigDict(strict=True)

    format: int
    version: str = "?"
    method: str
    learner: dict[str, bool | int | str]
    reading: dict[str, bool | int | float | str | list[int] | None] = {}
    backbone: dict[str, str] = {}
    training: dict[str, Any] = {}


class _NotLearnedError(Exception):
    """What a file is instead, or what is wrong with it."""


def _read_ours(path: Path, wanted: str) -> tuple[Tensors, LearnedFile]:
    try:
        content, tensors, metadata = open_sealed(path, _KEY, always=False)
    except Damaged as error:
        raise _NotLearnedError(
            f"truncated, or no file of learned {wanted} ({error}); copy it again"
        ) from error
    if content is None:
        kinds = {"offnominal": "a fitted detector", "offnominal_training": "a training's state"}
        other = next((kinds[key] for key in kinds if key in metadata), "a safetensors file")
        raise _NotLearnedError(f"{other}, but no learned {wanted}")
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        writer = printable(content.get("version", "?"))[:40]
        raise ModelFileError(
            f"{path}: written by Offnominal {writer} in format {version}; this is {__version__}, "
            f"which reads up to format {FORMAT}: install a newer one"
        )
    try:
        header = validated(_Header, content)
    except Damaged as error:
        raise _NotLearnedError(str(error)) from error
    about = LearnedFile(
        header.method, dict(header.learner), header.reading, header.backbone, header.training
    )
    if about.method not in _LEARNED:
        raise ModelFileError(
            f"{path}: {wanted} of the method {about.method[:80]!r}, which this version lacks"
        )
    return tensors, about


def _read_released(path: Path) -> tuple[Tensors, LearnedFile]:
    """A checkpoint's tensors by our names; the arguments are told by the tensors' shapes."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a damaged or unsafe file
        raise _NotLearnedError(
            "not a checkpoint that can be read without running code from it "
            f"({type(error).__name__})"
        ) from error
    parts = content if isinstance(content, Mapping) else {}
    layers, prompts = parts.get("trainable_linearlayer"), parts.get("prompt_learner")
    if isinstance(layers, Mapping):
        return _layers(layers)
    return _prompts(prompts if isinstance(prompts, Mapping) else {})


def _prompts(stored: Mapping[str, Any]) -> tuple[Tensors, LearnedFile]:
    inner = {name: each.float() for name, each in stored.items() if isinstance(each, Tensor)}
    if not {"ctx_pos", "ctx_neg"} <= set(inner):
        raise _NotLearnedError(
            "neither AnomalyCLIP's checkpoint, which has ctx_pos and ctx_neg under "
            "prompt_learner, nor APRIL-GAN's, which has trainable_linearlayer"
        )
    contexts = {"normal": inner["ctx_pos"], "abnormal": inner["ctx_neg"]}
    # (1, 1, length, width): one prompt of one object.
    tensors = {name: e.reshape(-1, e.shape[-1] if e.ndim else 1) for name, e in contexts.items()}
    while (name := f"compound_prompts_text.{len(tensors) - 2}") in inner:
        tensors[f"deep.{len(tensors) - 2}"] = inner[name]
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if any(len(shape) != 2 for shape in shapes):
        raise _NotLearnedError(f"its prompts are not rows of vectors, but {shapes}")
    (length, width), (deep_length, _) = shapes[0], shapes[-1]
    learner = {
        "width": width, "length": length, "depth": len(shapes) - 1, "deep_length": deep_length
    }  # fmt: skip
    # Beside the prompts the released code keeps buffers, and projections that it never uses.
    witness = inner.get("token_suffix_pos")
    witness = None if witness is None else witness.reshape(-1, width)
    return tensors, LearnedFile("anomalyclip", learner, witness=witness)


def _layers(stored: Mapping[str, Any]) -> tuple[Tensors, LearnedFile]:
    tensors: Tensors = {}
    for name, each in stored.items():
        _, number, kind = (*name.split("."), "", "")[:3]
        if not isinstance(each, Tensor) or not number.isdigit():
            raise _NotLearnedError(f"{name} is no layer of APRIL-GAN's")
        tensors[f"layers.{number}.{kind}"] = each.float()
    first = tensors.get("layers.0.weight")
    if first is None or first.ndim != 2:
        raise _NotLearnedError("has no weights of linear layers")
    levels = sum(name.endswith("weight") for name in tensors)
    learner = {"width": first.shape[1], "embed_dim": first.shape[0], "levels": levels}
    return tensors, LearnedFile("april-gan", learner)
