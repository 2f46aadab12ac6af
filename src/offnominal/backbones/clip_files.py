"""Where CLIP's weights come from, and which of a file's tensors belong to which tower."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from offnominal.backbones import weights as files
from offnominal.backbones.clip_models import describe, plain_name, tag_names
from offnominal.errors import BackboneError, WeightsError

__all__ = ["fit_image_tower", "fit_text_tower", "hub_files", "read_tensors", "weights_file"]

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_IMAGE = "visual."
# Sizes that OpenAI's archives keep beside the tensors.
_SPARE = ("input_resolution", "context_length", "vocab_size")


def hub_files(name: str) -> list[tuple[str, str]]:
    """Repository and file names of a model's weights on the hub, the preferred one first.

    Raises
    ------
    BackboneError
        If open_clip knows no weights on the hub for it.
    """
    repository, _, filename = describe(name, {}, None).hub.rpartition("/")
    plain, tag = plain_name(name)
    if not repository:
        tags = ", ".join(tag_names(plain)) or "none"
        raise BackboneError(
            f"{name}: which weights? open_clip knows {tags}; name one after a dot, or use "
            "--weights FILE"
        )
    # open_clip has two tags for one file in places; nobody is to get other weights than asked for.
    other = repository.rpartition(".")[2]
    if tag and other != tag and other in tag_names(plain):
        raise BackboneError(
            f"{name}: open_clip fetches {other} for it; name that one, or use --weights FILE"
        )
    return [(repository, each) for each in ([filename] if filename else _FILES)]


def weights_file(name: str) -> Path:
    """The file that holds a model's weights, fetched if it is not on this machine.

    Raises
    ------
    BackboneError
        If open_clip knows no weights on the hub for it.
    WeightsError
        If it cannot be had.
    """
    places = hub_files(name)
    for place in places:
        cached = files.cached_file(*place)
        if cached is not None:
            return cached
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    failure: WeightsError | None = None
    for repository, filename in places:
        try:
            return files.download(repository, filename, name)
        except WeightsError as error:
            failure = failure or error
            absent = isinstance(error.__cause__, EntryNotFoundError)
            # Offline is another matter than a repository without this file.
            if not absent or isinstance(error.__cause__, LocalEntryNotFoundError):
                break
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    lines = str(failure.__cause__ if failure else "").strip().splitlines()
    reason = "HF_HUB_OFFLINE is set" if offline else lines[0][:160] if lines else "no answer"
    raise WeightsError(
        f"the weights of {name} are not on this machine and cannot be fetched from "
        f"{places[0][0]} ({reason}). Two ways out: connect and run `offnominal backbones pull "
        f"{name}`, or give a local file with --weights FILE"
    ) from failure


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a CLIP weights file, in OpenAI's naming.

    Raises
    ------
    WeightsError
        If the file is missing or unreadable, or is one of OpenAI's TorchScript archives, which
        carry code.
    """
    if _is_archive(path):
        raise WeightsError(
            f"{path}: a TorchScript archive, as OpenAI published CLIP; it carries code, so it is "
            "not opened. Fetch the same weights by leaving --weights out, or save its tensors "
            "once: torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'clip.pth')"
        )
    return files.read_weights(path)


def _is_archive(path: Path) -> bool:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.split("/")[1:2] == ["code"] for entry in archive.namelist())


def fit_image_tower(tower: nn.Module, tensors: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Load the image tower from a file's tensors; the text tower need not be among them.

    Raises
    ------
    WeightsError
        If tensors are missing, unknown, or of another shape.
    """
    own = {k.removeprefix(_IMAGE): v for k, v in tensors.items() if k.startswith(_IMAGE)}
    if not own:
        raise WeightsError(
            f"{path}: no tensor's name starts with visual.: not CLIP in OpenAI's or open_clip's "
            f"naming; it has {', '.join(list(tensors)[:3])}"
        )
    _fit(tower, own, path, name)


def fit_text_tower(tower: nn.Module, tensors: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Load the text tower from a file's tensors.

    Raises
    ------
    WeightsError
        If there is none in the file, or tensors are missing, unknown, or of another shape.
    """
    spare = (*_SPARE, "logit_scale", "logit_bias", "attn_mask")
    own = {k: v for k, v in tensors.items() if not k.startswith(_IMAGE) and k not in spare}
    if not own:
        raise WeightsError(
            f"{path}: holds CLIP's image tower only; text features need the text tower as well"
        )
    _fit(tower, own, path, name)


def _fit(tower: nn.Module, tensors: dict[str, Tensor], path: Path, name: str) -> None:
    expected = tower.state_dict()
    wrong = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    missing = [key for key in expected if key not in tensors]
    unknown = [key for key in tensors if key not in expected]
    if wrong or missing or unknown:
        raise WeightsError(
            f"{path}: does not fit {name}. Of another shape: {_some(wrong)}. Missing: "
            f"{_some(missing)}. Not known: {_some(unknown)}"
        )
    tower.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)


def _some(items: list[str], most: int = 3) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest if items else "none"
