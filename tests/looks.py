"""Prepared pixels of an image, as a detector looks at it."""

import numpy as np
import torch
from torch import Tensor

from offnominal.detectors.features import FeatureDetector


def pixels_of(detector: FeatureDetector, image: np.ndarray) -> Tensor:
    """The first view (3, h, w) of an image, uint8 (H, W, 3)."""
    return torch.from_numpy(detector.views(image)[0].pixels)
