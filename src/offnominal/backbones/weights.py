"""Where a network's weights come from: a local file, a package, or the hub by way of its cache.

Whatever the source, the tensors end in timm's naming, every one of them is accounted for, and a
digest of them is returned.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from offnominal.backbones.metadata import read_metadata, untrained_reason
from offnominal.errors import WeightsError

__all__ = [
    "build_arguments",
    "digest",
    "fit_to",
    "normalisation",
    "read_metadata",
    "read_weights",
    "recognised",
    "untrained_reason",
]

Floats = tuple[float, float, float]

_WRAPPERS = ("state_dict", "model", "teacher", "student")
_BUILT_BY = ("pad_type", "act_layer", "global_pool", "img_size")
_PREFIXES = ("module.", "backbone.", "encoder.")
# Not used for patch features: classifier heads, and DINOv2's token for masked training.
_SPARE = ("head.", "head_dist.", "fc.", "classifier.", "mask_token", "fc_norm.")
_PACKAGED_SIZE = 2**26
_RECOGNISED = {296: "efficientnet_lite0", 386: "efficientnet_lite2"}
# What EfficientNet-PyTorch calls the layers around the blocks of a network, and in a block; the
# first block of all has no expansion.
_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_AROUND |= {"_fc": "classifier"}
_EXPANDING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
_EXPANDING |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def recognised(path: Path) -> str | None:
    """The short name of the network whose weights a file without metadata holds, if it is plain.

    Those are the files that packages bring, by their naming and their number of tensors.
    """
    if path.suffix not in (".pth", ".pt") or not path.is_file():
        return None
    if path.stat().st_size > _PACKAGED_SIZE:  # not read twice
        return None
    tensors = read_weights(path)
    return _RECOGNISED.get(len(tensors)) if "_conv_stem.weight" in tensors else None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file or a ``.pth``, ``.pt`` or ``.bin`` state dict, on the CPU.

    Nothing is ever unpickled beyond tensors and plain containers.

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
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=None)
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    except Exception as error:  # torch.load raises a dozen kinds for a damaged or unsafe file
        raise WeightsError(
            f"{path}: no state dict ({type(error).__name__}), or one that carries code, which is "
            "not run; save the network's state_dict() as safetensors or .pth"
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
    """Load tensors into a network, in the library's naming or in the network's original one.

    Raises
    ------
    WeightsError
        If keys are missing, unknown, or of another shape; the message lists them.
    """
    expected = model.state_dict()
    _check_shapes(expected, tensors, source, name)  # before a conversion could resample any
    # timm knows the original naming of each family it has; it takes its own naming as well.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if "_conv_stem.weight" in tensors:
        convert = _from_efficientnet_pytorch
    if convert is not None and set(tensors) != set(expected):
        tensors = convert(dict(tensors), model)
        _check_shapes(expected, tensors, source, name)
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = [key for key in expected if key not in tensors and key not in counters]
    unknown = [key for key in tensors if key not in expected and not key.startswith(_SPARE)]
    if missing or unknown:
        raise WeightsError(
            f"{source}: does not fit {name}. Missing: {_some(missing)}. Not known: "
            f"{_some(unknown)}. Expected are {len(expected)} tensors such as "
            f"{_some(list(expected)[:3])}"
        )
    loaded = {key: torch.zeros((), dtype=torch.long) for key in counters}
    for key in expected.keys() & tensors.keys():
        value = tensors[key]
        loaded[key] = value.float() if value.is_floating_point() else value
    model.load_state_dict(loaded, assign=True)


def _from_efficientnet_pytorch(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of EfficientNet-PyTorch, which numbers blocks through all stages, in timm's names."""
    found = (re.match(r"blocks\.\d+\.\d+\.", key) for key in model.state_dict())
    places = list(dict.fromkeys(each.group() for each in found if each))
    renamed = {}
    for key, value in tensors.items():
        place, layers, layer = "", _AROUND, key
        if block := re.match(r"_blocks\.(\d+)\.", key):
            expands = f"{block.group()}_expand_conv.weight" in tensors
            layers, layer = _EXPANDING if expands else _PLAIN, key.removeprefix(block.group())
            # A block that the network does not have keeps its name, and is told as not known.
            number = int(block.group(1))
            place = places[number] if number < len(places) else block.group()
        layer, _, what = layer.partition(".")
        renamed[f"{place}{layers.get(layer, layer)}.{what}"] = value
    return renamed


def _check_shapes(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str, name: str
) -> None:
    wrong = []
    for key in expected.keys() & tensors.keys():
        found, wanted = tuple(tensors[key].shape), tuple(expected[key].shape)
        # The original with registers keeps a row for the class token; timm folds it in.
        folds = key == "pos_embed" and "reg_token" in expected and len(found) == 3
        if found != wanted and not (folds and wanted == (1, found[1] - 1, found[2])):
            wrong.append(f"{key} is {found}, expected {wanted}")
    if wrong:
        raise WeightsError(f"{source}: does not fit {name}: {_some(sorted(wrong))}")


def _some(items: list[str], most: int = 4) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest or "none"


def digest(model: nn.Module) -> str:
    """SHA-256 over every tensor of a network, independent of the file that it came from."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()


def build_arguments(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a weights file's metadata says of how its network is built, as timm's arguments."""
    said = {key: metadata[key] for key in _BUILT_BY if key in metadata}
    arguments: dict[str, Any] = dict(said)
    for key, value in said.items():
        with suppress(ValueError):  # a plain word
            arguments[key] = json.loads(value)
    return arguments


def normalisation(
    metadata: Mapping[str, str], path: Path | None, mean: Floats, std: Floats
) -> tuple[Floats, Floats]:
    """How pixels are shifted and scaled: as a weights file's metadata says, or else as given."""

    def three(key: str, value: Floats) -> Floats:
        if key not in metadata:
            return value
        try:
            a, b, c = map(float, metadata[key].replace(",", " ").split())
        except ValueError as error:
            raise WeightsError(
                f"{path}: its metadata gives {key} as {metadata[key]!r}; expected three numbers"
            ) from error
        return a, b, c

    return three("mean", mean), three("std", std)
