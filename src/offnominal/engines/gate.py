"""Whether a graph that is not float32 may take the place of one that is: a table, and limits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from offnominal.engines.base import Array
from offnominal.errors import OptionError
from offnominal.metrics.image import image_metrics
from offnominal.metrics.ranks import rank_correlation

__all__ = ["Gate", "Limits", "compared"]

_LEAST = 4  # good images: two to set a threshold from, and two to try it on


@dataclass(frozen=True)
class Limits:
    """How much worse than float32 a graph may be.

    Attributes
    ----------
    auroc : float
        Points (of 100) of image AUROC by which it must not fall, where there are defects.
    rank : float
        The least rank correlation (Spearman) of the scores of all images.
    false_rejects : int
        Good images more than float32 rejects.
    """

    auroc: float = 0.5
    rank: float = 0.98
    false_rejects: int = 1


@dataclass(frozen=True)
class Gate:
    """A graph beside float32, on the same images.

    Attributes
    ----------
    auroc : pair of floats or None
        Image AUROC of float32 and of the graph, 0 to 100; None without defects.
    false_rejects : pair of ints
        Good images that each rejects, at thresholds that each has of its own, set from the others.
    tried : int
        How many good images that is of.
    rank : float
        Spearman's correlation of the scores of all images.
    cosine : float
        Mean cosine of the features, patch by patch.
    limits : Limits
    detector : FeatureDetector
        The one with the graph, its thresholds set from all good images.
    """

    auroc: tuple[float, float] | None
    false_rejects: tuple[int, int]
    tried: int
    rank: float
    cosine: float
    limits: Limits
    detector: Any = field(repr=False, compare=False)

    @property
    def refused(self) -> list[str]:
        """Why the graph must not be used, in words; empty if it may."""
        found = []
        if self.auroc and self.auroc[0] - self.auroc[1] >= self.limits.auroc:
            lost = self.auroc[0] - self.auroc[1]
            found.append(f"AUROC falls by {lost:.1f} points (less than {self.limits.auroc:g})")
        if not self.rank >= self.limits.rank:
            told = f"scores are in another order: rank correlation {self.rank:.3f}"
            found.append(f"{told} (at least {self.limits.rank:g})")
        more = self.false_rejects[1] - self.false_rejects[0]
        if more > self.limits.false_rejects:
            most = self.limits.false_rejects
            found.append(f"{more} more good images are rejected (at most {most} more)")
        return found

    def rows(self) -> list[tuple[str, str, str]]:
        """The table: what is compared, of float32, and of the graph."""
        first, second = self.false_rejects
        found = [
            ("false rejects", f"{first} of {self.tried}", f"{second} of {self.tried}"),
            ("rank correlation of scores", "1", f"{self.rank:.4f}"),
            ("cosine of features", "1", f"{self.cosine:.5f}"),
        ]
        if self.auroc:
            found.insert(0, ("AUROC", f"{self.auroc[0]:.1f}", f"{self.auroc[1]:.1f}"))
        return found

    def check(self) -> None:
        """Raise an :class:`OptionError` that says why, if the graph is refused."""
        if self.refused:
            told = "; ".join(self.refused)
            raise OptionError(f"--int8: refused: {told}. Leave it out: float32 is as it was")

    def plain(self) -> dict[str, Any]:
        """The table as plain values, for a manifest."""
        found = {name: getattr(self, name) for name in ("auroc", "false_rejects", "tried")}
        return found | {"rank": self.rank, "cosine": self.cosine, "limits": asdict(self.limits)}


def compared(
    detector: Any,
    other: Any,
    good: Sequence[Any],
    bad: Sequence[Any] = (),
    limits: Limits | None = None,
) -> Gate:
    """Compare a detector with another of the same images that a graph runs.

    Thresholds are set anew from every other good image, for both, and tried on the rest.

    Parameters
    ----------
    detector : FeatureDetector
        Fitted; it stays as it is.
    other : FeatureDetector
        One that has learned from the same images by the graph; its thresholds are set anew.
    good, bad : sequences of paths or arrays
        Good images that the detector has not learned from, four at least, and defective ones.

    Raises
    ------
    OptionError
        If there are too few good images.
    """
    if len(good) < _LEAST:
        raise OptionError(f"--check: {len(good)} good images; give {_LEAST} or more")
    plain = detector.rescored()
    setting, trying = good[::2], good[1::2]
    scores, rejected = [], []
    for each in (plain, other):
        each.calibrate(setting)
        tried = each.predict(trying)
        found = [*each.predict(setting), *tried, *(each.predict(bad) if bad else ())]
        scores.append(np.array([one.score for one in found]))
        rejected.append(sum(bool(one.is_anomalous) for one in tried))
    labels = np.array([0] * len(good) + [1] * len(bad))
    found = [100 * image_metrics(labels, each)["image_auroc"] for each in scores]
    auroc = (found[0], found[1]) if bad else None
    cosine = _cosine(plain, other, list(good)[:8] + list(bad)[:8])
    other.calibrate(good)
    return Gate(
        auroc, (rejected[0], rejected[1]), len(trying), rank_correlation(*scores) or 0.0, cosine,
        limits or Limits(), other,
    )  # fmt: skip


def _cosine(plain: Any, other: Any, images: Sequence[Any]) -> float:
    """Mean cosine of two detectors' patch features."""
    found = []
    for _, image in plain.read(images, None):
        for view in plain.views(image):
            one, two = (_rows(each.embedded(view.pixels)) for each in (plain, other))
            sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
            found.append(float(((one * two).sum(1) / np.maximum(sizes, 1e-12)).mean()))
    return float(np.mean(found))


def _rows(features: Any) -> Array:
    """Patch features (D, gh, gw), the first of several, as rows."""
    while isinstance(features, tuple | list):
        features = features[0]
    maps: Array = np.asarray(features, np.float32)
    return maps.reshape(len(maps), -1).T
