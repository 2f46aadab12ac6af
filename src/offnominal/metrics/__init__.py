"""Image-level and pixel-level metrics, on raw scores."""

from offnominal.metrics.image import (
    FALSE_REJECTS,
    image_curves,
    image_intervals,
    image_metrics,
)
from offnominal.metrics.kinds import confusion, kind_figures
from offnominal.metrics.pixel import PixelMetrics, pixel_metrics
from offnominal.metrics.regions import SIZE_CLASSES

__all__ = [
    "FALSE_REJECTS",
    "SIZE_CLASSES",
    "PixelMetrics",
    "confusion",
    "image_curves",
    "image_intervals",
    "image_metrics",
    "kind_figures",
    "pixel_metrics",
]
