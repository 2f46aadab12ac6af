"""What a detector says of one image."""

import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.pictures import Image, overlay
from offnominal.scoring import Scores

__all__ = ["Prediction", "Region"]

_NEAR_PEAK = 0.75  # share of the peak that counts as part of it


@dataclass(frozen=True)
class Region:
    """A connected area of an anomaly map above the pixel threshold, in image coordinates.

    Attributes
    ----------
    box : (left, top, width, height), in pixels
    area : int
        In pixels.
    peak : float
        The map's largest value inside.
    peak_at : (x, y), in pixels
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    peak_at: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Score, map and decision for one image.

    Attributes
    ----------
    source : str
        The file, or a description of the array.
    score : float
        How anomalous the image is; unbounded above, comparable within one detector only.
    anomaly_map : float32 array of shape (H, W)
        At the image's own size, in the unit of the patch scores.
    scores : Scores
        What score and map were made of: patch scores, and what a method has beside them.
    image : uint8 array of shape (H, W, 3)
        The image as it was read, RGB.
    threshold : float or None
        A score above it means reject. None where too few good images are known to set one.
    pixel_threshold : float or None
        The same for the map.
    p_value : float or None
        Conformal p-value of the score among those of good images.
    """

    source: str
    score: float
    anomaly_map: NDArray[np.float32] = field(repr=False)
    scores: Scores = field(repr=False)
    image: Image = field(repr=False)
    threshold: float | None = None
    pixel_threshold: float | None = None
    p_value: float | None = None

    @property
    def patch_scores(self) -> NDArray[np.float32]:
        """Patch scores (gh, gw), float32."""
        return self.scores.patches

    @property
    def is_anomalous(self) -> bool | None:
        """Whether to reject; None without a threshold. A score that is not finite is no pass."""
        if self.threshold is None:
            return None
        return not (self.score <= self.threshold and math.isfinite(self.score))

    @property
    def region_threshold(self) -> float | None:
        """Where regions begin: the pixel threshold, or lower for a rejected image that stays under.

        The score and the map have thresholds of their own, so an image can be rejected for many
        moderate patches with no pixel above the pixel threshold. Its regions are then what comes
        within a quarter of its own peak: a rejection always says where.
        """
        if self.pixel_threshold is None or not self.is_anomalous:
            return self.pixel_threshold
        return min(self.pixel_threshold, _NEAR_PEAK * float(self.anomaly_map.max()))

    def regions(self, threshold: float | None = None, min_area: int = 1) -> list[Region]:
        """Connected areas (8-connected) above a threshold, the highest peak first.

        Parameters
        ----------
        threshold : float or None
            In the map's unit; None: :attr:`region_threshold`, and no regions without one.
        min_area : int
            Smaller areas are left out, in pixels.
        """
        threshold = self.region_threshold if threshold is None else threshold
        if threshold is None:
            return []
        above = (self.anomaly_map > threshold).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
        found = []
        for index in range(1, count):
            left, top, width, height, area = (int(v) for v in stats[index])
            if area < min_area:
                continue
            window = np.s_[top : top + height, left : left + width]
            inside = np.where(labels[window] == index, self.anomaly_map[window], -np.inf)
            y, x = divmod(int(inside.argmax()), width)
            peak = float(inside[y, x])
            found.append(Region((left, top, width, height), area, peak, (left + x, top + y)))
        return sorted(found, key=lambda region: -region.peak)

    @property
    def colour_range(self) -> tuple[float, float]:
        """Map values that are drawn as none and as full heat.

        Around the pixel threshold, so that pictures of one detector can be compared and a good part
        stays cool; without one, this map's own range.
        """
        if self.pixel_threshold is None:
            return float(self.anomaly_map.min()), float(self.anomaly_map.max())
        return 0.5 * self.pixel_threshold, 1.5 * self.pixel_threshold

    def overlay(self) -> Image:
        """The image with the heat laid over it and the regions outlined, uint8 (H, W, 3)."""
        limit = self.region_threshold
        above = None if limit is None else self.anomaly_map > limit
        return overlay(self.image, self.anomaly_map, *self.colour_range, above)

    def as_row(self) -> dict[str, Any]:
        """Plain values for a table or JSON, without the arrays."""
        return {
            "image": self.source,
            "score": self.score,
            "threshold": self.threshold,
            "is_anomalous": self.is_anomalous,
            "p_value": self.p_value,
            "height": self.image.shape[0],
            "width": self.image.shape[1],
            "regions": [
                {
                    "box": list(region.box),
                    "area": region.area,
                    "peak": region.peak,
                    "peak_at": list(region.peak_at),
                }
                for region in self.regions()
            ],
        }
