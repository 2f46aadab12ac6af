"""Where a network's weights come from: a local file, or the hub by way of its cache.

Whatever the source, the tensors end in timm's naming, every one of them is accounted for, and a
digest of them is returned.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from offnominal.errors import WeightsError

__all__ = [
    "cached_file",
    "digest",
    "download",
    "fit_to",
    "read_metadata",
    "read_weights",
    "untrained_reason",
]

_UNTRAINED = re.compile(r"(?:no|none|false|random)\b[\s:,;-]*(.*)", re.IGNORECASE | re.DOTALL)
_WRAPPERS = ("state_dict", "model", "teacher", "student")
_PREFIXES = ("module.", "backbone.", "encoder.")
# Not used for patch features: classifier heads, and DINOv2's token for masked training.
_SPARE = ("head.", "head_dist.", "fc.", "classifier.", "mask_token", "fc_norm.")


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file: how its network is built and fed. Empty for other files."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def untrained_reason(metadata: Mapping[str, str]) -> str:
    """Why a file's weights are not pretrained, as its metadata says; empty if it does not say so.

    Parameters
    ----------
    metadata : mapping
        As :func:`read_metadata` gives it. ``pretrained`` begins with ``no``, after which a reason
        may stand: ``no: drawn at random from seed 0``.
    """
    said = _UNTRAINED.fullmatch(metadata.get("pretrained", "").strip())
    return "" if said is None else said[1].strip() or "as the file says"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a weights file on the CPU.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or a ``.pth``/``.pt``/``.bin`` state dict. Nothing is ever unpickled
        beyond tensors and plain containers.

    Raises
    ------
    WeightsError
        If the file is missing, unreadable, or holds no state dict.
    """
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path}: {what}; --weights takes a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=None)
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    except Exception as error:  # torch.load raises a dozen kinds for a damaged or unsafe file
        raise WeightsError(
            f"{path}: not a state dict that can be read without running code from it "
            f"({type(error).__name__}); save the network's state_dict() as safetensors or .pth"
        ) from error
    return _unwrap(content, path)


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds {type(content).__name__}, not a state dict of tensors")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors at its top level; is it a state dict?")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def fit_to(model: nn.Module, tensors: dict[str, Tensor], source: str, name: str) -> None:
    """Load tensors into a network, in timm's naming or in the network's original one.

    Raises
    ------
    WeightsError
        If keys are missing, unknown, or of another shape; the message lists them.
    """
    expected = model.state_dict()
    _check_shapes(expected, tensors, source, name)
    # timm knows the original naming of each family it has; it takes its own naming as well.
    module = __import__(type(model).__module__, fromlist=["checkpoint_filter_fn"])
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is not None and set(tensors) != set(expected):
        tensors = convert(dict(tensors), model)
    tensors = {
        key: value
        for key, value in tensors.items()
        if key in expected or not key.startswith(_SPARE)
    }
    missing = [
        key for key in expected if key not in tensors and not key.endswith("num_batches_tracked")
    ]
    unknown = [key for key in tensors if key not in expected]
    if missing or unknown:
        raise WeightsError(
            f"{source}: the keys do not fit {name}. Missing: {_some(missing)}. Not known: "
            f"{_some(unknown)}. Expected timm's naming or the original one, with "
            f"{len(expected)} tensors such as {_some(list(expected)[:3])}"
        )
    _check_shapes(expected, tensors, source, name)
    floats = {
        key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
    }
    for key in expected:
        if key.endswith("num_batches_tracked"):
            floats.setdefault(key, torch.zeros((), dtype=torch.long))
    model.load_state_dict(floats, assign=True)


def _check_shapes(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str, name: str
) -> None:
    """Refuse what timm's conversion would resample without a word."""
    wrong = []
    for key, value in tensors.items():
        if key not in expected or expected[key].shape == value.shape:
            continue
        if key == "pos_embed" and value.ndim == 3 and "reg_token" in expected:
            # The original with registers keeps a row for the class token; timm folds it in.
            folded = (1, value.shape[1] - 1, value.shape[2])
            if tuple(expected[key].shape) == folded:
                continue
        wrong.append(f"{key} is {tuple(value.shape)}, expected {tuple(expected[key].shape)}")
    if wrong:
        raise WeightsError(f"{source}: the shapes do not fit {name}: {_some(wrong)}")


def _some(items: list[str], most: int = 4) -> str:
    if not items:
        return "none"
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def digest(model: nn.Module) -> str:
    """SHA-256 over every tensor of a network, independent of the file that it came from."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()


def cached_file(repository: str, filename: str) -> Path | None:
    """Path of a hub file if it is on this machine, without touching the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, filename)
    return Path(found) if isinstance(found, str) else None


def download(repository: str, filename: str, name: str) -> Path:
    """A hub file's path, fetched if it is not on this machine; respects ``HF_HUB_OFFLINE``.

    Raises
    ------
    WeightsError
        If it cannot be had; the message names the three ways out.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cached = cached_file(repository, filename)
    if cached is not None:
        return cached
    try:
        return Path(hf_hub_download(repository, filename))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        why = "HF_HUB_OFFLINE is set" if offline else _first_line(error)
        raise WeightsError(
            f"the weights of {name} are not on this machine and cannot be fetched from "
            f"{repository} ({why}). Three ways out: connect and run `offnominal backbones pull "
            f"{name}`; give a local file with --weights FILE; or use --backbone builtin, which "
            f"needs no weights and is weaker"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def build_arguments(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a weights file's metadata says of how its network is built, as timm's arguments."""
    arguments: dict[str, Any] = {}
    for key in ("pad_type", "act_layer", "global_pool", "img_size"):
        if key in metadata:
            value = metadata[key]
            try:
                arguments[key] = json.loads(value)
            except ValueError:
                arguments[key] = value
    return arguments


def three_floats(text: str, key: str, path: Path) -> tuple[float, float, float]:
    """Parse a mean or a deviation from a weights file's metadata."""
    try:
        a, b, c = (float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise WeightsError(
            f"{path}: its metadata gives {key} as {text!r}; expected three numbers"
        ) from error
    return a, b, c
