"""Offnominal: shown a few good parts, it finds what is wrong in the next one.

>>> from offnominal import AnomalyDINO
>>> detector = AnomalyDINO(backbone="builtin").fit(good_images)
>>> for prediction in detector.stream(new_images):
...     print(prediction.score, prediction.is_anomalous, prediction.regions())

The public names are imported on first use, so that ``import offnominal`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from offnominal._version import __version__

if TYPE_CHECKING:
    from offnominal.backbones import load_backbone
    from offnominal.backbones.base import Backbone
    from offnominal.calibration import Threshold
    from offnominal.datasets.dataset import Dataset, open_dataset
    from offnominal.datasets.sample import Sample
    from offnominal.detectors.anomalydino import AnomalyDINO
    from offnominal.detectors.anomalydino_batched import BatchedAnomalyDINO
    from offnominal.detectors.base import Detector
    from offnominal.detectors.prediction import Prediction, Region
    from offnominal.images import read_image
    from offnominal.memory import MemoryBank
    from offnominal.paths import find_images

_HOMES = {
    "AnomalyDINO": "offnominal.detectors.anomalydino",
    "Backbone": "offnominal.backbones.base",
    "BatchedAnomalyDINO": "offnominal.detectors.anomalydino_batched",
    "Dataset": "offnominal.datasets.dataset",
    "Detector": "offnominal.detectors.base",
    "MemoryBank": "offnominal.memory",
    "Prediction": "offnominal.detectors.prediction",
    "Region": "offnominal.detectors.prediction",
    "Sample": "offnominal.datasets.sample",
    "Threshold": "offnominal.calibration",
    "find_images": "offnominal.paths",
    "load_backbone": "offnominal.backbones",
    "open_dataset": "offnominal.datasets.dataset",
    "read_image": "offnominal.images",
}

__all__ = [
    "AnomalyDINO",
    "Backbone",
    "BatchedAnomalyDINO",
    "Dataset",
    "Detector",
    "MemoryBank",
    "Prediction",
    "Region",
    "Sample",
    "Threshold",
    "__version__",
    "find_images",
    "load_backbone",
    "open_dataset",
    "read_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'offnominal' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
