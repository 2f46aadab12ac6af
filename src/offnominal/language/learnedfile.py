"""Files of what was learned on other images: AnomalyCLIP's and CoOp's prompts, APRIL-GAN's layers.

One safetensors file of what was learned alone. The header's metadata has one entry,
``offnominal_learned``, a JSON object: the format's and the library's version, the method, the
learner's settings, how images were read (levels, resolution, ...), the CLIP model it was trained
with and the digest of its weights, and how it was trained. The released codes' checkpoints are read
as well; see :mod:`offnominal.language.released`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from offnominal._version import __version__
from offnominal.atomic import write_atomically
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.learned import AnomalyCLIPPrompts, CoOpPrompts, Learned, Projections
from offnominal.language.released import is_pickled, read_released

__all__ = ["LearnedFile", "read_learned", "write_learned"]

FORMAT = 1
_KEY = "offnominal_learned"

L = TypeVar("L", bound=Learned)

_LEARNED: dict[str, type[Learned]] = {
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


def write_learned(path: Path, learned: Learned, about: LearnedFile) -> None:
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
    write_atomically(path, save(tensors, metadata={_KEY: json.dumps(header)}))


def read_learned(path: Path, kind: type[L]) -> tuple[L, LearnedFile]:
    """Open a file of ours, or a checkpoint that AnomalyCLIP's or APRIL-GAN's authors released.

    Nothing but tensors is unpickled from a checkpoint.

    Parameters
    ----------
    path : Path
    kind : type of Learned
        What is looked for, such as ``CoOpPrompts``, or ``LearnedPrompts`` of any method.

    Returns
    -------
    learned : Learned
        On the CPU, frozen.
    about : LearnedFile

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, foreign, of a newer format, or holds something else.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path}: {what}; {_ADVICE}")
    if is_pickled(path):
        method, learner, tensors, witness = read_released(path, _ADVICE)
        about = LearnedFile(method, learner, witness=witness)
    else:
        tensors, about = _read_ours(path, kind.holds)
    try:
        learned = _LEARNED[about.method](**about.learner)
        learned.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError, OptionError) as error:
        raise ModelFileError(f"{path}: its tensors do not fit its settings ({error})") from error
    if not isinstance(learned, kind):
        wanted = kind.holds if kind.holds != learned.holds else f"those of {kind.method}"
        raise ModelFileError(
            f"{path}: {learned.holds} of {about.method}, not {wanted}; use --method "
            f"{about.method} and --set {learned.option}={path}"
        )
    learned.requires_grad_(False)
    return learned, about


def _read_ours(path: Path, wanted: str) -> tuple[dict[str, Tensor], LearnedFile]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: truncated, or no file of learned {wanted} ({error}); copy it again, or "
            f"{_ADVICE}"
        ) from error
    if _KEY not in metadata:
        kinds = {"offnominal": "a fitted detector", "offnominal_training": "a training's state"}
        other = next((kinds[key] for key in kinds if key in metadata), "a safetensors file")
        raise ModelFileError(f"{path}: {other}, but no learned {wanted}; {_ADVICE}")
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        version, writer = int(header.pop("format")), header.pop("version", "?")
        if version > FORMAT:
            raise ModelFileError(
                f"{path}: written by Offnominal {writer} in format {version}; this is "
                f"{__version__}, which reads up to format {FORMAT}: upgrade with `pip install -U "
                "offnominal`"
            )
        about = LearnedFile(**header)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: its header is damaged ({error}); {_ADVICE}") from error
    if about.method not in _LEARNED:
        raise ModelFileError(
            f"{path}: {wanted} of the method {about.method!r}, which this version lacks"
        )
    return tensors, about
