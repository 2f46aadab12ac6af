"""What is kept of a cell while its test images go by, and the files that it becomes."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offnominal._version import __version__
from offnominal.benchmark.cell import Cell
from offnominal.benchmark.machine import cpu_name, is_busy
from offnominal.benchmark.store import FORMAT, write_json, write_patch_scores, write_scores
from offnominal.calibration import Threshold
from offnominal.datasets import Dataset, Sample
from offnominal.detectors.base import Detector
from offnominal.detectors.prediction import Prediction
from offnominal.detectors.untrained import untrained
from offnominal.metrics import PixelMetrics, image_curves, image_intervals, image_metrics

__all__ = ["Record", "relative"]

_PACKAGES = ("torch", "timm", "numpy", "scipy", "opencv-python-headless", "pillow")
_COLUMNS = (
    "image",  # relative to the data set's root, as is the mask
    "mask",
    "mask_threshold",
    "label",
    "defect",
    "category",
    "score",
    "threshold",
    "is_anomalous",
    "p_value",
    "height",
    "width",
    "map_max",
    "seconds",
)


@dataclass
class Record:
    """One cell in the making.

    Attributes
    ----------
    cell : Cell
    detector : Detector
        Fitted, with the cell's scoring.
    dataset : Dataset
    references : list of str
        Paths of the references, relative to the data set's root.
    pixels : PixelMetrics or None
        Shared by cells whose maps are the same; None where no test image has a mask.
    maps : Path or None
        Where every map is written; None: nowhere.
    unscored : sequence of Sample
        Test images that could be read and got no score.
    """

    cell: Cell
    detector: Detector
    dataset: Dataset
    references: list[str]
    pixels: PixelMetrics | None = None
    maps: Path | None = None
    timings: dict[str, float] = field(default_factory=dict)
    features: dict[str, int] = field(default_factory=dict)
    shared_with: int = 0
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unscored: Sequence[Sample] = ()

    def __post_init__(self) -> None:
        self._rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self._grids: list[np.ndarray] = []

    def add(self, sample: Sample, prediction: Prediction, seconds: float) -> None:
        """Take in one image."""
        if self.maps is not None:
            path = self.maps / f"{len(self._grids):05d}.npy"
            np.save(path, prediction.anomaly_map.astype(np.float16), allow_pickle=False)
        root = self.dataset.root
        row = (
            relative(sample.image, root),
            None if sample.mask is None else relative(sample.mask, root),
            sample.mask_threshold,
            sample.label,
            sample.defect,
            sample.category,
            prediction.score,
            prediction.threshold,
            prediction.is_anomalous,
            prediction.p_value,
            prediction.image.shape[0],
            prediction.image.shape[1],
            float(prediction.anomaly_map.max()),
            seconds,
        )
        for name, value in zip(_COLUMNS, row, strict=True):
            self._rows[name].append(value)
        self._grids.append(prediction.patch_scores)

    @property
    def labels(self) -> list[int]:
        """Labels of the images taken in."""
        return self._rows["label"]

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals of the image-level figures."""
        return image_intervals(self._rows["label"], self._rows["score"])

    def figures(self) -> dict[str, float]:
        """Image-level and pixel-level figures, and what the detector's own threshold did."""
        figures = dict(image_metrics(self._rows["label"], self._rows["score"]))
        figures |= self._decisions()
        if self.pixels is not None:
            figures |= self.pixels.compute()
        return figures

    def failures_as_wrong(self) -> dict[str, float]:
        """The figures of images, as if each one without a score had been judged wrongly.

        Good ones among them score above all others and count as rejected, defective ones score
        below all others and count as missed. Empty if every image got a score.
        """
        if not self.unscored:
            return {}
        labels, scores = list(self._rows["label"]), list(self._rows["score"])
        low, high = min(scores, default=0.0) - 1, max(scores, default=0.0) + 1
        for sample in self.unscored:
            labels.append(sample.label)
            scores.append(low if sample.label else high)
        figures = dict(image_metrics(labels, scores))
        del figures["image_f1_max_threshold"]  # it may lie between scores that were made up
        return figures | self._decisions([sample.label for sample in self.unscored])

    def _decisions(self, wrong: Sequence[int] = ()) -> dict[str, float]:
        """What the detector's own threshold did; `wrong` are labels of further wrong decisions."""
        decisions = list(zip(self._rows["is_anomalous"], self._rows["label"], strict=True))
        decided = any(decision is not None for decision, _ in decisions)
        figures = {}
        for name, label, error in (("false_rejects", 0, True), ("misses", 1, False)):
            kind = [decision is error for decision, each in decisions if each == label]
            kind += [True for each in wrong if each == label]
            figures[name] = sum(kind) / len(kind) if kind and decided else float("nan")
        return figures

    def _unscored(self, label: int) -> int:
        return sum(sample.label == label for sample in self.unscored)

    def write(self, folder: Path) -> dict[str, float]:
        """Write the cell's files into a folder; its figures."""
        start = time.perf_counter()
        labels, scores = self._rows["label"], self._rows["score"]
        figures = self.figures()
        metrics: dict[str, Any] = {
            "figures": figures,
            "intervals": self.intervals(),
            "curves": {"image": image_curves(labels, scores)},
            "images": len(labels),
            "unscored": {"good": self._unscored(0), "defective": self._unscored(1)},
            "failures_as_wrong": self.failures_as_wrong(),
            "untrained": untrained(self.detector),
        }
        if self.pixels is not None:
            metrics["curves"]["pixel"] = self.pixels.curves()
            metrics["regions"] = self.pixels.regions()
            metrics["pixel_error"] = self.pixels.error
        self.timings["metrics"] = self.timings.get("metrics", 0.0) + time.perf_counter() - start
        write_scores(folder, self._rows)
        write_patch_scores(folder, self._grids)
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "settings.json", self._settings())
        write_json(folder / "run.json", self._run())
        return figures

    def _settings(self) -> dict[str, Any]:
        test = self.dataset.test(self.cell.category)
        data = {
            "root": str(self.dataset.root.absolute()),
            "layout": self.dataset.layout,
            "train": len(self.dataset.train(self.cell.category)),
            "test_good": sum(sample.label == 0 for sample in test),
            "test_defective": sum(sample.label == 1 for sample in test),
        }
        own = {"data": data, "references": self.references}
        return {"format": FORMAT} | self.cell.settings() | own

    def _run(self) -> dict[str, Any]:
        detector = self.detector
        net = detector.load_network()
        return {
            "version": __version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in _PACKAGES},
            "device": _device_name(detector),
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "busy": is_busy(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "timings": self.timings,
            "images": len(self._grids),
            "features": self.features,
            "shared_with": self.shared_with,
            "threshold": _threshold(detector.threshold),
            "pixel_threshold": _threshold(detector.pixel_threshold),
            "backbone": {
                "name": net.name,
                "digest": net.digest,
                "dim": net.dim,
                "stride": net.stride,
                "resolution": detector.resolution or detector._default_resolution(net),
                "parameters": sum(p.numel() for p in net.parameters()),
            },
            "notes": [*self.dataset.notes, *self.notes],
            "unreadable": self.unreadable,
        }


def relative(path: Path, root: Path) -> str:
    """A file's place under the data set's root, with forward slashes; absolute if outside."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def _threshold(threshold: Threshold | None) -> dict[str, Any] | None:
    if threshold is None:
        return None
    return {
        "value": threshold.value,
        "kind": threshold.kind,
        "false_reject": threshold.false_reject,
        "text": str(threshold),
    }


def _device_name(detector: Detector) -> str:
    device = detector._device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
