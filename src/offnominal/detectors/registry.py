"""From a method's name to its class, and opening what it saved."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offnominal.checks import check_choice, meant
from offnominal.detectors.methods import METHODS, Method
from offnominal.errors import ModelFileError, OptionError
from offnominal.extras import check_there, missing
from offnominal.text import brief

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector

__all__ = ["METHODS", "Method", "detector_class", "light_class", "load", "rebuilt"]


def detector_class(name: str) -> "type[Detector]":
    """The class behind a method's name.

    Raises
    ------
    OptionError
        If there is no such method.
    MissingExtraError
        If it needs a package that is not installed.
    """
    module, _, attribute = _known(name).target.partition(":")
    try:
        found: type[Detector] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if told := missing(error, f"the method {name}"):
            raise told from error
        raise
    return found


def light_class(name: str) -> type:
    """That class, or a stand-in with its options and class attributes that needs no torch.

    Raises
    ------
    OptionError
        If there is no such method.
    """
    from offnominal.detectors.signatures import stand_in

    module, _, attribute = _known(name).target.partition(":")
    try:
        return stand_in(module, attribute)
    except LookupError:  # of another package
        return detector_class(name)


def _known(name: str) -> Method:
    if name not in METHODS:
        told = f"{meant(name, METHODS)}choose one of {', '.join(METHODS)}"
        raise OptionError(f"--method {name}: {told}")
    return METHODS[name]


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
    engine: str = "auto",
) -> "Detector":
    """Open a saved detector; its large arrays are mapped into memory.

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
    engine : {"auto", "torch", "onnxruntime", "openvino"}
        What runs the network. An exported model brings its own, which torch does not run.

    Raises
    ------
    OptionError
        If the method asks no endpoint, an exported model is given weights, or there is no such
        engine.
    ModelFileError
        If the file cannot be used, or the backbone's weights are not those it was fitted with.
    WeightsError
        If the weights cannot be had.
    MissingExtraError
        If the model was not exported, and torch is not installed.
    """
    from offnominal import modelfile
    from offnominal.detectors.deployed import EXPORTED
    from offnominal.engines.base import EngineName

    check_choice("engine", engine, EngineName)
    path = Path(path)
    mapped = modelfile.Mapped(path)
    header = modelfile.read_header(path)
    method = header.get("method")
    if method not in METHODS:
        raise ModelFileError(
            f"{path}: made by the method {brief(repr(method))}, which this version lacks"
        )
    if weights and "export" in header:
        raise OptionError(f"--weights {weights}: {path} was exported, and brings its own network")
    asked = {"endpoint": endpoint, "key_variable": key_variable}
    said = {name: value for name, value in asked.items() if value is not None}
    for name in said.keys() - set(getattr(light_class(method), "confirmed_options", ())):
        flag = f"--{name.replace('_', '-')}"
        raise OptionError(f"{flag}: {path} is of the method {method}, which asks nobody")
    if "export" not in header:
        check_there("torch", f"{path}: a model that was not exported")
    if not weights and "export" not in header:
        _check_weights(path, header)
    large: dict[str, Any] = mapped.tensors
    arrays = modelfile.read(path, header, large)
    try:
        where: dict[str, str] = {"device": device, "engine": engine}
        if weights:
            where["weights"] = weights
        detector = _built(header, arrays, where, said)
        if (brought := getattr(detector, "deployed", None)) is not None:
            brought.network.where = str(path)
        detector.restore(header, arrays)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    large.pop(EXPORTED, None)  # it has a checksum of its own, which engines ask
    mapped.header = header
    detector.unverified = mapped if large else None
    named = {name for name in detector.confirmed_options if getattr(detector, name) is not None}
    detector.unconfirmed = frozenset(named - said.keys())
    return detector


def _options(kind: type, header: Mapping[str, Any]) -> dict[str, Any]:
    """A file's options, each of the type that its method takes."""
    from offnominal.detectors.options import checked_options

    try:
        return checked_options(kind, header["options"])
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"its options do not fit its method ({brief(error)})") from error


def _built(
    header: Mapping[str, Any],
    arrays: Mapping[str, Any],
    given: Mapping[str, str],
    said: Mapping[str, str],
) -> "Detector":
    """A detector of a file's method and options that knows nothing yet but its network."""
    deployed = None
    if "export" in header:
        from offnominal.detectors.deployed import EXPORTED, Deployed

        deployed = Deployed.of(header["export"], arrays.get(EXPORTED))
        if deployed.kind == "program":
            from offnominal.detectors.exported import Exported

            own: Any = light_class(header["method"])
            whole = dict(header) | {"options": _options(own, header)}
            return Exported(own, whole, deployed, given["device"], given["engine"])
    kind, engine = detector_class(header["method"]), given.get("engine", "auto")
    if engine not in ("auto", "torch") and "engine" not in kind.option_defaults():
        told = f"torch alone runs the method {header['method']}; leave it out, or export the model"
        raise OptionError(f"--engine {engine}: {told}")
    # Not every method has a network.
    known = {name: given[name] for name in given if name in kind.option_defaults()}
    options = _options(kind, header)
    try:
        detector = kind(**(options | known | dict(said)))
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"its options do not fit its method ({brief(error)})") from error
    if deployed is not None:
        vars(detector).update(network=deployed.network, deployed=deployed)
    return detector


def rebuilt(
    header: Mapping[str, Any], arrays: Mapping[str, Any], device: str, engine: str
) -> "Detector":
    """A detector inside another's file, from its header and its arrays.

    Raises
    ------
    ModelFileError
        If they do not fit each other, or it was exported.
    WeightsError
        If its backbone's weights cannot be had.
    """
    method = header.get("method")
    if method not in METHODS or "export" in header:
        raise ModelFileError(f"a member of the method {brief(repr(method))}, which cannot be one")
    _check_weights(Path(f"the member {method}"), header)
    detector = _built(header, arrays, {"device": device, "engine": engine}, {})
    detector.restore(header, arrays)
    return detector
