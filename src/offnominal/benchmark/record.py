"""What is kept of a cell while its test images go by, and the files that it becomes."""

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offnominal._version import __version__
from offnominal.backbones.weights import read_metadata, untrained_reason
from offnominal.benchmark.cell import Cell
from offnominal.benchmark.files import seal, write_json, write_patch_scores, write_scores
from offnominal.benchmark.machine import cpu_name, device_name, is_busy
from offnominal.benchmark.store import FORMAT
from offnominal.calibration import Threshold
from offnominal.datasets import Dataset, Sample
from offnominal.datasets.contents import relative
from offnominal.detectors.backboned import BackboneDetector
from offnominal.detectors.base import Detector
from offnominal.detectors.ensemble import Ensemble
from offnominal.detectors.features import FeatureDetector
from offnominal.detectors.options import choose_device
from offnominal.detectors.trainable import Trainable
from offnominal.metrics import PixelMetrics, image_curves, image_intervals, image_metrics
from offnominal.prediction import Prediction

__all__ = ["Record", "untrained", "with_networks"]

_PACKAGES = ("torch", "timm", "numpy", "scipy", "opencv-python-headless", "pillow")


def with_networks(detector: Detector) -> list[BackboneDetector]:
    """The detector if it has a network, or the members of an ensemble; none of a chat model."""
    members = detector.members if isinstance(detector, Ensemble) else [detector]
    return [member for member in members if isinstance(member, BackboneDetector)]


def untrained(detector: Detector) -> str:
    """Why a detector's figures say nothing of its method; empty if nothing is known against them.

    Asked are the weights of its networks, which are loaded if they are not there yet, and the files
    of learned prompts or layers that its options name. A file says so of itself, under
    ``pretrained`` in its safetensors metadata, such as ``no: drawn at random from seed 0``.
    """
    reasons = [member.load_network().untrained for member in with_networks(detector)]
    files = [getattr(detector, option) for option in detector.file_options]
    reasons += [untrained_reason(read_metadata(Path(file))) for file in files if file is not None]
    return "; ".join(dict.fromkeys(filter(None, reasons)))


@dataclass
class Record:
    """One cell in the making.

    The detector is fitted, with the cell's scoring; ``references`` are paths relative to the data
    set's root. Without a ``folder`` nothing is written. Cells whose maps are the same share
    ``pixels``, which is None where no test image has a mask. ``unscored`` could be read and got no
    score; ``more`` are further plain values for ``run.json``.
    """

    cell: Cell
    detector: Detector
    dataset: Dataset
    references: list[str]
    folder: Path | None = None
    keep_maps: bool = False
    pixels: PixelMetrics | None = None
    unscored: Sequence[Sample] = ()
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._grids: list[np.ndarray] = []
        self._maps: Path | None = None
        # Of a crop the patch scores do not say where in the image it lies.
        if self.folder is not None and (self.keep_maps or self.cell.options.get("crop")):
            self._maps = self.folder / "maps"
            self._maps.mkdir()

    def add(self, sample: Sample, prediction: Prediction, seconds: float) -> None:
        """Take in one image."""
        if self._maps is not None:
            path = self._maps / f"{len(self._grids):05d}.npy"
            np.save(path, prediction.anomaly_map.astype(np.float16), allow_pickle=False)
        root, mask = self.dataset.root, sample.mask
        self._rows.append(
            {
                "image": relative(sample.image, root),
                "mask": None if mask is None else relative(mask, root),
                "mask_threshold": sample.mask_threshold,
                "label": sample.label,
                "defect": sample.defect,
                "category": sample.category,
                "score": prediction.score,
                "threshold": prediction.threshold,
                "is_anomalous": prediction.is_anomalous,
                "p_value": prediction.p_value,
                "height": prediction.image.shape[0],
                "width": prediction.image.shape[1],
                "map_max": float(prediction.anomaly_map.max()),
                "seconds": seconds,
            }
        )
        self._grids.append(prediction.patch_scores)

    @property
    def labels(self) -> list[int]:
        """Labels of the images taken in."""
        return [row["label"] for row in self._rows]

    @property
    def scores(self) -> list[float]:
        """Their scores."""
        return [row["score"] for row in self._rows]

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals of the image-level figures."""
        return image_intervals(self.labels, self.scores)

    def figures(self) -> dict[str, float]:
        """Image-level and pixel-level figures, and what the detector's own threshold did."""
        figures = _image_figures(self.labels, self.scores, self._decisions)
        return figures if self.pixels is None else figures | self.pixels.compute()

    def failures_as_wrong(self) -> dict[str, float]:
        """The figures of images, as if each one without a score had been judged wrongly.

        Good ones among them score above all others and count as rejected, defective ones score
        below all others and count as missed. Empty if every image got a score.
        """
        if not self.unscored:
            return {}
        labels = [sample.label for sample in self.unscored]
        low, high = min(self.scores) - 1, max(self.scores) + 1
        scores = self.scores + [low if label else high for label in labels]
        figures = _image_figures(
            self.labels + labels, scores, self._decisions + [not label for label in labels]
        )
        del figures["image_f1_max_threshold"]  # it may lie between scores that were made up
        return figures

    @property
    def _decisions(self) -> list[bool | None]:
        return [row["is_anomalous"] for row in self._rows]

    def write(self) -> dict[str, float]:
        """Write the cell's files, if it has a folder; its figures."""
        start = time.perf_counter()
        figures = self.figures()
        if self.folder is None:
            return figures
        missing = [sample.label for sample in self.unscored]
        metrics: dict[str, Any] = {
            "figures": figures,
            "intervals": self.intervals(),
            "curves": {"image": image_curves(self.labels, self.scores)},
            "images": len(self.labels),
            "unscored": {"good": missing.count(0), "defective": missing.count(1)},
            "failures_as_wrong": self.failures_as_wrong(),
            "untrained": untrained(self.detector),
        }
        if self.pixels is not None:
            metrics["curves"]["pixel"] = self.pixels.curves()
            metrics["regions"] = self.pixels.regions()
            metrics["pixel_error"] = self.pixels.error
        self.timings["metrics"] = self.timings.get("metrics", 0.0) + time.perf_counter() - start
        write_scores(self.folder, {name: [r[name] for r in self._rows] for name in self._rows[0]})
        write_patch_scores(self.folder, self._grids)
        write_json(self.folder / "metrics.json", metrics)
        write_json(self.folder / "settings.json", self._settings())
        write_json(self.folder / "run.json", self._run())
        seal(self.folder)
        return figures

    def _settings(self) -> dict[str, Any]:
        test = [sample.label for sample in self.dataset.test(self.cell.category)]
        data = {
            "root": str(self.dataset.root.absolute()),
            "layout": self.dataset.layout,
            "train": len(self.dataset.train(self.cell.category)),
            "test_good": test.count(0),
            "test_defective": test.count(1),
        }
        own = {"data": data, "references": self.references}
        return {"format": FORMAT} | self.cell.settings() | own

    def _run(self) -> dict[str, Any]:
        detector = self.detector
        return {
            "version": __version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in _PACKAGES},
            "device": device_name(choose_device(getattr(detector, "device", "cpu"))),
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "busy": is_busy(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "timings": self.timings,
            "images": len(self._grids),
            "threshold": _threshold(detector.threshold),
            "pixel_threshold": _threshold(detector.pixel_threshold),
            "backbone": _backbone(with_networks(detector)),
            "notes": [*self.dataset.notes, *self.notes, *_better(with_networks(detector))],
        } | self.more


def _image_figures(
    labels: list[int], scores: list[float], decisions: list[bool | None]
) -> dict[str, float]:
    figures = image_metrics(labels, scores)
    for name, label, error in (("false_rejects", 0, True), ("misses", 1, False)):
        kind = [each is error for each, own in zip(decisions, labels, strict=True) if own == label]
        # A detector decides on all images or, without a threshold, on none.
        figures[name] = math.nan if decisions[0] is None or not kind else sum(kind) / len(kind)
    return figures


def _threshold(threshold: Threshold | None) -> dict[str, Any] | None:
    return None if threshold is None else asdict(threshold) | {"text": str(threshold)}


def _better(detectors: Sequence[BackboneDetector]) -> list[str]:
    """What better networks there are than those that were taken where none was named."""
    chosen = [each for each in detectors if each.backbone_note]
    return [f"{each.load_network().name}: {each.backbone_note}" for each in chosen]


def _backbone(detectors: Sequence[BackboneDetector]) -> dict[str, Any] | None:
    """What the network of a detector is, or those of an ensemble are together."""
    if not detectors:
        return None
    nets = [each.load_network() for each in detectors]
    first, resolution, resize = detectors[0], nets[0].resolution, "square"
    if isinstance(first, Trainable):
        resolution = first.side
    elif isinstance(first, FeatureDetector):
        resolution = first.resolution or first.default_resolution(nets[0])
        resize = first.resize or nets[0].resize
    return {
        "name": ",".join(net.name for net in nets),
        "digest": ",".join(net.digest for net in nets),
        "dim": sum(net.dim for net in nets),
        "stride": min(net.stride for net in nets),
        "resolution": resolution,
        "resize": resize,
        "parameters": sum(p.numel() for net in nets for p in net.parameters()),
    }
