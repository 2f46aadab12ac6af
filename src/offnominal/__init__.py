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
    from offnominal.detectors.base import Detector
    from offnominal.detectors.batch.anomalydino_batched import BatchedAnomalyDINO
    from offnominal.detectors.batch.musc import MuSc
    from offnominal.detectors.batch.subspacead_batched import BatchedSubspaceAD
    from offnominal.detectors.chat import ChatModel
    from offnominal.detectors.distribution.padim import PaDiM
    from offnominal.detectors.distribution.subspacead import SubspaceAD
    from offnominal.detectors.ensemble import Ensemble
    from offnominal.detectors.language.anomalyclip import AnomalyCLIP
    from offnominal.detectors.language.april_gan import AprilGAN
    from offnominal.detectors.language.clip import CLIPAC, CLIPDetector
    from offnominal.detectors.language.coop import CoOp
    from offnominal.detectors.language.winclip import WinCLIP
    from offnominal.detectors.memory_bank.anomalydino import AnomalyDINO
    from offnominal.detectors.memory_bank.dn2 import DN2
    from offnominal.detectors.memory_bank.multilayer import MultiLayerNN
    from offnominal.detectors.memory_bank.patchcore import PatchCore
    from offnominal.detectors.memory_bank.softpatch import SoftPatch
    from offnominal.detectors.memory_bank.spade import SPADE
    from offnominal.detectors.reconstruction.maeday import MAEDAY
    from offnominal.detectors.registry import load
    from offnominal.images import read_image
    from offnominal.memory import MemoryBank
    from offnominal.paths import find_images
    from offnominal.prediction import Prediction, Region

_HOMES = {
    "AnomalyCLIP": "offnominal.detectors.language.anomalyclip",
    "AnomalyDINO": "offnominal.detectors.memory_bank.anomalydino",
    "AprilGAN": "offnominal.detectors.language.april_gan",
    "Backbone": "offnominal.backbones.base",
    "BatchedAnomalyDINO": "offnominal.detectors.batch.anomalydino_batched",
    "BatchedSubspaceAD": "offnominal.detectors.batch.subspacead_batched",
    "ChatModel": "offnominal.detectors.chat",
    "CLIPAC": "offnominal.detectors.language.clip",
    "CLIPDetector": "offnominal.detectors.language.clip",
    "CoOp": "offnominal.detectors.language.coop",
    "Dataset": "offnominal.datasets.dataset",
    "Detector": "offnominal.detectors.base",
    "DN2": "offnominal.detectors.memory_bank.dn2",
    "Ensemble": "offnominal.detectors.ensemble",
    "find_images": "offnominal.paths",
    "load": "offnominal.detectors.registry",
    "load_backbone": "offnominal.backbones",
    "MAEDAY": "offnominal.detectors.reconstruction.maeday",
    "MemoryBank": "offnominal.memory",
    "MultiLayerNN": "offnominal.detectors.memory_bank.multilayer",
    "MuSc": "offnominal.detectors.batch.musc",
    "open_dataset": "offnominal.datasets.dataset",
    "PaDiM": "offnominal.detectors.distribution.padim",
    "PatchCore": "offnominal.detectors.memory_bank.patchcore",
    "Prediction": "offnominal.prediction",
    "read_image": "offnominal.images",
    "Region": "offnominal.prediction",
    "Sample": "offnominal.datasets.sample",
    "SoftPatch": "offnominal.detectors.memory_bank.softpatch",
    "SPADE": "offnominal.detectors.memory_bank.spade",
    "SubspaceAD": "offnominal.detectors.distribution.subspacead",
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
    "load",
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
