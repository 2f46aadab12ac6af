"""Offnominal: shown a few good parts, it finds what is wrong in the next one.

>>> from offnominal import AnomalyDINO
>>> detector = AnomalyDINO(backbone="builtin").fit("good")
>>> for prediction in detector.stream("new"):
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
    from offnominal.detectors.late_fusion import LateFusion
    from offnominal.detectors.memory_bank.anomalydino import AnomalyDINO
    from offnominal.detectors.memory_bank.btf import BTF
    from offnominal.detectors.memory_bank.dn2 import DN2
    from offnominal.detectors.memory_bank.multilayer import MultiLayerNN
    from offnominal.detectors.memory_bank.patchcore import PatchCore
    from offnominal.detectors.memory_bank.rad import RAD
    from offnominal.detectors.memory_bank.softpatch import SoftPatch
    from offnominal.detectors.memory_bank.spade import SPADE
    from offnominal.detectors.meta.regad import RegAD
    from offnominal.detectors.one_class.cutpaste import CutPaste
    from offnominal.detectors.one_class.deep_svdd import DeepSVDD
    from offnominal.detectors.one_class.igd import IGD
    from offnominal.detectors.one_class.loe import LOE
    from offnominal.detectors.one_class.patch_svdd import PatchSVDD
    from offnominal.detectors.one_class.simplenet import SimpleNet
    from offnominal.detectors.reconstruction.autoencoder import Autoencoder
    from offnominal.detectors.reconstruction.crossmodal import CFM
    from offnominal.detectors.reconstruction.dinomaly import Dinomaly
    from offnominal.detectors.reconstruction.draem import DRAEM
    from offnominal.detectors.reconstruction.maeday import MAEDAY
    from offnominal.detectors.reconstruction.riad import RIAD
    from offnominal.detectors.reconstruction.trustmae import TrustMAE
    from offnominal.detectors.refine import refine
    from offnominal.detectors.registry import load
    from offnominal.detectors.supervised.boxes import Boxes
    from offnominal.detectors.supervised.cavga import CAVGA
    from offnominal.detectors.supervised.classes import Classes
    from offnominal.detectors.supervised.devnet import DevNet
    from offnominal.detectors.supervised.dra import DRA
    from offnominal.detectors.supervised.dynamics import TrainingDynamics
    from offnominal.detectors.supervised.mixed import MixedSupervision
    from offnominal.detectors.supervised.saliency import Saliency
    from offnominal.detectors.supervised.segmentation import Segmentation
    from offnominal.detectors.supervised.supersimplenet import SuperSimpleNet
    from offnominal.detectors.teacher_student.efficientad import EfficientAD
    from offnominal.detectors.teacher_student.points import PointStudent
    from offnominal.detectors.teacher_student.reverse_distillation import ReverseDistillation
    from offnominal.detectors.teacher_student.stfpm import STFPM
    from offnominal.detectors.trained import TrainedDetector
    from offnominal.exchange import coco, predictions_frame
    from offnominal.images import read_image
    from offnominal.labels.gather import gather
    from offnominal.labels.labelled import Labelled, Mark
    from offnominal.memory import MemoryBank
    from offnominal.paths import find_images
    from offnominal.prediction import Prediction, Region
    from offnominal.regions import Box
    from offnominal.scans.files import read_scan
    from offnominal.scans.scan import Scan
    from offnominal.suggestions import suggest

_HOMES = {
    "AnomalyCLIP": "offnominal.detectors.language.anomalyclip",
    "AnomalyDINO": "offnominal.detectors.memory_bank.anomalydino",
    "AprilGAN": "offnominal.detectors.language.april_gan",
    "Autoencoder": "offnominal.detectors.reconstruction.autoencoder",
    "Backbone": "offnominal.backbones.base",
    "BatchedAnomalyDINO": "offnominal.detectors.batch.anomalydino_batched",
    "BatchedSubspaceAD": "offnominal.detectors.batch.subspacead_batched",
    "Box": "offnominal.regions",
    "Boxes": "offnominal.detectors.supervised.boxes",
    "BTF": "offnominal.detectors.memory_bank.btf",
    "CAVGA": "offnominal.detectors.supervised.cavga",
    "CFlow": "offnominal.detectors.flow.cflow",
    "CFM": "offnominal.detectors.reconstruction.crossmodal",
    "ChatModel": "offnominal.detectors.chat",
    "Classes": "offnominal.detectors.supervised.classes",
    "CLIPAC": "offnominal.detectors.language.clip",
    "CLIPDetector": "offnominal.detectors.language.clip",
    "coco": "offnominal.exchange",
    "CoOp": "offnominal.detectors.language.coop",
    "CutPaste": "offnominal.detectors.one_class.cutpaste",
    "Dataset": "offnominal.datasets.dataset",
    "DeepSVDD": "offnominal.detectors.one_class.deep_svdd",
    "Detector": "offnominal.detectors.base",
    "DevNet": "offnominal.detectors.supervised.devnet",
    "DifferNet": "offnominal.detectors.flow.differnet",
    "Dinomaly": "offnominal.detectors.reconstruction.dinomaly",
    "DN2": "offnominal.detectors.memory_bank.dn2",
    "DRA": "offnominal.detectors.supervised.dra",
    "DRAEM": "offnominal.detectors.reconstruction.draem",
    "EfficientAD": "offnominal.detectors.teacher_student.efficientad",
    "Ensemble": "offnominal.detectors.ensemble",
    "FastFlow": "offnominal.detectors.flow.fastflow",
    "find_images": "offnominal.paths",
    "gather": "offnominal.labels.gather",
    "GlobalGaussian": "offnominal.detectors.distribution.global_gaussian",
    "IGD": "offnominal.detectors.one_class.igd",
    "Labelled": "offnominal.labels.labelled",
    "load": "offnominal.detectors.registry",
    "load_backbone": "offnominal.backbones",
    "LateFusion": "offnominal.detectors.late_fusion",
    "LOE": "offnominal.detectors.one_class.loe",
    "MAEDAY": "offnominal.detectors.reconstruction.maeday",
    "Mark": "offnominal.labels.labelled",
    "MemoryBank": "offnominal.memory",
    "MixedSupervision": "offnominal.detectors.supervised.mixed",
    "MultiLayerNN": "offnominal.detectors.memory_bank.multilayer",
    "MuSc": "offnominal.detectors.batch.musc",
    "open_dataset": "offnominal.datasets.dataset",
    "PaDiM": "offnominal.detectors.distribution.padim",
    "PatchCore": "offnominal.detectors.memory_bank.patchcore",
    "RAD": "offnominal.detectors.memory_bank.rad",
    "PatchSVDD": "offnominal.detectors.one_class.patch_svdd",
    "PointStudent": "offnominal.detectors.teacher_student.points",
    "Prediction": "offnominal.prediction",
    "predictions_frame": "offnominal.exchange",
    "read_image": "offnominal.images",
    "read_scan": "offnominal.scans.files",
    "refine": "offnominal.detectors.refine",
    "RegAD": "offnominal.detectors.meta.regad",
    "Region": "offnominal.prediction",
    "ReverseDistillation": "offnominal.detectors.teacher_student.reverse_distillation",
    "RIAD": "offnominal.detectors.reconstruction.riad",
    "Saliency": "offnominal.detectors.supervised.saliency",
    "Sample": "offnominal.datasets.sample",
    "Scan": "offnominal.scans.scan",
    "Segmentation": "offnominal.detectors.supervised.segmentation",
    "SimpleNet": "offnominal.detectors.one_class.simplenet",
    "SoftPatch": "offnominal.detectors.memory_bank.softpatch",
    "SPADE": "offnominal.detectors.memory_bank.spade",
    "STFPM": "offnominal.detectors.teacher_student.stfpm",
    "SubspaceAD": "offnominal.detectors.distribution.subspacead",
    "suggest": "offnominal.suggestions",
    "SuperSimpleNet": "offnominal.detectors.supervised.supersimplenet",
    "Threshold": "offnominal.calibration",
    "TrainedDetector": "offnominal.detectors.trained",
    "TrainingDynamics": "offnominal.detectors.supervised.dynamics",
    "TrustMAE": "offnominal.detectors.reconstruction.trustmae",
    "WinCLIP": "offnominal.detectors.language.winclip",
}

__all__ = [
    "BTF",
    "CAVGA",
    "CFM",
    "CLIPAC",
    "DN2",
    "DRA",
    "DRAEM",
    "IGD",
    "LOE",
    "MAEDAY",
    "RAD",
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
    "Box",
    "Boxes",
    "CFlow",
    "CLIPDetector",
    "ChatModel",
    "Classes",
    "CoOp",
    "CutPaste",
    "Dataset",
    "DeepSVDD",
    "Detector",
    "DevNet",
    "DifferNet",
    "Dinomaly",
    "EfficientAD",
    "Ensemble",
    "FastFlow",
    "GlobalGaussian",
    "Labelled",
    "LateFusion",
    "Mark",
    "MemoryBank",
    "MixedSupervision",
    "MuSc",
    "MultiLayerNN",
    "PaDiM",
    "PatchCore",
    "PatchSVDD",
    "PointStudent",
    "Prediction",
    "RegAD",
    "Region",
    "ReverseDistillation",
    "Saliency",
    "Sample",
    "Scan",
    "Segmentation",
    "SimpleNet",
    "SoftPatch",
    "SubspaceAD",
    "SuperSimpleNet",
    "Threshold",
    "TrainedDetector",
    "TrainingDynamics",
    "TrustMAE",
    "WinCLIP",
    "__version__",
    "coco",
    "find_images",
    "gather",
    "load",
    "load_backbone",
    "open_dataset",
    "predictions_frame",
    "read_image",
    "read_scan",
    "refine",
    "suggest",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'offnominal' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
