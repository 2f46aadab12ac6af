"""Starting an engine, and trying which of those that are here is fastest."""

import time
import warnings
from collections.abc import Callable

import numpy as np

from offnominal.engines.base import Array, Engine
from offnominal.engines.cache import EngineCache
from offnominal.engines.machine import check_installed, has_bf16, installed
from offnominal.engines.network import ExportedNetwork
from offnominal.engines.onnxruntime import OnnxRuntime
from offnominal.engines.openvino import OpenVINO
from offnominal.errors import EngineWarning, ModelFileError, OptionError

__all__ = ["ABLE", "here", "slow", "start", "timed", "tried"]

# By precision: the engines beside torch that compute in it, and right at every size.
ABLE = {
    "fp32": ("onnxruntime", "openvino"),
    "bf16": ("openvino",),
    "fp16": (),
    "int8": ("onnxruntime",),
}

_SHORT = 0.2  # a pass longer than so many seconds is timed once
_ROUGH = 1e-2  # of the largest: so far two engines' sums of a program may lie apart


def start(network: ExportedNetwork, name: str, precision: str = "fp32") -> Engine:
    """An engine, by name, for a graph.

    Raises
    ------
    OptionError
        If it is not installed, or does not compute in that precision.
    """
    if precision == "bf16" and not has_bf16():
        warnings.warn(
            f"this processor has no instructions for bf16: {name} is slow in it, and a model "
            "fitted with --precision fp32 may be faster here",
            EngineWarning,
            stacklevel=2,
        )
    if name == "openvino":
        return OpenVINO(network, precision)
    precision = "fp32" if network.facts.precision == "int8" else precision
    if precision != "fp32":
        raise OptionError(
            f"--engine {name}: computes in fp32, not in {precision}; take --engine "
            f"{'openvino or ' if precision == 'bf16' else ''}torch"
        )
    return OnnxRuntime(network)


def here(precision: str) -> list[str]:
    """Engines beside torch that are installed and compute in a precision, and fast in it."""
    if precision == "bf16" and not has_bf16():
        return []
    there = installed()
    return [name for name in ABLE[precision] if there[name]]


def slow(precision: str) -> list[str]:
    """The engine that computes in a precision for which this processor has no instructions."""
    if not ABLE[precision]:
        raise OptionError(f"--precision {precision}: is run by torch alone")
    first = ABLE[precision][0]
    check_installed(first)
    return [first]


def tried(
    cache: EngineCache,
    key: str,
    network: ExportedNetwork,
    precision: str,
    seconds: dict[Engine, float],
    pixels: Array,
    right: list[Array] | None = None,
) -> Engine:
    """The fastest engine on an image, which is remembered.

    ``seconds`` are those of engines that were timed before, and ``right`` what one of them gave:
    one that gives something else is left out, and it is told. Without ``right`` the first is it.
    """
    first: list[Array] = []
    for name in here(precision):
        try:
            engine = start(network, name, precision)
            found, took = timed(engine, pixels, min(seconds.values(), default=float("inf")))
        except (ModelFileError, RuntimeError) as error:
            warnings.warn(f"{name} is left out: {error}", EngineWarning, stacklevel=2)
            continue
        if precision == "fp32" and (told := _differs(right or first, found, bool(right))):
            warnings.warn(f"{name} is left out: {told}", EngineWarning, stacklevel=2)
            continue
        seconds[engine], first = took, first or found
    if not seconds:
        raise OptionError(f"no engine here runs the graph of {network.name}")
    best = min(seconds, key=lambda one: seconds[one])
    times = {one.name: round(took, 5) for one, took in seconds.items()}
    cache.remember(key, precision, best.name, {"seconds": times})
    return best


def _differs(right: list[Array], found: list[Array], exact: bool) -> str:
    """How far features are from those of torch, or roughly from another engine's, in words."""
    if not right:
        return ""
    from offnominal.engines.export import TOLERANCE, compare_with

    if exact:
        told = compare_with(right, found)
        return f"its features differ by {told:.2g} of their range" if told > TOLERANCE else ""
    for one, other in zip(right, found, strict=True):
        near = one.shape == other.shape and np.abs(one - other).max() <= _ROUGH * np.abs(one).max()
        if not near:
            return "it gives something else than another engine"
    return ""


def timed(
    engine: Callable[[Array], list[Array]], pixels: Array, best: float = float("inf")
) -> tuple[list[Array], float]:
    """What an engine gives of a view (3, h, w), and the seconds that it takes.

    The first pass is warm-up, unless it took long, or so long that it cannot be the ``best``. What
    an engine prepares for a size is not counted.
    """
    batch = pixels[None]
    if hasattr(engine, "prepare"):
        engine.prepare(pixels.shape[1:])
    began = time.perf_counter()
    found = engine(batch)
    took = time.perf_counter() - began
    for _ in range(3):
        if took > _SHORT or took > 4 * best:
            break
        began = time.perf_counter()
        engine(batch)
        took = min(took, time.perf_counter() - began)
    return found, took
