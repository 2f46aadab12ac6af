"""What is kept of a cell while its test images go by, and the files that it becomes."""

import math
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from offnominal._version import __version__
from offnominal.benchmark.cell import Cell
from offnominal.benchmark.files import seal, write_json, write_patch_scores, write_scores
from offnominal.benchmark.machine import cpu_name, device_name, is_busy
from offnominal.benchmark.store import FORMAT
from offnominal.calibration import Threshold
from offnominal.datasets import Dataset, Sample
from offnominal.datasets.contents import relative
from offnominal.detectors.backboned import BackboneDetector
from offnominal.detectors.base import Detector
from offnominal.detectors.exported import Exported
from offnominal.detectors.features import FeatureDetector
from offnominal.detectors.networks import untrained, with_networks
from offnominal.engines.base import threads
from offnominal.engines.machine import installed
from offnominal.engines.network import facts_of
from offnominal.metrics import (
    PixelMetrics,
    confusion,
    image_curves,
    image_intervals,
    image_metrics,
    kind_figures,
)
from offnominal.prediction import Prediction

__all__ = ["Record"]

# Each of them may be absent where an exported model is measured.
_PACKAGES = ("torch", "timm", "numpy", "scipy", "opencv-python-headless", "pillow")
_ENGINES = ("onnxruntime", "openvino")


@dataclass
class Record:
    """One cell in the making.

    The detector is fitted, with the cell's scoring; ``references`` are paths relative to the data
    set's root. Without a ``folder`` nothing is written. Cells whose maps are the same share
    ``pixels``, which is None where no test image has a mask. ``test`` is what is tested on, and
    ``defects`` are the paths of the labelled defects that were learned from. ``unscored`` could be
    read and got no score; ``more`` are further plain values for ``run.json``.
    """

    cell: Cell
    detector: Detector
    dataset: Dataset
    references: list[str]
    test: Sequence[Sample]
    folder: Path | None = None
    keep_maps: bool = False
    defects: Sequence[str] = ()
    pixels: PixelMetrics | None = None
    unscored: Sequence[Sample] = ()
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tested = {sample.image for sample in self.test}
        self._rows: list[dict[str, Any]] = []
        self._grids: list[np.ndarray] = []
        self._maps: Path | None = None
        # Of a crop the patch scores do not say where in the image it lies.
        if self.folder is not None and (self.keep_maps or self.cell.options.get("crop")):
            self._maps = self.folder / "maps"
            self._maps.mkdir()

    def takes(self, sample: Sample) -> bool:
        """Whether it is tested on an image."""
        return sample.image in self._tested

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
                "kind": prediction.kind,
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

    def kinds(self) -> list[dict[str, Any]]:
        """The figures of each class of defect."""
        told = self.labels, self._column("defect"), self.scores, self._decisions
        return kind_figures(*told, self._column("kind"))

    def confusion(self) -> dict[str, Any] | None:
        """Which class was taken for which; None where none is told."""
        told = self.labels, self._column("defect"), self._decisions
        return confusion(*told, self._column("kind"))

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
        return self._column("is_anomalous")

    def _column(self, name: str) -> list[Any]:
        return [row[name] for row in self._rows]

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
            "kinds": self.kinds(),
            "confusion": self.confusion(),
        }
        if self.pixels is not None:
            metrics["curves"]["pixel"] = self.pixels.curves()
            metrics["regions"] = self.pixels.regions()
            metrics["pixel_error"] = self.pixels.error
        self.timings["metrics"] = self.timings.get("metrics", 0.0) + time.perf_counter() - start
        columns = {name: self._column(name) for name in self._rows[0]}
        if not any(columns["kind"]):  # which only some methods tell
            del columns["kind"]
        write_scores(self.folder, columns)
        write_patch_scores(self.folder, self._grids)
        write_json(self.folder / "metrics.json", metrics)
        write_json(self.folder / "settings.json", self._settings())
        write_json(self.folder / "run.json", self._run())
        seal(self.folder)
        return figures

    def _settings(self) -> dict[str, Any]:
        test = [sample.label for sample in self.test]
        data = {
            "root": str(self.dataset.root.absolute()),
            "layout": self.dataset.layout,
            "train": len(self.dataset.train(self.cell.category)),
            "test_good": test.count(0),
            "test_defective": test.count(1),
        }
        own = {"data": data, "references": self.references, "learned_defects": [*self.defects]}
        return {"format": FORMAT} | self.cell.settings() | own

    def _run(self) -> dict[str, Any]:
        detector = self.detector
        return {
            "version": __version__,
            "python": platform.python_version(),
            "packages": _here(),
            "device": device_name(getattr(detector, "device", "cpu")),
            "cpu": cpu_name(),
            "engine": _engines(with_networks(detector) or [detector]),
            "threads": threads(),
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


def _here() -> dict[str, str]:
    """Versions of what is installed."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {k: told for k, told in installed().items() if told and k in _ENGINES}


def _engines(detectors: Sequence[Detector]) -> str:
    """What ran the networks, or an exported program, and in which precision; empty: nothing."""
    found = [
        f"{getattr(each, 'engine_in_force', '') or 'torch'} {each.precision}"
        for each in detectors
        if isinstance(each, BackboneDetector | Exported)
    ]
    return ", ".join(dict.fromkeys(found))


def _backbone(detectors: Sequence[BackboneDetector]) -> dict[str, Any] | None:
    """What the network of a detector is, or those of an ensemble are together."""
    if not detectors:
        return None
    nets = [each.load_network() for each in detectors]
    first, resolution, resize = detectors[0], nets[0].resolution, "square"
    if side := getattr(first, "side", 0):  # of the square that a method is trained on
        resolution = side
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
        "parameters": sum(facts_of(net)["parameters"] for net in nets),
    }
