"""What a detector says of one image."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offnominal.captions import Heat, Verdict, captioned, thumbnail
from offnominal.errors import OptionError
from offnominal.images import Picture, content_digest
from offnominal.pictures import Image, overlay, save_picture
from offnominal.regions import Area, Box, Region, as_detections, boxes_as_detections, find_areas
from offnominal.scoring import Scores, Size, size_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from supervision import Detections

__all__ = ["Prediction", "Region"]

_NEAR_PEAK = 0.75  # share of the peak that counts as part of it


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
    kinds : mapping of str to float, or None
        How likely each class of defects is, on [0, 1], where the detector knows some.
    category : str or None
        The category of part that it was judged as, of a detector that recognises several.
    points : float32 array of shape (H, W, 3), or None
        Of a scan: x, y, z in metres at each pixel, NaN where nothing was measured; (1, N, 3) of a
        cloud without a grid.
    scan : float32 array of shape (H, W, 6), or None
        What the detector looked at, where that was a scan rather than a picture.
    owners : int array of shape (N,), or None
        Of a cloud that was thinned out before: which of its patches each point belongs to.
    """

    source: str
    score: float
    anomaly_map: NDArray[np.float32] = field(repr=False)
    scores: Scores = field(repr=False)
    image: Image = field(repr=False)
    threshold: float | None = None
    pixel_threshold: float | None = None
    p_value: float | None = None
    kinds: Mapping[str, float] | None = None
    points: NDArray[np.float32] | None = field(default=None, repr=False)
    scan: NDArray[np.float32] | None = field(default=None, repr=False)
    owners: NDArray[np.intp] | None = field(default=None, repr=False)
    category: str | None = None

    @property
    def kind(self) -> str | None:
        """The likeliest class of the defect; None of an image that passes, or where none is known.

        Of classes that are equally likely the first one by name.
        """
        if not self.kinds or self.is_anomalous is False:
            return None
        return max(sorted(self.kinds), key=lambda name: (self.kinds or {})[name])

    @property
    def boxes(self) -> tuple[Box, ...] | None:
        """Defects found as a whole, the surest first: those above :attr:`region_threshold`, or 0.5.

        None where the detector finds areas only.
        """
        if self.scores.boxes is None:
            return None
        limit = 0.5 if self.region_threshold is None else self.region_threshold
        return tuple(one for one in self.scores.boxes if one.score > limit)

    @property
    def digest(self) -> str:
        """SHA-256 of what the detector looked at; see :func:`~offnominal.images.content_digest`."""
        return content_digest(self.image if self.scan is None else self.scan)

    @property
    def picture_read(self) -> Picture:
        """The image as it was read, for another judgement."""
        return Picture(
            self.image if self.scan is None else self.scan, 8, 255, self.points, self.owners
        )

    @property
    def seen_size(self) -> Size:
        """Height and width of what the detector looked at: (1, N) of a cloud without a grid."""
        return size_of(self.image if self.scan is None else self.scan)

    @property
    def point_scores(self) -> NDArray[np.float32] | None:
        """Scores (H, W) of a scan's points, NaN where nothing was measured; (1, N) of a cloud.

        None of a picture.
        """
        if self.points is None:
            return None
        if self.points.shape[0] == 1:
            patches = self.scores.patches
            return patches if self.owners is None else patches[:, self.owners]
        return np.where(np.isfinite(self.points[..., 2]), self.anomaly_map, np.float32(np.nan))

    @property
    def missing(self) -> int | None:
        """Pixels of a scan where nothing was measured; None of a picture."""
        if self.points is None:
            return None
        return int(np.isnan(self.points[..., 2]).sum())

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
        return [area.region for area in self.areas(threshold, min_area)]

    def areas(self, threshold: float | None = None, min_area: int = 1) -> list[Area]:
        """The same, each with the mask of its pixels."""
        threshold = self.region_threshold if threshold is None else threshold
        return [] if threshold is None else find_areas(self.anomaly_map, threshold, min_area)

    @property
    def colour_range(self) -> tuple[float, float]:
        """Map values that are drawn as none and as full heat.

        Around the pixel threshold, so that pictures of one detector can be compared and a good part
        stays cool; without one, this map's own range.
        """
        if self.pixel_threshold is None:
            return float(self.anomaly_map.min()), float(self.anomaly_map.max())
        return 0.5 * self.pixel_threshold, 1.5 * self.pixel_threshold

    @cached_property
    def relief(self) -> Image | None:
        """The shaded relief of a scan, uint8 (H, W, 3), with stripes where nothing was measured.

        None of a picture.
        """
        if self.points is None:
            return None
        from offnominal.scans.draw import relief
        from offnominal.scans.scan import Scan

        return relief(Scan(self.points))

    def overlay(self) -> Image:
        """The image with the heat laid over it and the regions outlined, uint8 (H, W, 3).

        Of a scan its relief, in place of the image.
        """
        limit = self.region_threshold
        above = None if limit is None else self.anomaly_map > limit
        ground = self.image if self.relief is None else self.relief
        return overlay(ground, self.anomaly_map, *self.colour_range, above)

    def picture(self) -> Image:
        """Image and overlay side by side, under verdict, score, threshold and name; uint8.

        With a bar that tells the colours' values. Of a scan the overlay lies on its relief, so that
        colour and geometry stand side by side. Small images are enlarged;
        :func:`offnominal.captions.layout` says where both lie.
        """
        return captioned(self.image, self._heat(), self._verdict(), self.source, self.relief)

    def thumbnail(self) -> Image:
        """Image and overlay side by side, small and without words; uint8 (h, 2 w, 3)."""
        return thumbnail(self.image, self._heat(), self.relief)

    def _verdict(self) -> Verdict:
        return Verdict(self.is_anomalous, self.score, self.threshold)

    def _heat(self) -> Heat:
        return Heat(self.anomaly_map, *self.colour_range, self.region_threshold)

    def save(self, path: str | Path) -> None:
        """Write the picture of the prediction, with a mark that keeps it from passing for a part.

        Raises
        ------
        OptionError
            If the name ends in neither ``.png`` nor ``.tiff``, or cannot be written.
        """
        if Path(path).suffix.lower() not in (".png", ".tif", ".tiff"):
            raise OptionError(f"{path}: pictures are written as PNG or TIFF; end it in .png")
        save_picture(Path(path), self.picture())

    def plot(self) -> "Figure":
        """A matplotlib figure: the image, the map with its scale, and the regions.

        A notebook shows it where it is a cell's last value; in a window it is shown by
        ``matplotlib.pyplot.show()``.

        Raises
        ------
        OptionError
            Without matplotlib (``pip install matplotlib``).
        """
        from offnominal.show import figure

        return figure(self.image, self._heat(), self.overlay(), self._verdict(), self.source)

    def _repr_html_(self) -> str:
        """Verdict, score and a small picture, for notebooks."""
        from offnominal.show import page

        return page(self.image, self.overlay(), self._verdict(), self.p_value, self.source)

    def to_supervision(self, threshold: float | None = None, min_area: int = 1) -> "Detections":
        """Regions as ``supervision.Detections``, for its annotators, trackers and sinks.

        ``xyxy`` are the boxes, ``confidence`` the peaks (in the map's unit, not on [0, 1]),
        ``mask`` the pixels (n, H, W); the class is 0, named ``anomaly``. Of a detector that finds
        boxes those of :attr:`boxes` with their classes, and no mask. Parameters as :meth:`regions`
        has them; ``threshold`` goes for the boxes as well.

        Raises
        ------
        OptionError
            Without supervision.
        """
        if self.boxes is not None and self.scores.boxes is not None:
            known = self.scores.boxes
            found = self.boxes if threshold is None else [b for b in known if b.score > threshold]
            return boxes_as_detections(found, sorted(self.kinds or {}))
        size = (self.image.shape[0], self.image.shape[1])
        return as_detections(self.areas(threshold, min_area), size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them, without the arrays."""
        known: dict[str, Any] = {} if self.category is None else {"category": self.category}
        if self.kinds is not None:
            known |= {"kind": self.kind, "kinds": dict(self.kinds)}
        if self.boxes is not None:
            known["boxes"] = [
                {"box": list(one.box), "kind": one.kind, "score": one.score} for one in self.boxes
            ]
        if self.missing is not None:
            known["missing_points"] = self.missing
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
            **known,
        }
