"""Detectors that compute on a device, with a network or several."""

from contextlib import AbstractContextManager
from typing import Any

from offnominal.checks import check_choice
from offnominal.detectors.base import Detector
from offnominal.detectors.learned_state import parts
from offnominal.detectors.options import Precision, choose_device
from offnominal.tensors import is_module, is_tensor

__all__ = ["OnDevice"]


class OnDevice(Detector):
    """A detector that computes on a device.

    Parameters
    ----------
    precision : {"fp32", "bf16", "fp16"}
        Of the networks' sums.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``. It is not stored in the saved detector.
    **options
        See :class:`~offnominal.detectors.base.Detector`.
    """

    def __init__(self, precision: Precision = "fp32", device: str = "auto", **options: Any) -> None:
        super().__init__(**options)
        check_choice("precision", precision, Precision)
        self.precision: Precision = precision
        self.device = device
        self._device: Any = "cpu"  # a torch.device, once there is a network of torch

    def use_device(self) -> None:
        """Move everything to the device that the option names."""
        self.move(choose_device(self.device))

    def move(self, device: Any) -> None:
        """Bring everything to a device: networks, banks, and what was learned."""
        self._device = device
        for part in parts(self).values():
            part.to(device)
        if is_module(self):
            this: Any = self
            this.to(device)
        for name, value in list(vars(self).items()):
            if is_tensor(value):
                setattr(self, name, value.to(device))
            elif is_module(value):
                value.to(device)

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        kind = torch.device(self._device).type
        return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)
