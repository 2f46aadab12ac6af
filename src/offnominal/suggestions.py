"""Which images are worth labelling next: near the threshold, and unlike each other.

What a detector is sure of teaches it little, and of ten like images one label is enough. So
those nearest to the threshold are taken, twice as many as are asked for, and among them
those that lie farthest apart by what they look like where they are most anomalous: a filter by
uncertainty and then diversity, after Zhdanov, "Diverse mini-batch Active Learning", 2019 (arXiv
1901.05954), with the farthest-first traversal of Sener and Savarese, "Active Learning for
Convolutional Neural Networks: A Core-Set Approach", ICLR 2018 (arXiv 1708.00489), in the place of
its clusters.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from offnominal.errors import OptionError
from offnominal.images import Channels
from offnominal.progress import shown
from offnominal.sources import ImageSources, several

if TYPE_CHECKING:
    from offnominal.detectors.base import Detector
    from offnominal.detectors.options import OnError, ShowProgress

__all__ = ["Suggestion", "choose", "description", "suggest"]

_REACH = 2  # times as many images as are asked for are looked at
_SHARE = 0.25  # of the smaller side, what is looked at around the most anomalous place
_SIDE, _CELLS, _ANGLES = 32, 4, 8
_COLOUR = 0.3  # weight of colours beside edges


@dataclass(frozen=True)
class Suggestion:
    """An image that is worth labelling.

    Attributes
    ----------
    source : str
        The file, or a description of the array.
    number : int
        Its place among the images that were given and could be read, from 0.
    score : float
    threshold : float
    p_value : float or None
        Of the score among those of good images.
    apart : float
        How unlike the nearest of those before it, on [0, 2]; 2 for the first.
    """

    source: str
    number: int
    score: float
    threshold: float
    p_value: float | None
    apart: float

    @property
    def is_anomalous(self) -> bool:
        """What the detector thinks of it."""
        return not self.score <= self.threshold


def suggest(
    detector: "Detector",
    images: ImageSources,
    count: int = 20,
    on_error: "OnError | None" = None,
    progress: "ShowProgress" = None,
    channels: Channels = "rgb",
) -> list[Suggestion]:
    """The images that are worth labelling next, the one nearest to the threshold first.

    Exact copies count once, and what the detector has learned from is left out.

    Parameters
    ----------
    detector : Detector
        Fitted, with a threshold.
    images : paths, arrays, PIL images, tensors, or a single one
        Not labelled; see :meth:`~offnominal.detectors.base.Detector.fit`.
    count : int
        How many to pick; all of them, where there are no more.
    on_error : callable or None
        Called with the error of each unreadable image, which is left out; None: it is raised.
    progress : callable, bool or None
        Called with the stage and the number of images that it has done; True: a bar.
    channels : {"rgb", "bgr"}
        Of arrays and tensors.

    Raises
    ------
    OptionError
        If there is no threshold, or ``count`` is below 1.
    """
    if count < 1:
        raise OptionError(f"-n {count}: give 1 or more")
    known = detector.learned_digests()
    found: list[tuple[int, str, float, float | None]] = []
    looks: list[NDArray[np.float32]] = []
    every, threshold = several(images, channels), 0.0
    with shown(progress, every) as told:
        for number, one in enumerate(detector.stream(every, on_error, told)):
            if one.threshold is None:
                raise OptionError(
                    "suggest: the detector has no threshold for images to lie near; fit it on "
                    "more good images, or calibrate it"
                )
            digest = one.digest
            if digest in known or not np.isfinite(one.score):
                continue
            known.add(digest)
            threshold = one.threshold
            looks.append(description(one.image, one.anomaly_map))
            found.append((number, one.source, one.score, one.p_value))
    if not found:
        return []
    scores = np.array([score for _, _, score, _ in found])
    picked, apart = choose(scores, threshold, np.stack(looks), count)
    return [
        Suggestion(source, number, score, threshold, p_value, far)
        for far, (number, source, score, p_value) in zip(
            apart, (found[place] for place in picked), strict=True
        )
    ]


def choose(
    scores: NDArray[np.float64],
    threshold: float,
    descriptions: NDArray[np.float32],
    count: int,
    reach: int = _REACH,
) -> tuple[list[int], list[float]]:
    """Which of some images to label, by their places, and how unlike those before it each is.

    Parameters
    ----------
    scores : float64 array of shape (n,)
    threshold : float
    descriptions : float32 array of shape (n, d)
    count : int
    reach : int
        The nearest ``reach * count`` to the threshold are looked at; 1: diversity counts nothing.

    Returns
    -------
    places : list of int
        The nearest to the threshold first, then what lies farthest from all that were picked.
    apart : list of float
        Euclidean distance to the nearest of those before; 2 for the first.
    """
    near = np.argsort(np.abs(scores - threshold), kind="stable")[: reach * count]
    found, apart = [0], [2.0]
    nearest = np.linalg.norm(descriptions[near] - descriptions[near[0]], axis=1)
    while len(found) < min(count, len(near)):
        nearest[found[-1]] = -1
        found.append(int(nearest.argmax()))
        apart.append(float(nearest[found[-1]]))
        step = np.linalg.norm(descriptions[near] - descriptions[near[found[-1]]], axis=1)
        nearest = np.minimum(nearest, step)
    return [int(near[place]) for place in found], apart


def description(image: NDArray[np.uint8], anomaly_map: NDArray[np.floating]) -> NDArray[np.float32]:
    """What an image looks like around its most anomalous place, as a vector of length 1.

    Orientations of edges and mean colours in 4 x 4 cells of a square whose side is a quarter of the
    image's smaller one: nothing of the detector, so that any method will do.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
    anomaly_map : array of shape (H, W)

    Returns
    -------
    float32 array of shape (176,)
    """
    height, width = image.shape[:2]
    side = max(1, min(height, width, max(_SIDE, round(_SHARE * min(height, width)))))
    y, x = np.unravel_index(int(np.nanargmax(anomaly_map)), anomaly_map.shape)
    top = int(np.clip(y - side // 2, 0, height - side))
    left = int(np.clip(x - side // 2, 0, width - side))
    cut = Pillow.fromarray(image[top : top + side, left : left + side])
    small = np.asarray(cut.resize((_SIDE, _SIDE), Pillow.Resampling.BOX), np.float32) / 255
    down, across = np.gradient(small.mean(2))
    angle = np.arctan2(down, across) % np.pi
    cell = np.arange(_SIDE) * _CELLS // _SIDE
    place = cell[:, None] * _CELLS + cell
    bins = place * _ANGLES + np.minimum((angle / np.pi * _ANGLES).astype(int), _ANGLES - 1)
    strength = np.hypot(down, across).ravel()
    edges = np.sqrt(np.bincount(bins.ravel(), strength, _CELLS**2 * _ANGLES))
    part = _SIDE // _CELLS
    colours = small.reshape(_CELLS, part, _CELLS, part, 3).mean((1, 3)).ravel()
    both = [edges / max(np.linalg.norm(edges), 1e-6), _COLOUR * colours]
    found = np.concatenate(both)
    return np.asarray(found / max(np.linalg.norm(found), 1e-6), np.float32)
