"""onnxruntime: float32 on any processor."""

from typing import Any

import numpy as np

from offnominal.engines.base import Array, threads
from offnominal.engines.machine import check_installed
from offnominal.engines.network import ExportedNetwork
from offnominal.engines.sizes import BySize, Size
from offnominal.errors import ModelFileError

__all__ = ["OnnxRuntime"]

_ERRORS_ONLY = 3


class OnnxRuntime:
    """A graph run by onnxruntime on the processor; see :class:`~offnominal.engines.base.Engine`."""

    name = "onnxruntime"

    def __init__(self, network: ExportedNetwork) -> None:
        check_installed(self.name)
        self.network = network
        self.precision: str = network.facts.precision
        self.structure = network.facts.structure
        self.threads = threads()
        self._sessions: BySize[Any] = BySize(self._session, network.facts.size)

    def _session(self, size: Size | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # What an image took is given back after it: each size would keep the most that it took.
        options.enable_cpu_mem_arena = False
        # Between images the threads sleep: others share the processor.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if size is not None:
            for name, length in zip(("height", "width"), size, strict=True):
                options.add_free_dimension_override_by_name(name, length)

        def made(source: str | bytes) -> Any:
            return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])

        try:
            session = self.network.opened(made)
        except ModelFileError:
            raise
        except Exception as error:  # of its own kinds, which have no common base
            told = str(error).splitlines()[0][:200]
            raise ModelFileError(
                f"{self.network.name}: onnxruntime cannot run its graph ({told})"
            ) from error
        self.network.check_outputs(len(session.get_outputs()))
        return session

    def prepare(self, size: Size) -> None:
        """Make ready for views of a size (h, w)."""
        self._sessions.prepare(size)

    def __reduce__(self) -> Any:
        """As it was made: what runs is of this process."""
        return type(self), (self.network,)

    def __call__(self, pixels: Array) -> list[Array]:
        """Features of one view (1, 3, h, w)."""
        session = self._sessions[pixels.shape[2], pixels.shape[3]]
        found: list[Array] = session.run(None, {"pixels": np.ascontiguousarray(pixels)})
        return found
