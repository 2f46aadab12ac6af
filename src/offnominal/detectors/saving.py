"""A saved detector: one safetensors file with its settings in the header, and no pickle.

The header's metadata has one entry, ``offnominal``, a JSON object with the format's version, the
library's version, the method, the constructor's options, the backbone with the digest of its
weights, and learned state that is not a tensor. The tensors are the detector's buffers; the
backbone's weights are not among them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from offnominal._version import __version__
from offnominal.atomic import replacing
from offnominal.detectors import METHODS, detector_class
from offnominal.detectors.banked import Banked
from offnominal.detectors.base import Detector
from offnominal.detectors.common import choose_device
from offnominal.errors import ModelFileError, OptionError
from offnominal.memory.index_file import attach_indexes, save_indexes

__all__ = ["FORMAT", "load", "read_header", "save"]

# 2: rows have views and patches, and what growing takes; version 1 had neither.
FORMAT = 2
_KEY = "offnominal"
_NETWORK = "network."
_INDEX = ".index"  # ends the name of a search index, which is no buffer


def save(detector: Detector, path: Path) -> None:
    """Write a fitted detector; the file appears whole or not at all."""
    net = detector.load_network()
    header = {
        "format": FORMAT,
        "version": __version__,
        "method": detector.method,
        "options": detector.options(),
        "backbone": {"name": net.name, "digest": net.digest},
        "state": detector.extra_state(),
    }
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in detector.state_dict().items()
        if not name.startswith(_NETWORK)
    }
    path = path.absolute()
    try:
        with replacing(path) as temporary:
            tensors |= save_indexes(detector, path)
            save_file(tensors, temporary, metadata={_KEY: json.dumps(header)})
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelFileError(f"{path}: cannot be written ({reason})") from error
    except SafetensorError as error:
        raise ModelFileError(f"{path}: cannot be written ({error})") from error


def read_header(path: Path) -> dict[str, Any]:
    """The settings of a saved detector, without reading its tensors.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, foreign, or of a newer format.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(
            f"{path}: {what}; a model file is made by `offnominal fit GOOD_DIR -o {path.name}`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: truncated, or not an Offnominal model file ({error}); copy it again or fit "
            "it anew"
        ) from error
    if _KEY not in metadata:
        raise ModelFileError(
            f"{path}: a safetensors file, but not an Offnominal model; if it holds a network's "
            "weights, give it with --weights"
        )
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        version = int(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: its header is damaged; fit it anew") from error
    if version > FORMAT:
        raise ModelFileError(
            f"{path}: written by Offnominal {header.get('version')} in format {version}; this is "
            f"{__version__}, which reads up to format {FORMAT}: upgrade with "
            "`pip install -U offnominal`"
        )
    if header.get("method") not in METHODS:
        raise ModelFileError(
            f"{path}: made by the method {header.get('method')!r}, which this version lacks"
        )
    return header


def load(path: Path, weights: str | None = None, device: str = "auto") -> Detector:
    """Open a saved detector; its tensors are memory-mapped where the device is the CPU.

    Parameters
    ----------
    path : Path
    weights : str or None
        Where the backbone's weights lie, if not where they lay when it was fitted.
    device : str

    Raises
    ------
    ModelFileError
        If the file cannot be used, or the backbone's weights are not those it was fitted with.
    WeightsError
        If the weights cannot be had.
    """
    header = read_header(path)
    options = dict(header["options"])
    if weights is not None:
        options["weights"] = weights
    # The name is settled at fit, even where the weights file gave it.
    options["backbone"] = header["backbone"]["name"]
    try:
        detector = detector_class(header["method"])(**options, device=device)
    except TypeError as error:
        raise ModelFileError(f"{path}: its options do not fit its method ({error})") from error
    net = detector.load_network()
    if net.digest != header["backbone"]["digest"]:
        raise ModelFileError(
            f"{path}: fitted with other weights of {net.name} than "
            f"{options['weights'] or 'those on this machine'} (digest "
            f"{header['backbone']['digest'][:12]}, not {net.digest[:12]}); give the right file "
            "with --weights, or fit anew"
        )
    detector.prepare_state()
    indexes: dict[str, torch.Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.endswith(_INDEX):
                    indexes[name] = file.get_tensor(name)
                    continue
                _set_buffer(detector, name, file.get_tensor(name))
        for name, value in header["state"].items():
            setattr(detector, name, value)
        detector.fitted_ = True  # no other can be saved
    except (AttributeError, KeyError, SafetensorError) as error:
        raise ModelFileError(f"{path}: its contents do not fit its method ({error})") from error
    detector.to(choose_device(device))
    _attach(detector, indexes, path)
    return detector


def _attach(detector: Detector, indexes: dict[str, torch.Tensor], path: Path) -> None:
    """Give the banks the indexes that were saved with them."""
    for part in detector.modules():
        if isinstance(part, Banked):
            for bank in part._patch_banks:
                bank.dim = bank.rows.shape[1]
    try:
        attach_indexes(detector, indexes, path)
    except OptionError as error:  # FAISS is missing
        raise OptionError(f"{path}: was fitted with an index; {error}") from error
    except AttributeError as error:
        raise ModelFileError(f"{path}: its contents do not fit its method ({error})") from error


def _set_buffer(detector: Detector, name: str, tensor: torch.Tensor) -> None:
    """Adopt a tensor as a buffer, whatever the size of the one that stands there."""
    owner, _, attribute = name.rpartition(".")
    module = detector.get_submodule(owner) if owner else detector
    if attribute not in module.state_dict():
        raise KeyError(name)
    if attribute in dict(module.named_parameters(recurse=False)):  # layers learned elsewhere
        setattr(module, attribute, torch.nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, attribute, tensor)
