"""Graphs in int8, calibrated on good images: for those who ask by name, and behind a gate.

What good images never show, a defect, is where calibration clips; so nothing is kept in int8 that
:mod:`~offnominal.engines.gate` has not compared with float32.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offnominal.engines.base import Array
from offnominal.engines.export import check_graph, export_embed
from offnominal.engines.machine import check_installed
from offnominal.engines.network import ExportedNetwork, is_exported
from offnominal.errors import OptionError

__all__ = ["quantised"]

_MOST = 32  # images that ranges are taken from


def quantised(detector: Any, good: Sequence[np.ndarray]) -> ExportedNetwork:
    """A detector's network as an int8 graph, statically quantised by onnxruntime.

    Weights are rounded channel by channel, activations by their smallest and largest value over the
    views of the images. Sums over positions, norms and softmax stay in float32.

    Parameters
    ----------
    detector : FeatureDetector
        One whose method can be exported.
    good : sequence of uint8 arrays of shape (H, W, 3)
        Good images; 32 of them, spread over all, give the ranges.

    Raises
    ------
    OptionError
        If there is no image, onnx or onnxruntime is not installed, or it cannot be done.
    """
    if not len(good):
        raise OptionError("--int8: give good images to calibrate on, with --check FOLDER")
    check_installed("onnxruntime")
    try:
        import onnx  # noqa: F401  # which onnxruntime's quantisation stands on
        from onnxruntime import quantization as tools
    except ImportError as error:
        raise OptionError("--int8: onnx is not installed: pip install 'offnominal[fit]'") from error

    chosen = [
        good[place] for place in np.linspace(0, len(good) - 1, min(_MOST, len(good)), dtype=int)
    ]
    views = [view.pixels for image in chosen for view in detector.views(image)]
    network = detector.load_network()
    plain = network if is_exported(network) else export_embed(detector, views[0])

    class Views(tools.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self.rest: Iterator[Array] = iter(views)

        def get_next(self) -> dict[str, Array] | None:
            pixels = next(self.rest, None)
            return None if pixels is None else {"pixels": pixels[None]}

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(plain.content())
        try:
            logging.disable(logging.WARNING)  # it advises what is done here by other means
            tools.quantize_static(
                before, after, Views(),
                quant_format=tools.QuantFormat.QDQ, per_channel=True,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise OptionError(f"--int8: {network.name} cannot be quantised ({error})") from error
        finally:
            logging.disable(logging.NOTSET)
        content = after.read_bytes()
    check_graph(content)
    facts = plain.facts.model_copy(
        update={
            "precision": "int8",
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    )
    return ExportedNetwork(facts, content)
