"""What good images say: their patch scores, kept so that thresholds follow from them.

The functions here are the bodies of :class:`~offnominal.detectors.base.Detector`'s methods of the
same names.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from offnominal.calibration import Threshold, check_rate, choose_threshold
from offnominal.detectors.prediction import Prediction
from offnominal.errors import OptionError
from offnominal.images import ImageSource, content_digest
from offnominal.sizing import tile_grid

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector, OnError, Progress

__all__ = ["Calibration", "Scored", "Size"]

Size = tuple[int, int]
Calibration = Literal["none", "leave-one-out", "held-out"]
D = TypeVar("D", bound="Detector")


class Scored(NamedTuple):
    """All that an image's score and map are made of, whatever the statistic.

    Attributes
    ----------
    patch_scores : Tensor of shape (gh, gw)
    size : (H, W)
        Of the image.
    cover : (H', W') or None
        The padded size that tiles cover.
    image_term : float or None
        What the image score takes beside the patch scores; most methods have no such thing.
    """

    patch_scores: Tensor
    size: Size
    cover: Size | None
    image_term: float | None = None


def pack(scored: Sequence[Scored]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Patch scores of several images as one float32 vector, and the rest as plain values."""
    facts = [
        {
            "grid": list(one.patch_scores.shape),
            "size": list(one.size),
            "cover": None if one.cover is None else list(one.cover),
            "term": one.image_term,
        }
        for one in scored
    ]
    flat = [one.patch_scores.flatten().float() for one in scored]
    return torch.cat(flat) if flat else torch.empty(0), facts


def unpack(patches: Tensor, facts: Sequence[dict[str, Any]]) -> list[Scored]:
    """What :func:`pack` was given."""
    counts = [fact["grid"][0] * fact["grid"][1] for fact in facts]
    if sum(counts) != len(patches):
        return []  # a file of before they were kept
    return [
        Scored(
            part.reshape(fact["grid"]),
            (fact["size"][0], fact["size"][1]),
            None if fact["cover"] is None else (fact["cover"][0], fact["cover"][1]),
            fact["term"],
        )
        for part, fact in zip(torch.split(patches, counts), facts, strict=True)
    ]


def set_good(detector: "Detector", scored: list[Scored], calibration: Calibration) -> None:
    """Set the thresholds from the patch scores of good images."""
    scores = [float(detector._image_score(*each)) for each in scored]
    peaks = [float(detector._map(*each[:3]).max()) for each in scored]
    detector.good_patches_, detector.good_ = pack(scored)
    detector.good_scores_ = torch.tensor(scores, dtype=torch.float64)
    detector.good_peaks_ = torch.tensor(peaks, dtype=torch.float64)
    detector.calibration_ = calibration


def choose(detector: "Detector", scores: Tensor) -> Threshold | None:
    """The threshold that scores of good images give, and what it promises."""
    found = choose_threshold(scores.cpu().numpy(), detector.false_reject)
    if found is None or found.kind != "conformal" or detector.calibration_ == "held-out":
        return found
    return found if detector.promises else replace(found, kind="approximate")


def scored_again(detector: "Detector", prediction: Prediction) -> Scored:
    """What a prediction was made of."""
    size = (prediction.image.shape[0], prediction.image.shape[1])
    cover = None
    if detector.tile:
        cover = tile_grid(*size, detector.tile, detector.load_network().multiple)[0]
    patch_scores = torch.from_numpy(prediction.patch_scores).to(detector._device)
    return Scored(patch_scores, size, cover, prediction.image_term)


def calibrate(
    detector: "Detector",
    images: Iterable[ImageSource],
    false_reject: float | None,
    on_error: "OnError | None",
    progress: "Progress | None",
) -> int:
    """See :meth:`~offnominal.detectors.base.Detector.calibrate`."""
    if false_reject is not None:
        check_rate(false_reject)
    known = {reference["digest"] for reference in detector.references_}
    scored: list[Scored] = []
    skipped = 0
    for prediction in detector.stream(images, on_error, progress):
        digest = content_digest(prediction.image)
        if digest in known:
            skipped += 1
            continue
        known.add(digest)
        scored.append(detector._scored(prediction))
    if not scored:
        raise OptionError(
            "no image to calibrate with: give good images that the detector has not learned "
            f"from ({skipped} of those given are among its references)"
        )
    if false_reject is not None:
        detector.false_reject = false_reject
    detector._set_good(scored, "held-out")
    return skipped


def rescored(detector: D, changes: dict[str, Any]) -> D:
    """See :meth:`~offnominal.detectors.base.Detector.rescored`."""
    for name in changes:
        if name not in ("aggregate", "smoothing", "false_reject"):
            raise OptionError(f"{name}: takes another fit; only the scoring can be changed")
    good = unpack(detector.good_patches_, detector.good_)
    if len(good) != len(detector.good_scores_):
        raise OptionError(
            "a detector of a file from an earlier version, which kept no patch scores, cannot be "
            "scored anew: fit it here"
        )
    other = type(detector)(**(detector.options() | changes), device=detector.device)
    checked = {name: getattr(other, name) for name in changes}
    other.__dict__ = detector.__dict__ | checked
    other._buffers = dict(detector._buffers)
    other._set_good(good, detector.calibration_)
    return other
