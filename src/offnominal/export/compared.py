"""Whether an exported file judges as the detector that it was made of: a row for each engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.deployed import Row
from offnominal.metrics.ranks import rank_correlation
from offnominal.text import apart as in_digits

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector
    from offnominal.prediction import Prediction

__all__ = ["TOLERANCE", "Comparison", "compare"]

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""In float32 of a score, or of the threshold; in bf16 of the spread of the good images' scores."""


@dataclass(frozen=True)
class Comparison:
    """What is compared before a file is put in place.

    Attributes
    ----------
    good, defects : sequence of images
        Of parts that are known to be one or the other; both are judged by both detectors.
    """

    good: Sequence[Any] = ()
    defects: Sequence[Any] = ()

    @property
    def images(self) -> list[Any]:
        """All of them."""
        return [*self.good, *self.defects]

    def __str__(self) -> str:
        """How many there are, in words."""
        good, bad = len(self.good), len(self.defects)
        told = f"{good} good image{'s' * (good != 1)}"
        return f"{told} and {bad} of defects" if bad else told


def compare(
    before: Sequence["Prediction"],
    after: Sequence["Prediction"],
    engine: str,
    precision: str,
    detector: "Detector",
    defects: int = 0,
) -> tuple[Row, str]:
    """A row of the table, and what is beyond the tolerance, in words; empty where nothing is.

    Parameters
    ----------
    before, after : sequence of Prediction
        Of the same images.
    engine, precision : str
        Of what gave ``after``.
    detector : Detector
        Whose thresholds and good images count.
    defects : int
        So many of the images, the last ones, show defects.
    """
    ours = np.array([one.score for one in before])
    theirs = np.array([one.score for one in after])
    limit = detector.threshold.value if detector.threshold else 0.0
    pixel = detector.pixel_threshold.value if detector.pixel_threshold else 0.0
    if precision == "bf16":
        good = detector.calibration.images
        spread = float(np.ptp(good)) if len(good) > 1 else 0.0
        apart, scale = np.abs(ours - theirs), np.full(len(ours), spread or abs(limit) or 1.0)
    else:
        apart, scale = np.abs(ours - theirs), np.maximum(np.abs(ours), max(abs(limit), 1e-12))
    allowed = TOLERANCE[precision]
    maps = [
        float(np.abs(one.anomaly_map - other.anomaly_map).max())
        / max(float(np.abs(one.anomaly_map).max()), abs(pixel), 1e-12)
        for one, other in zip(before, after, strict=True)
    ]
    clear = np.abs(ours - limit) > allowed * scale
    turned = [
        one.is_anomalous != other.is_anomalous for one, other in zip(before, after, strict=True)
    ]
    worst, furthest = float((apart / scale).max()), float(np.max(maps))  # which keeps a NaN
    flips = int((np.array(turned) & clear).sum())
    labels = np.arange(len(ours)) >= len(ours) - defects
    row = Row(
        engine=engine,
        precision=precision,
        images=len(ours),
        score=worst,
        map=furthest,
        decisions=int(sum(turned)),
        spearman=rank_correlation(ours, theirs),
        auroc_before=_auroc(labels, ours),
        auroc=_auroc(labels, theirs),
    )
    # A pixel has no neighbours to average: in fp32 one in millions is 1.01e-4 off.
    loose = (2 if precision == "fp32" else 10) * allowed
    for what, value, most in (("scores", worst, allowed), ("maps", furthest, loose)):
        if not value <= most:
            told, limits = in_digits(value, most)
            return row, f"its {what} differ by up to {told} of them; {limits} is allowed"
    return row, f"it decides {flips} of {len(ours)} images otherwise" if flips else ""


def _auroc(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    if labels.all() or not labels.any():
        return None
    from offnominal.metrics.image import image_metrics

    return float(image_metrics(labels, scores)["image_auroc"])
