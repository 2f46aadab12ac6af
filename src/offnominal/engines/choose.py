"""Which engine runs a detector's network: the one that is named, or the fastest that is here.

On a CPU ``auto`` writes the network down once, runs the engines that are installed on the first
image, and keeps the fastest; the choice is remembered, so that the next process starts with it, and
without torch. A network that torch is through with in a few milliseconds stays with torch: writing
it down would take longer than it saves.
"""

import threading
import warnings
from typing import Any

import numpy as np

from offnominal.backbones import JOIN, takes_points
from offnominal.engines.base import Array, Engine
from offnominal.engines.cache import EngineCache
from offnominal.engines.identity import Wanted, is_exportable, wanted_graph
from offnominal.engines.machine import check_installed, has_cuda
from offnominal.engines.network import ExportedNetwork, is_exported
from offnominal.engines.same import asked, check_same, learned_by, told
from offnominal.engines.torch import Torch
from offnominal.engines.trying import ABLE, here, slow, start, timed, tried
from offnominal.errors import EngineWarning, ModelFileError, OptionError
from offnominal.memory.search.chosen import keep_torch_out
from offnominal.modelfile import release

__all__ = ["SETTLING", "ready", "settle", "start"]

SETTLING = threading.RLock()
"""Held while a network is built and its engine chosen, which is done by one thread for all."""

_IMAGES = 200  # what a network is expected to be asked for, at least
_EXPORT = 1.5  # seconds that writing a small network down takes, engines and their import
_EACH = 2e-8  # and for each parameter


def ready(detector: Any) -> ExportedNetwork | None:
    """A graph of a detector's network that was written down before, found without torch.

    None where there is none for exactly these options, or torch is to run it: by name, on a card,
    or because it is fastest here. Then the network is built.

    Raises
    ------
    OptionError
        If an engine is named that there is not.
    """
    wanted = asked(detector)
    if wanted == "torch" or _kept_by_torch(detector):
        return None
    if wanted != "auto":
        check_installed(wanted)
    cache = EngineCache()
    if not any(cache.folder.glob("graph-*")):
        return None
    if (graph := wanted_graph(detector, cache.files)) is None:
        return None
    engine = wanted if wanted != "auto" else cache.choice(graph.key, detector.precision)
    if engine in (None, "torch"):
        return None
    found = _found(cache, graph, engine == "openvino")
    if found is not None:
        detector.backbone_note = graph.note
    return found


def settle(detector: Any, pixels: Array) -> Engine:
    """The engine for a detector, tried on its first image.

    Parameters
    ----------
    detector : FeatureDetector
        With a network, of torch's or exported.
    pixels : float32 array of shape (3, h, w)
        A view, as the detector prepares it.

    Raises
    ------
    OptionError
        If the engine that is named is not installed, cannot run this method, or is another than
        what was learned by, where that is not float32.
    """
    wanted = asked(detector)
    check_same(detector, wanted)
    network = detector.load_network()
    if is_exported(network):
        try:
            return _of_graph(detector, network, wanted, pixels)
        except ModelFileError as error:
            if network.folder is None:  # of a file that somebody gave
                raise
            EngineCache(network.folder.parent).drop(network.folder.name.removeprefix("graph-"))
            warnings.warn(f"{error}; it is written down anew", EngineWarning, stacklevel=2)
            detector.network = None
            return settle(detector, pixels)
    if wanted == "torch":
        return Torch(detector)
    why = _kept_by_torch(detector) or _unknown(detector, network)
    if why and wanted == learned_by(detector):
        raise OptionError(f"{told(detector)}, and {why}")
    if wanted == "auto":
        return Torch(detector) if why else _fastest(detector, pixels)
    if why:
        raise OptionError(f"--engine {wanted}: {why}; leave it out, and torch runs it")
    check_installed(wanted)
    cache = EngineCache()
    graph = wanted_graph(detector, cache.files)
    return start(_written(detector, cache, graph, pixels), wanted, detector.precision)


def _kept_by_torch(detector: Any) -> str:
    """Why a detector's network is torch's to run, as far as its options tell; empty if it is not.

    Cards are torch's: there it is as fast as others.
    """
    if not is_exportable(type(detector)):
        return f"{detector.method} is run by torch alone"
    if takes_points(name := detector.backbone or "") or JOIN in name:
        return f"--backbone {name} is run by torch alone"
    if detector.device not in ("auto", "cpu"):
        return f"--device {detector.device} is run by torch alone"
    if not ABLE[detector.precision]:
        return f"--precision {detector.precision} is run by torch alone"
    if detector.device == "auto" and has_cuda():
        return "there is a card, which is run by torch alone (--device cpu does without)"
    return ""


def _unknown(detector: Any, network: Any) -> str:
    """Why a network cannot be written down; empty if it can."""
    if network.takes_points:
        return f"{network.name} looks at points, which is no network's work"
    if hasattr(network, "look_up"):
        return "features are kept from run to run, as torch gave them (--no-cache does without)"
    origin = getattr(network, "origin", None)
    if origin is None or origin.digest != network.digest:
        return f"{network.name} is another network than the options name"
    if origin.layers != detector.layers or origin.weights != detector.weights:
        return f"{network.name} was built with other layers or weights than the options name"
    return ""


def _found(cache: EngineCache, graph: Wanted, compiled: bool = False) -> ExportedNetwork | None:
    found, damage = cache.find(graph.key, compiled)
    if damage:
        warnings.warn(f"{damage}; {graph.name} is written down anew", EngineWarning, stacklevel=2)
    return found


def _written(
    detector: Any, cache: EngineCache, graph: Wanted | None, pixels: Array
) -> ExportedNetwork:
    """The graph of a detector, from the cache or written down now."""
    if graph is not None and (found := _found(cache, graph)) is not None:
        if found.digest == detector.network.digest:
            return found
        cache.drop(graph.key)
    from offnominal.engines.export import export_embed

    made = export_embed(detector, pixels)
    return made if graph is None else cache.put(graph.key, made)


def _fastest(detector: Any, pixels: Array) -> Engine:
    """The fastest engine that is here for a torch network, torch among them."""
    own, precision = Torch(detector), detector.precision
    others = here(precision)
    if not others:
        return own
    cache = EngineCache()
    graph = wanted_graph(detector, cache.files)
    if graph is None:
        return own
    known = cache.choice(graph.key, precision)
    if known == "torch":
        return own
    if known in others and (found := _found(cache, graph)) is not None:
        return start(found, known, precision)
    right, seconds = timed(own, pixels)
    if not _worth_it(seconds, detector.network) and _found(cache, graph) is None:
        return own
    try:
        network = _written(detector, cache, graph, pixels)
    except OptionError as error:
        warnings.warn(f"torch runs the network: {error}", EngineWarning, stacklevel=2)
        cache.remember(graph.key, precision, "torch", {"why": str(error)})
        return own
    return tried(cache, graph.key, network, precision, {own: seconds}, pixels, right)


def _of_graph(detector: Any, network: ExportedNetwork, wanted: str, pixels: Array) -> Engine:
    """An engine for a graph without a torch network."""
    if detector.device not in ("auto", "cpu"):
        raise OptionError(
            f"--device {detector.device}: an exported network runs on the CPU; leave it out"
        )
    precision = "int8" if network.facts.precision == "int8" else detector.precision
    if detector.engine == "torch":
        raise OptionError("--engine torch: the file has no network of torch's; leave it out")
    if wanted == "torch" and wanted == learned_by(detector):
        raise OptionError(f"{told(detector)}, and the file has no network of torch's: fit anew")
    cache = EngineCache()
    if network.folder is None:  # it came in a model file
        keep_torch_out()
        key = network.facts.sha256
        network = _filed(cache, network)
    else:
        graph = wanted_graph(detector, cache.files)
        key = graph.key if graph else network.facts.sha256
    if wanted not in ("auto", "torch"):  # as a wish in general torch means nothing here
        return _prepared(start(network, wanted, precision), pixels)
    others = here(precision) or slow(precision)
    known = cache.choice(key, precision)
    if known in others or len(others) == 1:
        return _prepared(start(network, known if known in others else others[0], precision), pixels)
    return tried(cache, key, network, precision, {}, pixels)


def _filed(cache: EngineCache, network: ExportedNetwork) -> ExportedNetwork:
    """A model file's graph as a file of its own; the memory that reading it took is given back."""
    found = cache.filed(network)
    if found is not network and isinstance(network.graph, np.ndarray):
        release(network.graph)
    return found


def _prepared(engine: Engine, pixels: Array) -> Engine:
    if hasattr(engine, "prepare"):
        engine.prepare(pixels.shape[1:])
    return engine


def _worth_it(seconds: float, network: Any) -> bool:
    """Whether writing a network down saves more than it takes, by the time of one pass."""
    parameters = sum(each.numel() for each in network.parameters())
    return bool(seconds * _IMAGES > _EXPORT + _EACH * parameters)
