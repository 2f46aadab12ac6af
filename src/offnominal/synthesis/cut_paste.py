"""CutPaste: a piece of a good image, or a thin strip of it, pasted somewhere else.

Li, Sohn, Yoon and Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and
Localization", CVPR 2021 (arXiv 2104.04015), sections 2.1 and 2.2.
"""

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from offnominal.extras import needs

__all__ = ["KINDS", "Kind", "cut_paste"]

Kind = Literal["patch", "scar"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ASPECT = 3.3  # of a patch, either way (section 2.1)
_SLENDER = (6.0, 12.0)  # of a scar: the paper's are 10 to 25 pixels by 2 to 16, short ones included
_ANGLE = 45.0  # of a scar, to either side
_JITTER = 0.1  # brightness, contrast and saturation of the piece change by at most so much
_VISIBLE = 8.0  # grey levels between what was there and what was pasted, on average
_TRIES = 24


def cut_paste(
    image: NDArray[np.uint8], kind: Kind, share: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paste a piece of an image elsewhere in it, with its colours shifted a little.

    The paper draws the area from 2 to 15 % of the image to train with; here it is given, for a
    defect that is to be found is smaller. A piece that looks like what it covers is no defect, so
    places are drawn until the difference shows, and the best of them is taken where none does.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
    kind : {"patch", "scar"}
        A rectangle whose sides' ratio is up to 3.3, or a strip that is turned by up to 45 degrees.
    share : float
        Of the image's area that the piece takes, on (0, 0.25].
    rng : numpy.random.Generator

    Returns
    -------
    image : uint8 array of shape (H, W, 3)
    mask : bool array of shape (H, W)
        What was pasted over; where nothing of the image changed it is empty.
    """
    height, width = image.shape[:2]
    best, most = image, 0.0
    covered = np.zeros((height, width), bool)
    for _ in range(_TRIES):
        down, across, angle = _shape(kind, share * height * width, rng)
        box = _turned(down, across, angle)
        box_height, box_width = min(box.shape[0], height), min(box.shape[1], width)
        box = box[:box_height, :box_width]
        rows, columns = height - box_height + 1, width - box_width + 1
        top, left, other_top, other_left = rng.integers([rows, columns, rows, columns])
        piece = image[top : top + box_height, left : left + box_width]
        made = image.copy()
        there = made[other_top : other_top + box_height, other_left : other_left + box_width]
        before = there[box].astype(np.float32)
        there[box] = _jittered(piece, rng)[box]
        change = float(np.abs(there[box] - before).mean()) if box.any() else 0.0
        if change > most:
            best, most = made, change
            covered[:] = False
            covered[other_top : other_top + box_height, other_left : other_left + box_width] = box
        if most >= _VISIBLE:
            break
    return best, covered


def _shape(kind: Kind, area: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Height, width and angle of a piece."""
    if kind == "scar":
        ratio, angle = rng.uniform(*_SLENDER), rng.uniform(-_ANGLE, _ANGLE)
    else:
        ratio, angle = math.exp(rng.uniform(-1, 1) * math.log(_ASPECT)), 0.0
    return math.sqrt(area * ratio), math.sqrt(area / ratio), angle


def _turned(down: float, across: float, angle: float) -> NDArray[np.bool_]:
    """The pixels of a rectangle that is turned, in the smallest box around it."""
    cv2 = needs("cv2", "fit", "a synthetic defect")  # its kinds are known without
    corners = cv2.boxPoints(((0.0, 0.0), (across, down), angle))
    corners -= corners.min(0)
    size = np.maximum(np.round(corners.max(0)), 1).astype(int)
    canvas = np.zeros((size[1], size[0]), np.uint8)
    if angle == 0:
        return np.ones(canvas.shape, bool)
    cv2.fillPoly(canvas, [np.round(corners - 0.5).astype(np.int32)], 1)
    return np.asarray(canvas > 0)


def _jittered(piece: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A piece with another brightness, contrast and saturation."""
    brightness, contrast, saturation = rng.uniform(1 - _JITTER, 1 + _JITTER, 3)
    values = piece.astype(np.float32) * brightness
    mean = values.mean()
    values = mean + (values - mean) * contrast
    grey = values.mean(-1, keepdims=True)
    values = grey + (values - grey) * saturation
    return np.asarray(np.clip(np.round(values), 0, 255), dtype=np.uint8)
