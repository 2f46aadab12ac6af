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
    from offnominal.detectors.chat import ChatModel
    from offnominal.detectors.dn2 import DN2
    from offnominal.detectors.ensemble import Ensemble
    from offnominal.detectors.language.anomalyclip import AnomalyCLIP
    from offnominal.detectors.language.april_gan import AprilGAN
    from offnominal.detectors.language.clip import CLIPAC, CLIPDetector
    from offnominal.detectors.language.coop import CoOp
    from offnominal.detectors.language.winclip import WinCLIP
    from offnominal.detectors.maeday import MAEDAY
    from offnominal.detectors.multilayer import MultiLayerNN
    from offnominal.detectors.musc import MuSc
    from offnominal.detectors.padim import PaDiM
    from offnominal.detectors.patchcore import PatchCore
    from offnominal.detectors.prediction import Prediction, Region
    from offnominal.detectors.softpatch import SoftPatch
    from offnominal.detectors.spade import SPADE
    from offnominal.detectors.subspacead import SubspaceAD
    from offnominal.detectors.subspacead_batched import BatchedSubspaceAD
    from offnominal.images import read_image
    from offnominal.memory import MemoryBank
    from offnominal.paths import find_images

_HOMES = {
    "AnomalyCLIP": "offnominal.detectors.language.anomalyclip",
    "AnomalyDINO": "offnominal.detectors.anomalydino",
    "AprilGAN": "offnominal.detectors.language.april_gan",
    "Backbone": "offnominal.backbones.base",
    "BatchedAnomalyDINO": "offnominal.detectors.anomalydino_batched",
    "BatchedSubspaceAD": "offnominal.detectors.subspacead_batched",
    "ChatModel": "offnominal.detectors.chat",
    "CLIPAC": "offnominal.detectors.language.clip",
    "CLIPDetector": "offnominal.detectors.language.clip",
    "CoOp": "offnominal.detectors.language.coop",
    "Dataset": "offnominal.datasets.dataset",
    "Detector": "offnominal.detectors.base",
    "DN2": "offnominal.detectors.dn2",
    "Ensemble": "offnominal.detectors.ensemble",
    "find_images": "offnominal.paths",
    "load_backbone": "offnominal.backbones",
    "MAEDAY": "offnominal.detectors.maeday",
    "MemoryBank": "offnominal.memory",
    "MultiLayerNN": "offnominal.detectors.multilayer",
    "MuSc": "offnominal.detectors.musc",
    "open_dataset": "offnominal.datasets.dataset",
    "PaDiM": "offnominal.detectors.padim",
    "PatchCore": "offnominal.detectors.patchcore",
    "Prediction": "offnominal.detectors.prediction",
    "read_image": "offnominal.images",
    "Region": "offnominal.detectors.prediction",
    "Sample": "offnominal.datasets.sample",
    "SoftPatch": "offnominal.detectors.softpatch",
    "SPADE": "offnominal.detectors.spade",
    "SubspaceAD": "offnominal.detectors.subspacead",
    "Threshold": "offnominal.calibration",
    "WinCLIP": "offnominal.detectors.language.winclip",
}

__all__ = [
    "CLIPAC",
    "DN2",
    "MAEDAY",
    "SPADE",
    "AnomalyCLIP",
    "AnomalyDINO",
    "AprilGAN",
    "Backbone",
    "BatchedAnomalyDINO",
    "BatchedSubspaceAD",
    "CLIPDetector",
    "ChatModel",
    "CoOp",
    "Dataset",
    "Detector",
    "Ensemble",
    "MemoryBank",
    "MuSc",
    "MultiLayerNN",
    "PaDiM",
    "PatchCore",
    "Prediction",
    "Region",
    "Sample",
    "SoftPatch",
    "SubspaceAD",
    "Threshold",
    "WinCLIP",
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
