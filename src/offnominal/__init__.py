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
    from offnominal.detectors.distribution.global_gaussian import GlobalGaussian
    from offnominal.detectors.distribution.padim import PaDiM
    from offnominal.detectors.distribution.subspacead import SubspaceAD
    from offnominal.detectors.ensemble import Ensemble
    from offnominal.detectors.flow.cflow import CFlow
    from offnominal.detectors.flow.differnet import DifferNet
    from offnominal.detectors.flow.fastflow import FastFlow
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
    from offnominal.detectors.one_class.cutpaste import CutPaste
    from offnominal.detectors.one_class.deep_svdd import DeepSVDD
    from offnominal.detectors.one_class.igd import IGD
    from offnominal.detectors.one_class.loe import LOE
    from offnominal.detectors.one_class.patch_svdd import PatchSVDD
    from offnominal.detectors.one_class.simplenet import SimpleNet
    from offnominal.detectors.reconstruction.autoencoder import Autoencoder
    from offnominal.detectors.reconstruction.dinomaly import Dinomaly
    from offnominal.detectors.reconstruction.draem import DRAEM
    from offnominal.detectors.reconstruction.maeday import MAEDAY
    from offnominal.detectors.reconstruction.riad import RIAD
    from offnominal.detectors.reconstruction.trustmae import TrustMAE
    from offnominal.detectors.refine import refine
    from offnominal.detectors.registry import load
    from offnominal.detectors.teacher_student.efficientad import EfficientAD
    from offnominal.detectors.teacher_student.reverse_distillation import ReverseDistillation
    from offnominal.detectors.teacher_student.stfpm import STFPM
    from offnominal.detectors.trained import TrainedDetector
    from offnominal.images import read_image
    from offnominal.memory import MemoryBank
    from offnominal.paths import find_images
    from offnominal.prediction import Prediction, Region

_HOMES = {
    "AnomalyCLIP": "offnominal.detectors.language.anomalyclip",
    "AnomalyDINO": "offnominal.detectors.memory_bank.anomalydino",
    "AprilGAN": "offnominal.detectors.language.april_gan",
    "Autoencoder": "offnominal.detectors.reconstruction.autoencoder",
    "Backbone": "offnominal.backbones.base",
    "BatchedAnomalyDINO": "offnominal.detectors.batch.anomalydino_batched",
    "BatchedSubspaceAD": "offnominal.detectors.batch.subspacead_batched",
    "CFlow": "offnominal.detectors.flow.cflow",
    "ChatModel": "offnominal.detectors.chat",
    "CLIPAC": "offnominal.detectors.language.clip",
    "CLIPDetector": "offnominal.detectors.language.clip",
    "CoOp": "offnominal.detectors.language.coop",
    "CutPaste": "offnominal.detectors.one_class.cutpaste",
    "Dataset": "offnominal.datasets.dataset",
    "DeepSVDD": "offnominal.detectors.one_class.deep_svdd",
    "Detector": "offnominal.detectors.base",
    "DifferNet": "offnominal.detectors.flow.differnet",
    "Dinomaly": "offnominal.detectors.reconstruction.dinomaly",
    "DN2": "offnominal.detectors.memory_bank.dn2",
    "DRAEM": "offnominal.detectors.reconstruction.draem",
    "EfficientAD": "offnominal.detectors.teacher_student.efficientad",
    "Ensemble": "offnominal.detectors.ensemble",
    "FastFlow": "offnominal.detectors.flow.fastflow",
    "find_images": "offnominal.paths",
    "GlobalGaussian": "offnominal.detectors.distribution.global_gaussian",
    "IGD": "offnominal.detectors.one_class.igd",
    "load": "offnominal.detectors.registry",
    "load_backbone": "offnominal.backbones",
    "LOE": "offnominal.detectors.one_class.loe",
    "MAEDAY": "offnominal.detectors.reconstruction.maeday",
    "MemoryBank": "offnominal.memory",
    "MultiLayerNN": "offnominal.detectors.memory_bank.multilayer",
    "MuSc": "offnominal.detectors.batch.musc",
    "open_dataset": "offnominal.datasets.dataset",
    "PaDiM": "offnominal.detectors.distribution.padim",
    "PatchCore": "offnominal.detectors.memory_bank.patchcore",
    "PatchSVDD": "offnominal.detectors.one_class.patch_svdd",
    "Prediction": "offnominal.prediction",
    "read_image": "offnominal.images",
    "refine": "offnominal.detectors.refine",
    "Region": "offnominal.prediction",
    "ReverseDistillation": "offnominal.detectors.teacher_student.reverse_distillation",
    "RIAD": "offnominal.detectors.reconstruction.riad",
    "Sample": "offnominal.datasets.sample",
    "SimpleNet": "offnominal.detectors.one_class.simplenet",
    "SoftPatch": "offnominal.detectors.memory_bank.softpatch",
    "SPADE": "offnominal.detectors.memory_bank.spade",
    "STFPM": "offnominal.detectors.teacher_student.stfpm",
    "SubspaceAD": "offnominal.detectors.distribution.subspacead",
    "Threshold": "offnominal.calibration",
    "TrainedDetector": "offnominal.detectors.trained",
    "TrustMAE": "offnominal.detectors.reconstruction.trustmae",
    "WinCLIP": "offnominal.detectors.language.winclip",
}

__all__ = [
    "CLIPAC",
    "DN2",
    "DRAEM",
    "IGD",
    "LOE",
    "MAEDAY",
    "RIAD",
    "SPADE",
    "STFPM",
    "AnomalyCLIP",
    "AnomalyDINO",
    "AprilGAN",
    "Autoencoder",
    "Backbone",
    "BatchedAnomalyDINO",
    "BatchedSubspaceAD",
    "CFlow",
    "CLIPDetector",
    "ChatModel",
    "CoOp",
    "CutPaste",
    "Dataset",
    "DeepSVDD",
    "Detector",
    "DifferNet",
    "Dinomaly",
    "EfficientAD",
    "Ensemble",
    "FastFlow",
    "GlobalGaussian",
    "MemoryBank",
    "MuSc",
    "MultiLayerNN",
    "PaDiM",
    "PatchCore",
    "PatchSVDD",
    "Prediction",
    "Region",
    "ReverseDistillation",
    "Sample",
    "SimpleNet",
    "SoftPatch",
    "SubspaceAD",
    "Threshold",
    "TrainedDetector",
    "TrustMAE",
    "WinCLIP",
    "__version__",
    "find_images",
    "load",
    "load_backbone",
    "open_dataset",
    "read_image",
    "refine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'offnominal' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
