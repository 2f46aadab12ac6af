"""Files of learned prompts or layers: our safetensors, and the released codes' checkpoints.

Ours hold what was learned alone. The header's metadata has one entry, ``offnominal_prompts``,
a JSON object: the format's and the library's version, the method, the learner's settings, how the
prompts are to be read (levels, resolution, ...), the CLIP model they were trained with and the
digest of its weights, and how they were trained.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from offnominal._version import __version__
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.learned import AnomalyCLIPPrompts, CoOpPrompts, LearnedPrompts
from offnominal.language.projections import Projections

__all__ = ["PromptFile", "read_projections", "read_prompts", "write_atomically", "write_prompts"]

FORMAT = 1
_KEY = "offnominal_prompts"
_LEARNERS: dict[str, type[LearnedPrompts] | type[Projections]] = {
    learner.method: learner for learner in (AnomalyCLIPPrompts, CoOpPrompts, Projections)
}
_ADVICE = "train prompts with `offnominal train`, or name a checkpoint that the authors released"


@dataclass(frozen=True)
class PromptFile:
    """What a prompt file says of its prompts.

    Attributes
    ----------
    method : str
        The detector that the prompts are for.
    learner : dict
        The learner's constructor arguments.
    reading : dict
        The detector's options that the prompts were trained under, such as ``layers``; those that
        a user does not give are taken from here.
    backbone : dict
        ``name`` and ``digest`` of the CLIP model; empty for a released checkpoint.
    training : dict
        Data, options, epochs, losses; for people.
    witness : Tensor of shape (T, width) or None
        Of a released checkpoint only: the model's token embeddings after the normal prompt's
        learned vectors, by which the model can be told.
    """

    method: str
    learner: dict[str, Any]
    reading: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    witness: Tensor | None = None


def write_prompts(path: Path, prompts: LearnedPrompts | Projections, about: PromptFile) -> None:
    """Write a prompt file; it appears whole or not at all, the same bytes for the same prompts.

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    header: dict[str, Any] = {"format": FORMAT, "version": __version__}
    for name in ("method", "learner", "reading", "backbone", "training"):
        header[name] = getattr(about, name)
    tensors = {name: t.detach().cpu().contiguous() for name, t in prompts.state_dict().items()}
    write_atomically(path, save(tensors, metadata={_KEY: json.dumps(header)}))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file in one step, so that a half-written one is never seen.

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp is private to its maker; this file has the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}); name another") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def read_prompts(path: Path) -> tuple[LearnedPrompts, PromptFile]:
    """Open a file of learned prompts.

    Parameters
    ----------
    path : Path
        A file of ours, or a checkpoint of the released AnomalyCLIP code (``epoch_15.pth``), from
        which nothing but tensors is unpickled.

    Returns
    -------
    prompts : LearnedPrompts
        On the CPU, frozen.
    about : PromptFile

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, foreign, or of a newer format.
    """
    found, about = _read(path)
    if not isinstance(found, LearnedPrompts):
        raise ModelFileError(f"{path}: layers of {about.method}, not prompts; {_ADVICE}")
    return found, about


def read_projections(path: Path) -> tuple[Projections, PromptFile]:
    """Open a file of APRIL-GAN's linear layers: ours, or a checkpoint of the released code.

    Raises
    ------
    ModelFileError
        As :func:`read_prompts`.
    """
    found, about = _read(path)
    if not isinstance(found, Projections):
        raise ModelFileError(f"{path}: prompts of {about.method}, not layers; {_ADVICE}")
    return found, about


def _read(path: Path) -> tuple[LearnedPrompts | Projections, PromptFile]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path}: {what}; {_ADVICE}")
    with path.open("rb") as file:
        # A zip archive, or the older form of torch.save.
        pickled = file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
    tensors, about = _read_released(path) if pickled else _read_ours(path)
    try:
        prompts = _LEARNERS[about.method](**about.learner)
        prompts.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError, OptionError) as error:
        raise ModelFileError(f"{path}: its tensors do not fit its settings ({error})") from error
    return prompts.requires_grad_(False), about


def _read_ours(path: Path) -> tuple[dict[str, Tensor], PromptFile]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: truncated, or no file of learned prompts ({error}); copy it again, or "
            f"{_ADVICE}"
        ) from error
    if _KEY not in metadata:
        other = "a fitted detector" if "offnominal" in metadata else "a safetensors file"
        raise ModelFileError(f"{path}: {other}, but no learned prompts; {_ADVICE}")
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        version, writer = int(header.pop("format")), header.pop("version", "?")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: its header is damaged; {_ADVICE}") from error
    if version > FORMAT:
        raise ModelFileError(
            f"{path}: written by Offnominal {writer} in format {version}; this is {__version__}, "
            f"which reads up to format {FORMAT}: upgrade with `pip install -U offnominal`"
        )
    if header.get("method") not in _LEARNERS:
        raise ModelFileError(
            f"{path}: prompts of the method {header.get('method')!r}, which this version lacks"
        )
    try:
        return tensors, PromptFile(**header)
    except TypeError as error:
        raise ModelFileError(f"{path}: its header is damaged ({error}); {_ADVICE}") from error


def _read_released(path: Path) -> tuple[dict[str, Tensor], PromptFile]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a damaged or unsafe file
        raise ModelFileError(
            f"{path}: not a checkpoint that can be read without running code from it "
            f"({type(error).__name__}); {_ADVICE}"
        ) from error
    inner = content.get("trainable_linearlayer") if isinstance(content, Mapping) else None
    if isinstance(inner, Mapping):
        return _released_layers(path, inner)
    inner = content.get("prompt_learner") if isinstance(content, Mapping) else None
    inner = inner if isinstance(inner, Mapping) else {}
    inner = {name: each.float() for name, each in inner.items() if isinstance(each, Tensor)}
    if not {"ctx_pos", "ctx_neg"} <= set(inner):
        raise ModelFileError(
            f"{path}: no AnomalyCLIP checkpoint, which has ctx_pos and ctx_neg under "
            f"prompt_learner; {_ADVICE}"
        )
    contexts = {"normal": inner["ctx_pos"], "abnormal": inner["ctx_neg"]}
    # (1, 1, length, width): one prompt of one object.
    tensors = {name: e.reshape(-1, e.shape[-1] if e.ndim else 1) for name, e in contexts.items()}
    while (name := f"compound_prompts_text.{len(tensors) - 2}") in inner:
        tensors[f"deep.{len(tensors) - 2}"] = inner[name]
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if any(len(shape) != 2 for shape in shapes):
        raise ModelFileError(
            f"{path}: its prompts are not rows of vectors, but {shapes}; {_ADVICE}"
        )
    learner = {
        "width": shapes[0][1],
        "length": shapes[0][0],
        "depth": len(shapes) - 1,
        "deep_length": shapes[-1][0],
    }
    # Beside the prompts the released code keeps buffers, and projections that it never uses.
    witness = inner.get("token_suffix_pos")
    witness = None if witness is None else witness.reshape(-1, shapes[0][1])
    return tensors, PromptFile("anomalyclip", learner, witness=witness)


def _released_layers(path: Path, inner: Mapping[str, Any]) -> tuple[dict[str, Tensor], PromptFile]:
    tensors: dict[str, Tensor] = {}
    for name, each in inner.items():
        _, number, kind = (*name.split("."), "", "")[:3]
        if not isinstance(each, Tensor) or not number.isdigit():
            raise ModelFileError(f"{path}: {name} is no layer of APRIL-GAN's; {_ADVICE}")
        tensors[f"layers.{number}.{kind}"] = each.float()
    first = tensors.get("layers.0.weight")
    if first is None or first.ndim != 2:
        raise ModelFileError(f"{path}: has no weights of linear layers; {_ADVICE}")
    learner = {
        "width": first.shape[1],
        "embed_dim": first.shape[0],
        "levels": sum(name.endswith("weight") for name in tensors),
    }
    return tensors, PromptFile("april-gan", learner)
