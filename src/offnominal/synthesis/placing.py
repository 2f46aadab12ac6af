"""Where in a good image a defect is plausible: where the picture is like what was around it."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Edges", "find_place", "grown"]

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Edges = tuple[bool, bool, bool, bool]
"""Which edges of a picture something touches: top, bottom, left, right."""

_LIKE = 0.01  # of all places, those most like the old one, among which one is drawn
_NUDGE = 6  # pixels that it is moved by, to fit better still
_FAR = 1e12
_SIDE = 200  # pixels of the copy in which places are compared


def find_place(
    image: Image,
    old: Floats,
    hole: Mask,
    around: Mask,
    edges: Edges,
    rng: np.random.Generator,
    on: Mask | None,
) -> tuple[tuple[int, int], float] | None:
    """Draw one of the places that are most like the old one, where the defect is on the object.

    Places are compared by the squared difference of grey levels around the defect. One is drawn of
    the hundredth that differ least, and moved by up to 6 pixels to where they differ less still.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        The good image.
    old : float32 array of shape (h, w, 3)
        The picture that the defect was in.
    hole, around : bool array of shape (h, w)
        The defect, and what of the old picture is compared.
    edges : (top, bottom, left, right)
        Which edges of the image the place is to touch.
    rng : numpy.random.Generator
    on : bool array of shape (H, W) or None
        The object.

    Returns
    -------
    (top, left), unlike : (int, int), float
        In pixels, and the root of the mean squared difference in grey levels; None where no place
        is on the object.
    """
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    grey, like = (_smaller(each.mean(-1), scale) for each in (image.astype(np.float32), old))
    weights = _smaller(around.astype(np.float32), scale)
    unlike = cv2.matchTemplate(grey, like, cv2.TM_SQDIFF, mask=weights)
    allowed = np.ones(unlike.shape, np.bool_)
    if on is not None:
        beside = _smaller((~on).astype(np.float32), scale)
        off = cv2.matchTemplate(beside, _smaller(hole.astype(np.float32), scale), cv2.TM_CCORR)
        allowed = off <= 0.02 * hole.sum() * scale**2
    top, bottom, left, right = edges
    keep = [
        _ends(n, *ends)
        for n, ends in zip(unlike.shape, ((top, bottom), (left, right)), strict=True)
    ]
    allowed &= keep[0][:, None] & keep[1]
    if not allowed.any():
        return None
    # Sums by Fourier transform: what should be 0 may be a little less.
    unlike = np.where(allowed, np.maximum(np.nan_to_num(unlike, posinf=_FAR), 0), np.inf)
    flat = np.flatnonzero(unlike <= np.quantile(unlike[allowed], _LIKE, method="lower"))
    y, x = np.unravel_index(int(rng.choice(flat)), unlike.shape)
    # The best place near it: where an edge or a hole is, a few pixels matter.
    reach = max(1, round(_NUDGE * scale))
    rows = slice(max(0, y - reach), y + reach + 1)
    columns = slice(max(0, x - reach), x + reach + 1)
    dy, dx = np.unravel_index(int(unlike[rows, columns].argmin()), unlike[rows, columns].shape)
    found = rows.start + int(dy), columns.start + int(dx)
    room = [whole - own for whole, own in zip(image.shape, hole.shape, strict=False)]
    y, x = (
        round(each * own / max(n - 1, 1))
        for each, own, n in zip(found, room, unlike.shape, strict=True)
    )
    return (y, x), float(unlike[found] / max(weights.sum(), 1e-6)) ** 0.5


def _ends(count: int, first: bool, last: bool) -> Mask:
    """The first of so many places, or the last; all of them where neither is asked for."""
    places = np.full(count, not (first or last))
    if first or last:
        places[0 if first else -1] = True
    return places


def _smaller(layer: NDArray[np.float32] | NDArray[np.uint8], scale: float) -> Floats:
    height, width = layer.shape[:2]
    size = max(2, round(width * scale)), max(2, round(height * scale))
    return np.asarray(cv2.resize(layer, size, interpolation=cv2.INTER_AREA), np.float32)


def grown(mask: Mask, by: int) -> Mask:
    """A mask (h, w) enlarged by some pixels on every side."""
    side = 2 * by + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)
