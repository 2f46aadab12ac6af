"""From a method's name to its class, and opening what it saved."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offnominal.detectors.methods import METHODS, Method
from offnominal.errors import ModelFileError, OptionError
from offnominal.text import brief

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

__all__ = ["METHODS", "Method", "detector_class", "load"]


def detector_class(name: str) -> "type[Detector]":
    """The class behind a method's name.

    Raises
    ------
    OptionError
        If there is no such method.
    """
    if name not in METHODS:
        raise OptionError(f"--method {name}: choose one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].target.partition(":")
    found: type[Detector] = getattr(import_module(module), attribute)
    return found


def _check_weights(path: Path, header: Mapping[str, Any]) -> None:
    """Refuse a file that would reach for weights on another machine, which nobody has named."""
    from offnominal.paths import is_elsewhere

    named = str(header.get("options", {}).get("weights") or "")
    if any(is_elsewhere(part.strip()) for part in named.split(",")):
        raise ModelFileError(
            f"{path}: its weights are on another machine ({named}), and a file alone does not "
            "decide what is contacted; give them with --weights"
        )


def load(
    path: str | Path,
    weights: str | None = None,
    device: str = "auto",
    endpoint: str | None = None,
    key_variable: str | None = None,
) -> "Detector":
    """Open a saved detector; its tensors are memory-mapped where the device is the CPU.

    Parameters
    ----------
    path : path
    weights : str or None
        Where the backbone's weights lie, if not where they lay when it was fitted.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
    endpoint, key_variable : str or None
        Of a chat model: where images go, and the environment variable of the key, or an empty
        string for none. What only the file names is not believed: such a model can be looked at,
        and refuses to judge images.

    Raises
    ------
    OptionError
        If the method asks no endpoint.
    ModelFileError
        If the file cannot be used, or the backbone's weights are not those it was fitted with.
    WeightsError
        If the weights cannot be had.
    """
    from offnominal import modelfile
    from offnominal.detectors.options import checked_options

    path = Path(path)
    header = modelfile.read_header(path)
    method = header.get("method")
    if method not in METHODS:
        raise ModelFileError(
            f"{path}: made by the method {brief(repr(method))}, which this version lacks"
        )
    kind = detector_class(method)
    said = {"endpoint": endpoint, "key_variable": key_variable}
    said = {name: value for name, value in said.items() if value is not None}
    for name in said.keys() - set(kind.confirmed_options):
        flag = f"--{name.replace('_', '-')}"
        raise OptionError(f"{flag}: {path} is of the method {method}, which asks nobody")
    given = {"weights": weights, "device": device}
    # Not every method has a network.
    known = {name: given[name] for name in given if name in kind.option_defaults() and given[name]}
    if not weights:
        _check_weights(path, header)
    try:
        detector = kind(**(checked_options(kind, header["options"]) | known | said))
    except (ValueError, TypeError) as error:
        raise ModelFileError(
            f"{path}: its options do not fit its method ({brief(error)})"
        ) from error
    large: dict[str, Any] = {}
    tensors = modelfile.read(path, header, "pt", large)
    try:
        detector.restore(header, tensors)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    detector.unverified = partial(modelfile.verify, path, header, large) if large else None
    named = {name for name in kind.confirmed_options if getattr(detector, name) is not None}
    detector.unconfirmed = frozenset(named - said.keys())
    return detector
