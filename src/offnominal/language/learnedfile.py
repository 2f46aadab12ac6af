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
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from offnominal._version import __version__
from offnominal.atomic import write_atomically
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.learned import AnomalyCLIPPrompts, CoOpPrompts, LearnedPrompts
from offnominal.language.projections import Projections
from offnominal.language.released import read_released

__all__ = ["Learned", "LearnedFile", "read_projections", "read_prompts", "write_learned"]

FORMAT = 1
_KEY = "offnominal_learned"

Learned = LearnedPrompts | Projections

_LEARNED: dict[str, type[LearnedPrompts] | type[Projections]] = {
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


def read_prompts(path: Path) -> tuple[LearnedPrompts, LearnedFile]:
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
    about : LearnedFile

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, foreign, or of a newer format.
    """
    found, about = _read(path, "prompts")
    if not isinstance(found, LearnedPrompts):
        raise ModelFileError(
            f"{path}: layers of {about.method}, not prompts; use --method {about.method} and "
            f"--set projections={path}"
        )
    return found, about


def read_projections(path: Path) -> tuple[Projections, LearnedFile]:
    """Open a file of APRIL-GAN's linear layers: ours, or a checkpoint of the released code.

    Raises
    ------
    ModelFileError
        As :func:`read_prompts`.
    """
    found, about = _read(path, "layers")
    if not isinstance(found, Projections):
        raise ModelFileError(
            f"{path}: prompts of {about.method}, not layers; use --method {about.method} and "
            f"--set prompts={path}"
        )
    return found, about


def _read(path: Path, wanted: str) -> tuple[Learned, LearnedFile]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"{path}: {what}; {_ADVICE}")
    with path.open("rb") as file:
        # A zip archive, or the older form of torch.save.
        pickled = file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
    tensors, about = _released(path) if pickled else _read_ours(path, wanted)
    try:
        learned = _LEARNED[about.method](**about.learner)
        learned.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError, OptionError) as error:
        raise ModelFileError(f"{path}: its tensors do not fit its settings ({error})") from error
    return learned.requires_grad_(False), about


def _released(path: Path) -> tuple[dict[str, Tensor], LearnedFile]:
    method, learner, tensors, witness = read_released(path, _ADVICE)
    return tensors, LearnedFile(method, learner, witness=witness)


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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: its header is damaged; {_ADVICE}") from error
    if version > FORMAT:
        raise ModelFileError(
            f"{path}: written by Offnominal {writer} in format {version}; this is {__version__}, "
            f"which reads up to format {FORMAT}: upgrade with `pip install -U offnominal`"
        )
    if header.get("method") not in _LEARNED:
        raise ModelFileError(
            f"{path}: {wanted} of the method {header.get('method')!r}, which this version lacks"
        )
    try:
        return tensors, LearnedFile(**header)
    except TypeError as error:
        raise ModelFileError(f"{path}: its header is damaged ({error}); {_ADVICE}") from error
