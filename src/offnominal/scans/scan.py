"""A scan: where a camera measured a surface, and its colour there."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError

__all__ = ["CHANNELS", "Modality", "Scan", "is_scan"]

Modality = Literal["auto", "colour", "depth", "height", "normals", "scan"]
"""What a detector sees of a scan: its colour picture, one that is drawn of its geometry, or all."""

CHANNELS = 6
"""Of a scan as an array: red, green, blue on [0, 255], then x, y, z."""


@dataclass(frozen=True, eq=False)
class Scan:
    """Points on the camera's grid, or a cloud without one.

    Attributes
    ----------
    points : float32 array of shape (H, W, 3)
        x, y, z in metres, the camera at the origin and looking along +z. All three are NaN where
        nothing was measured. A cloud without a grid is (1, N, 3), and every point of it is there.
    colour : uint8 array of shape (H, W, 3), or None
        RGB of the same pixels.
    """

    points: NDArray[np.float32]
    colour: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 3 or self.points.shape[2] != 3 or self.points.dtype != np.float32:
            raise OptionError(
                f"points {self.points.shape} {self.points.dtype}: give float32 (H, W, 3), or "
                "(1, N, 3) of a cloud without a grid"
            )
        if self.colour is not None and self.colour.dtype != np.uint8:
            raise OptionError(f"colour {self.colour.dtype}: give uint8 from 0 to 255")
        if self.colour is not None and self.colour.shape != self.points.shape:
            raise OptionError(
                f"colour {self.colour.shape} beside points {self.points.shape}: give both on one "
                "grid"
            )

    @property
    def organised(self) -> bool:
        """Whether neighbours on the grid are neighbours on the surface."""
        return bool(self.points.shape[0] > 1)

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Where there are points (H, W)."""
        return np.isfinite(self.points[..., 2])

    @property
    def missing(self) -> int:
        """Pixels without a point."""
        return int(self.measured.size - self.measured.sum())

    def as_array(self) -> NDArray[np.float32]:
        """Colour and points as one float32 array (H, W, 6); colour NaN where there is none."""
        found = np.full((*self.points.shape[:2], CHANNELS), np.nan, np.float32)
        if self.colour is not None:
            found[..., :3] = self.colour
        found[..., 3:] = self.points
        return found

    @classmethod
    def of(cls, array: NDArray[np.float32]) -> "Scan":
        """What :meth:`as_array` gave, as a scan again."""
        colour = array[..., :3]
        drawn = None if np.isnan(colour[:1, :1]).any() else np.rint(colour).astype(np.uint8)
        return cls(np.ascontiguousarray(array[..., 3:]), drawn)


def is_scan(image: object) -> bool:
    """Whether an array is a scan's rather than a picture's."""
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        return False
    fits: bool = image.dtype == np.float32 and image.shape[2] == CHANNELS
    return fits
