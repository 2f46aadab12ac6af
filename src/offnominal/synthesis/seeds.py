"""Defects grown from a few real ones: cut out by their masks, changed, and blended in elsewhere.

Pieces of real defects pasted onto good images are an old remedy (Dwibedi, Misra and Hebert, "Cut,
Paste and Learn", ICCV 2017). What is this file's own: a defect is carried over as what it adds to
the surface around it, so that the light and the colour of the new place are kept, and the place is
one that looks like the old one.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from offnominal.synthesis.exact import exact
from offnominal.synthesis.placing import Edges, find_place, grown

__all__ = [
    "Placed",
    "Seed",
    "blended",
    "cut_seeds",
    "digest_of",
    "place_seed",
    "seed_defect",
    "warped",
]

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

_NEAR = 7  # pixels between two pieces of a mask that are one defect
_SMALLEST = 12  # pixels of a piece
_SHARE = 0.1  # of the largest piece of a mask, so that crumbs do not count as much as it
_MARGIN = 0.4  # of a defect's longer side, around it
_SIZES = (0.8, 1.25)
_TURN = 25.0  # degrees to either side: many surfaces have a direction
_BEND = 0.03  # of the longer side, and
_BEND_MOST = 1.0  # pixels: what is large would show in the grain
_FEATHER = 1.5  # pixels
_LEAST_MARGIN = 12  # pixels
_FORMS = 4  # of a defect that are drawn, to take the one that fits in best
_STRENGTH = (0.8, 1.25)  # of its contrast
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
    margin = max(_LEAST_MARGIN, int(_MARGIN * max(across, down)))
    rows = slice(max(top - margin, 0), min(top + down + margin, height))
    columns = slice(max(left - margin, 0), min(left + across + margin, width))
    # Masks are drawn by hand: a pixel or two beside the edge is on it.
    edges = top <= 2, top + down >= height - 2, left <= 2, left + across >= width - 2
    return Seed(image[rows, columns].copy(), mask[rows, columns].copy(), edges)


def _surface(image: NDArray[np.generic], hole: Mask) -> Floats:
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

    It is flipped, turned by up to 25 degrees, resized by 0.8 to 1.25 and bent a little; put where
    the picture is like what was around the original, at one of the 1 % of all places that are most
    so; and coloured and shaded as the place is, a fifth fainter to a quarter stronger than it was.
    One that touched an edge of its picture is not turned and touches that edge again, or where it
    is flipped the one opposite.

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
    found = place_seed(image, seeds, rng, on)
    if found is None:
        return image, np.zeros(image.shape[:2], np.bool_)
    there = image[found.window].astype(np.float32)
    light = _level(there, found.around) / _level(found.old, found.around)
    # The surface under the defect, lit as here, and what the defect adds to one.
    surface = _surface(there, grown(found.hole, 2))
    strength = float(np.clip(light, *_LIGHT)) * rng.uniform(*_STRENGTH)
    placed = surface + strength * found.added
    made = image.copy()
    made[found.window] = blended(there, placed, found.hole)
    return exact(image, made, on)


def blended(there: Floats, placed: Floats, hole: Mask) -> Image:
    """What is placed in a hole, faded out just beyond its edge; uint8 (h, w, 3)."""
    alpha = cv2.GaussianBlur(grown(hole, 1).astype(np.float32), (0, 0), _FEATHER)[..., None]
    mixed = np.round(there + alpha * (placed - there))
    return np.asarray(np.clip(mixed, 0, 255), np.uint8)


class Placed(NamedTuple):
    """A changed defect and the place found for it.

    Attributes
    ----------
    added : float32 array of shape (h, w, 3)
        What the defect adds to the surface around it, in grey levels.
    old : float32 array of shape (h, w, 3)
        The picture that it was in.
    hole : bool array of shape (h, w)
        Its mask.
    around : bool array of shape (h, w)
        What is known of the good surface beside it.
    window : (rows, columns)
        Slices of the good image, of shape (h, w).
    unlike : float
        How far the place is from the old one, in grey levels.
    """

    added: Floats
    old: Floats
    hole: Mask
    around: Mask
    window: tuple[slice, slice]
    unlike: float


def place_seed(
    image: Image, seeds: Sequence[Seed], rng: np.random.Generator, on: Mask | None = None
) -> Placed | None:
    """Draw one of the defects and change it, and find its place, as :func:`seed_defect` says.

    None where there is no place on the object.
    """
    seed = seeds[int(rng.integers(len(seeds)))]
    added = seed.image - _surface(seed.image, grown(seed.mask, 2))
    layers = [added, seed.image.astype(np.float32), seed.mask.astype(np.float32)]
    layers = [*layers, np.ones_like(layers[2])]
    forms = [_placed(image, layers, seed.edges, rng, on) for _ in range(_FORMS)]
    found = [form for form in forms if form is not None]
    return min(found, key=lambda form: form.unlike) if found else None


def _placed(
    image: Image, layers: Sequence[Floats], edges: Edges, rng: np.random.Generator, on: Mask | None
) -> Placed | None:
    """One form of a defect; the layers are `added`, `old`, mask, and 1 wherever they hold."""
    layers, edges = warped(layers, edges, rng)
    added, old, held, valid = _fitted(layers, edges, image.shape[:2])
    hole = held >= 0.5
    around = (valid > 0.99) & ~grown(hole, 2)
    place = find_place(image, old, hole, around, edges, rng, on) if hole.any() else None
    if place is None:
        return None
    (top, left), unlike = place
    window = slice(top, top + hole.shape[0]), slice(left, left + hole.shape[1])
    return Placed(added, old, hole, around, window, unlike)


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
    bend = np.asarray(cv2.resize(bend, (across, down)), np.float32)
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


def _fitted(layers: Sequence[Floats], edges: Edges, shape: tuple[int, ...]) -> list[Floats]:
    """At a size that the image has room for; from edge to edge where they were so before."""
    top, bottom, left, right = edges
    height, width = layers[0].shape[:2]
    factor = min(1.0, 0.95 * shape[0] / height, 0.95 * shape[1] / width)
    down = shape[0] if top and bottom else max(4, int(height * factor))
    across = shape[1] if left and right else max(4, int(width * factor))
    size, how = (across, down), cv2.INTER_AREA
    return [np.asarray(cv2.resize(each, size, interpolation=how), np.float32) for each in layers]


def _level(image: Floats, around: Mask) -> float:
    """The mean around a defect, never 0."""
    return max(1.0, float(image[around].mean() if around.any() else image.mean()))


def digest_of(seeds: Sequence[Seed]) -> str:
    """Of what was cut out, wherever it lay: 16 hexadecimal digits."""
    total = hashlib.sha256()
    for seed in seeds:
        total.update(f"{seed.image.shape} {seed.edges}".encode())
        total.update(seed.image.tobytes() + seed.mask.tobytes())
    return total.hexdigest()[:16]
