"""Image-level and pixel-level metrics, exact, on raw scores."""

from offnominal.metrics.image import image_metrics
from offnominal.metrics.pixel import pixel_metrics, read_mask

__all__ = ["image_metrics", "pixel_metrics", "read_mask"]
