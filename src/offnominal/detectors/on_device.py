"""Detectors that compute on a device, with a network or several."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from offnominal.detectors.base import Detector
from offnominal.detectors.options import Precision, check_choice, choose_device

__all__ = ["OnDevice"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
        self._device = torch.device("cpu")

    def use_device(self) -> None:
        """Move everything to the device that the option names."""
        self.move(choose_device(self.device))

    def move(self, device: torch.device) -> None:
        """Bring everything to a device: networks, and what was learned and is no parameter."""
        self._device = device
        self.to(device)
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES.get(self.precision)
        return torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None)

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what was learned, onto the device."""
        here = {
            name: tensor if name.startswith("calibration.") else tensor.to(self._device)
            for name, tensor in tensors.items()
        }
        super().restore(header, here)
