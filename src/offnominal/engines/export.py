"""Networks written down as ONNX graphs: any height and width, the features that torch gives.

The exporter that traces is taken, on purpose: for one graph of any size it needs a second or two
where the newer one, which reasons about sizes, needs minutes.
"""

import copy
import hashlib
import io
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from offnominal._version import __version__
from offnominal.engines.base import Array, Structure, flat, leaves_of, structure_of
from offnominal.engines.machine import installed
from offnominal.engines.network import ExportedNetwork, Facts, facts_of
from offnominal.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OPSET", "TOLERANCE", "compare_with", "export_embed", "write_graph"]

OPSET = 14  # the lowest in which the exporter can write attention
TOLERANCE = 1e-4  # of the output's range: how far a graph may be from torch
_LARGEST = 2**31 - 2**20  # bytes of a graph: the format ends there
_EXPORTING = threading.Lock()  # the exporter has state of its own


def write_graph(
    program: Callable[["Tensor"], Any],
    pixels: "Tensor",
    inputs: Sequence[str] = ("pixels",),
    outputs: Sequence[str] | None = None,
    network: Any = None,
) -> tuple[bytes, Structure]:
    """A tensor program as an ONNX graph that takes any height and width.

    Parameters
    ----------
    program : callable or nn.Module
        From a Tensor (1, 3, h, w) to a Tensor, or tuples and lists of them; what its sizes depend
        on must be in tensors, not in numbers.
    pixels : Tensor of shape (1, 3, h, w), float32
        Any example, on the CPU.
    inputs, outputs : sequences of str
        Names of the graph's; outputs are ``features``, or ``features0``, ``features1``, ...
    network : nn.Module or None
        The one that the program runs: its weights become the graph's initializers. Other tensors
        that the program closes over are constants.

    Returns
    -------
    graph : bytes
        Checked by onnx's checker, where onnx is installed.
    structure : list or None
        How the outputs belong together; see :func:`~offnominal.engines.base.restored`.

    Raises
    ------
    OptionError
        If it cannot be written down.
    """
    import torch

    forward = _module(program, network)
    with _EXPORTING, _traceable(), torch.inference_mode():
        given = program(pixels)
        count = len(flat(given))
        names = outputs or ["features"] if count == 1 else [f"features{n}" for n in range(count)]
        file = io.BytesIO()
        axes: dict[str, dict[int, str]] = {inputs[0]: {2: "height", 3: "width"}}
        for name, tensor in zip(names, flat(given), strict=True):
            if tensor.ndim >= 3:  # a grid comes last
                axes[name] = {tensor.ndim - 2: "grid_height", tensor.ndim - 1: "grid_width"}
        try:
            torch.onnx.export(
                forward, (pixels,), cast(Any, file),  # which the exporter that traces takes
                dynamo=False, opset_version=OPSET,
                input_names=list(inputs), output_names=list(names), dynamic_axes=axes,
            )  # fmt: skip
        except Exception as error:  # of a dozen kinds
            told = str(error).strip().splitlines() or [type(error).__name__]
            raise OptionError(f"cannot be written as an ONNX graph: {told[0][:300]}") from error
    content = file.getvalue()
    check_graph(content)
    return content, structure_of(given)


def _module(program: Callable[["Tensor"], Any], network: Any) -> Any:
    """The program as what the exporter takes."""
    from torch import nn

    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: "Tensor") -> Any:
            given = flat(program(pixels))
            return given[0] if len(given) == 1 else tuple(given)

    return Program().eval()


@contextmanager
def _traceable() -> Iterator[None]:
    """Within the block networks are computed in a way that holds for every size."""
    import torch

    from offnominal.backbones.positions import is_traced, resized_table, tracing_positions

    def here(original: Callable[..., Any]) -> Callable[..., Any]:
        """The rule that holds for every size; in other threads all stays as it was."""
        return lambda *told, **more: (resized_table if is_traced() else original)(*told, **more)

    with ExitStack() as stack:
        stack.enter_context(tracing_positions())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # Where it fails the exporter would print all that it had so far.
        _replaced(stack, torch._C, "_jit_onnx_log", lambda *_: None)
        # timm's rule for tables of positions, in every module of networks that took it over.
        for name, module in list(sys.modules.items()):
            if name.startswith("timm.") and hasattr(module, "resample_abs_pos_embed"):
                rule = here(module.resample_abs_pos_embed)
                _replaced(stack, module, "resample_abs_pos_embed", rule)
        yield


def _replaced(stack: ExitStack, module: Any, name: str, value: Any) -> None:
    if hasattr(module, name):
        stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)


def check_graph(content: bytes) -> None:
    """Have onnx's checker look at a graph, where onnx is installed.

    Raises
    ------
    OptionError
        If it finds fault with it, or it is larger than the format holds.
    """
    if len(content) > _LARGEST:
        raise OptionError("larger than an ONNX file can be, 2 GB; torch runs it")
    try:
        import onnx
    except ImportError:
        return
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OptionError(f"onnx's checker finds fault with the graph: {error}") from error


def export_embed(detector: Any, pixels: Array) -> ExportedNetwork:
    """What a detector makes of one view, as a graph for any size, compared with torch at two.

    Parameters
    ----------
    detector : FeatureDetector
        On the CPU, its torch network loaded.
    pixels : float32 array of shape (3, h, w)
        A view, as the detector prepares it.

    Raises
    ------
    OptionError
        If it cannot be written down, or the graph gives something else.
    """
    import torch

    def program(batch: torch.Tensor) -> Any:
        return plain.embed(batch[0])

    network = detector.load_network()
    if 4 * facts_of(network)["parameters"] > _LARGEST:
        raise OptionError(f"{network.name}: larger than an ONNX file can be, 2 GB; torch runs it")
    plain = copy.copy(detector)  # other threads may look at its precision
    plain.precision = "fp32"
    try:
        content, structure = write_graph(program, torch.from_numpy(pixels[None]), network=network)
        made = {name: told for name, told in installed().items() if told}
        facts = Facts(
            **facts_of(network),
            structure=structure,
            outputs=leaves_of(structure),
            opset=OPSET,
            made_with={"offnominal": __version__, **made},
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        exported = ExportedNetwork(facts, content)
        if installed()["onnxruntime"]:
            _compare_sizes(plain, exported, pixels)
    except OptionError as error:
        raise OptionError(f"{network.name} with {detector.method}: {error}") from error
    return exported


def _compare_sizes(detector: Any, exported: ExportedNetwork, pixels: Array) -> None:
    """Run both at two small sizes, neither of them square."""
    import torch

    from offnominal.engines.onnxruntime import OnnxRuntime

    engine, step = OnnxRuntime(exported), exported.multiple
    least = max(1, -(-96 // step))
    for rows, columns in ((least, least + 1), (least + 2, least)):
        there = np.resize(pixels, (3, rows * step, columns * step))
        with torch.inference_mode():
            right = detector.embed(torch.from_numpy(there))
        told = compare_with([each.numpy() for each in flat(right)], engine(there[None]))
        if told > TOLERANCE:
            raise OptionError(
                f"its graph gives other features than torch at {there.shape[1]} x "
                f"{there.shape[2]} px (by {told:.2g} of their range)"
            )


def compare_with(right: Sequence[Array], found: Sequence[Array]) -> float:
    """The largest difference of some arrays, as a part of the range of those that are right."""
    if [each.shape for each in right] != [each.shape for each in found]:
        return float("inf")
    worst = 0.0
    for one, other in zip(right, found, strict=True):
        span = max(float(np.ptp(one)), 1e-12)
        worst = max(worst, float(np.abs(one - other).max()) / span)
    return worst if np.isfinite(worst) else float("inf")
