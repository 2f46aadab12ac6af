"""OpenVINO: float32 and bf16, fastest on processors of Intel's."""

import io
import threading
from contextlib import suppress
from typing import Any

import numpy as np

from offnominal.engines.base import Array, threads
from offnominal.engines.compiled import Compiled
from offnominal.engines.machine import check_installed
from offnominal.engines.network import ExportedNetwork
from offnominal.engines.sizes import BySize, Size
from offnominal.errors import ModelFileError, OptionError

__all__ = ["OpenVINO"]

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVINO:
    """A graph run by OpenVINO on the processor; see :class:`~offnominal.engines.base.Engine`."""

    name = "openvino"

    def __init__(self, network: ExportedNetwork, precision: str = "fp32") -> None:
        check_installed(self.name)
        if network.facts.precision == "int8":  # at all sizes but one its sums are wrong
            raise OptionError(
                f"--engine {self.name}: {network.name} is in int8 here, which onnxruntime alone "
                "runs; leave it out"
            )
        if precision not in _HINTS:
            told = f"OpenVINO computes in {', '.join(_HINTS)} here"
            raise OptionError(f"--precision {precision}: {told}; or take --engine torch")
        self.network = network
        self.precision = precision
        self.structure = network.facts.structure
        self.threads = threads()
        self._requests: BySize[Any] = BySize(self._request, network.facts.size)
        self._running = threading.Lock()  # a request holds the results of one run

    def _request(self, size: Size | None) -> Any:
        from openvino import Core

        core = Core()
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
        }
        kept = self._compiled(size)
        made = None
        if (content := kept.read()) is not None:
            with suppress(RuntimeError):  # whatever it is, there is the graph
                made = core.import_model(io.BytesIO(content), "CPU", options)
        made = made or self._made(core, size, options, kept)
        self.network.check_outputs(len(made.outputs))
        return made.create_infer_request()

    def _made(self, core: Any, size: Size | None, options: dict[str, Any], kept: Compiled) -> Any:
        """The graph, compiled for a size or for any."""
        try:
            model = self.network.opened(core.read_model)
            if size is not None:
                model.reshape([1, 3, *size])
            made = core.compile_model(model, "CPU", options)
            kept.keep(made.export_model().getvalue())
            return made
        except RuntimeError as error:
            told = str(error).strip().splitlines()[-1][:200]
            raise ModelFileError(
                f"{self.network.name}: OpenVINO cannot run its graph ({told})"
            ) from error

    def _compiled(self, size: Size | None) -> Compiled:
        folder = self.network.folder
        own = self.network.facts.sha256, self.precision, size
        return Compiled(folder and folder / self.name, *own)

    def prepare(self, size: Size) -> None:
        """Make ready for views of a size (h, w)."""
        self._requests.prepare(size)

    def __reduce__(self) -> Any:
        """As it was made: what runs is of this process."""
        return type(self), (self.network, self.precision)

    def __call__(self, pixels: Array) -> list[Array]:
        """Features of one view (1, 3, h, w)."""
        request = self._requests[pixels.shape[2], pixels.shape[3]]
        with self._running:
            found = request.infer({0: np.ascontiguousarray(pixels)})
            # Copies: the request writes its next results where these lie.
            return [np.array(found[place]) for place in range(self.network.facts.outputs)]
