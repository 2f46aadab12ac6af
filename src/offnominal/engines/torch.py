"""torch: any method, any device, any precision."""

from typing import Any

from offnominal.engines.base import Array, flat, structure_of

__all__ = ["Torch"]


class Torch:
    """A detector's own ``embed``; see :class:`~offnominal.engines.base.Engine`."""

    name = "torch"

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.precision: str = detector.precision
        self.structure: list[Any] | None = None  # known once it has run

    def __call__(self, pixels: Array) -> list[Array]:
        """Features of one view (1, 3, h, w)."""
        import torch

        with torch.inference_mode():
            found = self.detector.embed(torch.from_numpy(pixels[0]))
        self.structure = structure_of(found)
        return [each.float().cpu().numpy() for each in flat(found)]
