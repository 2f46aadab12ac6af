"""Defects grown from a few real ones: cut out by their masks, changed, and blended in elsewhere.

Pieces of real defects pasted onto good images are an old remedy (Dwibedi, Misra and Hebert, "Cut,
Paste and Learn", ICCV 2017). What is this file's own: a defect is carried over as what it adds to
the surface around it, so that the light and the colour of the new place are kept, and the place is
one that looks like the old one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.synthesis.exact import exact

__all__ = ["Seed", "cut_seeds", "seed_defect", "surface", "warped"]

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Edges = tuple[bool, bool, bool, bool]  # top, bottom, left, right

_NEAR = 7  # pixels between two pieces of a mask that are one defect
_SMALLEST = 12  # pixels of a piece
_SHARE = 0.1  # of the largest piece of a mask, so that crumbs do not count as much as it
_MARGIN = 0.25  # of a defect's longer side, around it
_SIZES = (0.8, 1.25)
_TURN = 25.0  # degrees to either side: many surfaces have a direction
_BEND = 0.03  # of the longer side, and
_BEND_MOST = 2.0  # pixels: what is large would show in the grain
_FEATHER = 1.5  # pixels
_RING = 9  # pixels around a defect, by which places are compared
_PLACES = 24  # that are drawn, to take the one most like the old place
_LIGHT = (0.5, 2.0)  # how far a defect's contrast follows the brightness of the place


@dataclass(frozen=True, eq=False)
class Seed:
    """A real defect, cut out with some of what is around it.

    Attributes
    ----------
    image : uint8 array of shape (h, w, 3)
    mask : bool array of shape (h, w)
    edges : (top, bottom, left, right)
        Which edges of the picture the defect touches: there it stays.
    """

    image: Image
    mask: Mask
    edges: Edges


def cut_seeds(image: Image, mask: Mask) -> list[Seed]:
    """The defects of an image, uint8 (H, W, 3), whose mask, bool (H, W), holds one or more.

    Pieces up to 7 pixels apart are one defect; those of less than 12 pixels, or a tenth of the
    largest, are left out.
    """
    joined = cv2.dilate(mask.astype(np.uint8), np.ones((_NEAR, _NEAR)))
    _, labels = cv2.connectedComponents(joined)
    labels = np.where(mask, labels, 0)
    areas = np.bincount(labels.ravel())[1:]
    least = max(_SMALLEST, _SHARE * areas.max(initial=0))
    return [_cut(image, labels == number + 1) for number in np.flatnonzero(areas >= least)]


def _cut(image: Image, mask: Mask) -> Seed:
    height, width = mask.shape
    left, top, across, down = cv2.boundingRect(mask.astype(np.uint8))
    margin = max(_RING + 1, int(_MARGIN * max(across, down)))
    rows = slice(max(top - margin, 0), min(top + down + margin, height))
    columns = slice(max(left - margin, 0), min(left + across + margin, width))
    # Masks are drawn by hand: a pixel or two beside the edge is on it.
    edges = top <= 2, top + down >= height - 2, left <= 2, left + across >= width - 2
    return Seed(image[rows, columns].copy(), mask[rows, columns].copy(), edges)


def surface(image: NDArray[np.generic], hole: Mask) -> Floats:
    """The smooth surface that an image (h, w, 3) has around a hole, carried on across it.

    A mean over what lies outside, weighted by a Gaussian about a third of the hole wide; float32.
    """
    outside = (~hole).astype(np.float32)
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    side = max(np.ptp(rows), np.ptp(columns)) + 1 if len(rows) else 1
    deviation = 2 + 0.3 * float(side)
    weights = cv2.GaussianBlur(outside, (0, 0), deviation, borderType=cv2.BORDER_REFLECT)
    values = image.astype(np.float32) * outside[..., None]
    sums = cv2.GaussianBlur(values, (0, 0), deviation, borderType=cv2.BORDER_REFLECT)
    if not outside.any():
        return np.full_like(values, image.mean())
    return np.asarray(sums / np.maximum(weights, 1e-6)[..., None], np.float32)


def seed_defect(
    image: Image, seeds: Sequence[Seed], rng: np.random.Generator, on: Mask | None = None
) -> tuple[Image, Mask]:
    """Blend one of the defects into a good image.

    It is flipped, turned by up to 25 degrees, resized by 0.8 to 1.25 and bent a little; put where,
    of 24 places drawn, brightness and roughness around it come nearest to those around the
    original; and shaded as the place is. One that touched an edge of its picture is not turned and
    touches that edge again, or where it is flipped the one opposite.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
    seeds : sequence of Seed
        One or more.
    rng : numpy.random.Generator
    on : bool array of shape (H, W) or None
        The object; the defect lies on it, or nowhere.

    Returns
    -------
    image : uint8 array of shape (H, W, 3)
    mask : bool array of shape (H, W)
        What changed; empty where none of the places was on the object.
    """
    seed = seeds[int(rng.integers(len(seeds)))]
    added = seed.image - surface(seed.image, _grown(seed.mask, 2))
    (added, held), edges = warped([added, seed.mask.astype(np.float32)], seed.edges, rng)
    added, held = _fitted(added, held, edges, image.shape[:2])
    hole = held >= 0.5
    ring = _around(seed.image, seed.mask)
    place = _place(image, hole, edges, ring, rng, on)
    if place is None or not hole.any():
        return image, np.zeros(image.shape[:2], np.bool_)
    rows, columns = (slice(s, s + n) for s, n in zip(place, hole.shape, strict=True))
    there = image[rows, columns].astype(np.float32)
    gain = np.clip(_around(there, hole)[0] / max(ring[0], 1.0), *_LIGHT)
    alpha = cv2.GaussianBlur(_grown(hole, 1).astype(np.float32), (0, 0), _FEATHER)[..., None]
    # The surface under the defect, lit as here, and what the defect adds to one.
    placed = surface(there, _grown(hole, 2)) + gain * added
    made = image.copy()
    mixed = np.round(there + alpha * (placed - there))
    made[rows, columns] = np.clip(mixed, 0, 255).astype(np.uint8)
    return exact(image, made, on)


def warped(
    layers: Sequence[Floats], edges: Edges, rng: np.random.Generator
) -> tuple[list[Floats], Edges]:
    """Layers (h, w) or (h, w, C) flipped, turned, resized and bent all alike, with their edges."""
    top, bottom, left, right = edges
    if rng.random() < 0.5:
        layers, top, bottom = [each[::-1] for each in layers], bottom, top
    if rng.random() < 0.5:
        layers, left, right = [each[:, ::-1] for each in layers], right, left
    height, width = layers[0].shape[:2]
    free = not any(edges)
    angle, factor = rng.uniform(-_TURN, _TURN) * free, rng.uniform(*_SIZES)
    bend = _bend(height, width, rng)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Large enough for a turned one.
    across = max(4, round(factor * (width * cos + height * abs(sin))))
    down = max(4, round(factor * (height * cos + width * abs(sin))))
    y, x = np.mgrid[:down, :across].astype(np.float32)
    u, v = (x - (across - 1) / 2) / factor, (y - (down - 1) / 2) / factor
    x, y = cos * u + sin * v + (width - 1) / 2, cos * v - sin * u + (height - 1) / 2
    bend = cv2.resize(bend, (across, down))
    where = (x + bend[..., 0]).astype(np.float32), (y + bend[..., 1]).astype(np.float32)
    # What is beyond a cut-out is nothing, but beyond the picture's edge the defect goes on.
    border = cv2.BORDER_CONSTANT if free else cv2.BORDER_REPLICATE
    maps = [
        np.asarray(
            cv2.remap(np.ascontiguousarray(each), *where, cv2.INTER_LINEAR, borderMode=border),
            np.float32,
        )
        for each in layers
    ]
    return maps, (top, bottom, left, right)


def _bend(height: int, width: int, rng: np.random.Generator) -> Floats:
    """A smooth field of shifts (h, w, 2), in pixels."""
    deviation = min(_BEND * max(height, width), _BEND_MOST)
    coarse = rng.normal(0, deviation, (4, 4, 2)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def _fitted(
    added: Floats, held: Floats, edges: Edges, shape: tuple[int, ...]
) -> tuple[Floats, Floats]:
    """Both at a size that the image has room for; from edge to edge where they were so before."""
    top, bottom, left, right = edges
    height, width = held.shape
    factor = min(1.0, 0.95 * shape[0] / height, 0.95 * shape[1] / width)
    down = shape[0] if top and bottom else max(4, int(height * factor))
    across = shape[1] if left and right else max(4, int(width * factor))
    if (down, across) == (height, width):
        return added, held
    size = across, down
    return (
        np.asarray(cv2.resize(added, size, interpolation=cv2.INTER_AREA), np.float32),
        np.asarray(cv2.resize(held, size, interpolation=cv2.INTER_AREA), np.float32),
    )


def _place(
    image: Image,
    hole: Mask,
    edges: Edges,
    ring: tuple[float, float],
    rng: np.random.Generator,
    on: Mask | None,
) -> tuple[int, int] | None:
    """Top and left of the place, of some drawn, that is most like the old one."""
    grey = image.mean(-1)
    top, bottom, left, right = edges
    room = [whole - own for whole, own in zip(image.shape, hole.shape, strict=False)]
    best, least = None, math.inf
    for _ in range(_PLACES):
        y, x = (int(rng.integers(0, each + 1)) for each in room)
        y = 0 if top else room[0] if bottom else y
        x = 0 if left else room[1] if right else x
        here = slice(y, y + hole.shape[0]), slice(x, x + hole.shape[1])
        if on is not None and not on[here][hole].all():
            continue
        mean, spread = _around(grey[here], hole)
        unlike = abs(math.log((mean + 8) / (ring[0] + 8))) + 0.5 * abs(
            math.log((spread + 2) / (ring[1] + 2))
        )
        if unlike < least:
            best, least = (y, x), unlike
    return best


def _around(image: NDArray[np.generic], mask: Mask) -> tuple[float, float]:
    """Mean and deviation of the grey levels in a ring around a defect."""
    grey = image.mean(-1) if image.ndim == 3 else image
    ring = _grown(mask, _RING) & ~_grown(mask, 2)
    values = grey[ring] if ring.any() else grey.ravel()
    return float(values.mean()), float(values.std())


def _grown(mask: Mask, by: int) -> Mask:
    side = 2 * by + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)
