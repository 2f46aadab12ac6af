"""Damage done to made parts: dents, bumps, missing and extra material, warps, stains."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from offnominal.scans.shapes import Floats, Heights, Seen, Shape, Wire

__all__ = ["damaged", "soft", "stained", "truth"]

_SHOWS = 0.1  # share of a damage's depth from which a point belongs to it


def soft(rng: np.random.Generator, shape: tuple[int, ...], cell: float) -> Floats:
    """Smooth noise of deviation 1, of waves of about four cells."""
    step = max(1, int(cell / 3))
    coarse = rng.standard_normal([length // step + 3 for length in shape])
    smooth = gaussian_filter(coarse, cell / step)
    smooth = smooth / smooth.std()
    row, column = (np.arange(length) / step for length in shape)
    r, c = row.astype(np.intp), column.astype(np.intp)
    fr, fc = (row - r)[:, None], (column - c)[None]
    above = smooth[r][:, c] * (1 - fc) + smooth[r][:, c + 1] * fc
    below = smooth[r + 1][:, c] * (1 - fc) + smooth[r + 1][:, c + 1] * fc
    found: Floats = above * (1 - fr) + below * fr
    return found


def _spot(good: Seen, away: float, size: int, rng: np.random.Generator) -> Floats:
    """A place (u, v, w) on the part that faces the camera, so many mm from all edges if it can."""
    pixel = 128 / size
    wide = distance_transform_edt(np.pad(good.part, 1))[1:-1, 1:-1] * pixel
    faces = good.part & (np.nan_to_num(good.normal[..., 2]) > 0.8)
    for reach in (away, away / 2, away / 4, 0):
        rows, columns = np.nonzero(faces & (wide > reach))
        if len(rows):
            break
    chosen = int(rng.integers(len(rows)))
    place: Floats = good.at[rows[chosen], columns[chosen]]
    return place


def _outline(u: Floats, v: Floats, radius: float, rng: np.random.Generator) -> Floats:
    """How far inside an irregular round outline each place is: 1 in the middle, 0 on it."""
    waves = [(wave, rng.uniform(-0.5, 0.5) / wave, rng.uniform(0, 6.3)) for wave in (2, 3, 4, 5)]
    stretch, lean = rng.uniform(0.8, 1.25), rng.uniform(0, np.pi)
    found = np.full(u.shape, -1.0)
    near = np.hypot(u, v) < 2.5 * radius
    u, v = u[near], v[near]
    turn = np.arctan2(v, u)
    edge = 1 + sum(high * np.cos(wave * turn + start) for wave, high, start in waves)
    along, across = (u * np.cos(lean) + v * np.sin(lean)), (v * np.cos(lean) - u * np.sin(lean))
    distance = np.hypot(along * stretch, across / stretch)
    found[near] = 1 - distance / (radius * np.maximum(edge, 0.4))
    return found


def _smooth(inside: Floats) -> Floats:
    """From 0 on an outline to 1 in its middle, without a crease."""
    found: Floats = 0.5 - 0.5 * np.cos(np.pi * np.clip(inside, 0, 1))
    return found


def damaged(
    solid: Heights | Wire,
    good: Seen,
    kind: Shape,
    defect: str,
    deep: float,
    size: int,
    rng: np.random.Generator,
) -> Heights | Wire:
    """The part with a damage of a depth in millimetres."""
    end = float(rng.choice([-1, 1]))
    radius = float(rng.uniform(4.5, 7.5))
    if isinstance(solid, Wire):
        return _damaged_wire(solid, good, kind, defect, deep, size, end, rng)
    u, v = solid.places
    if defect == "warp":
        # Bent about a line across the part, a little askew.
        along = (u * end + v * rng.uniform(-0.25, 0.25)) / kind.half
        return solid.lifted(deep * np.clip((along + 0.15) / 1.15, 0, None) ** 2)
    x, y, _ = _spot(good, radius, size, rng)
    if defect in ("dent", "bump"):
        inside = _smooth(_outline(u - x, v - y, radius * 1.3, rng))
        return solid.moved(deep * inside * (1 if defect == "bump" else -1))
    inside = _outline(u - x, v - y, radius, rng)
    if defect == "missing":
        # Broken out: a rough floor with a steep edge.
        floor = 1 - 0.12 * np.clip(soft(rng, u.shape, 6), 0, 2)
        return solid.moved(-deep * floor * np.clip(inside * radius / 0.5, 0, 1))
    drop = np.sqrt(1 - (1 - np.clip(inside, 0, 1)) ** 3)
    return solid.moved(deep * drop)  # a drop of weld or of glue


def _damaged_wire(
    wire: Wire,
    good: Seen,
    kind: Shape,
    defect: str,
    deep: float,
    size: int,
    end: float,
    rng: np.random.Generator,
) -> Wire:
    """The same of a wire: bent in or out, nicked, with a drop on it, or with an end lifted."""
    centres, radii = wire.centres, wire.radii
    if defect == "warp":
        along = np.clip((centres[:, 0] * end / kind.half + 0.15) / 1.15, 0, None)
        return replace(wire, centres=centres + np.outer(deep * along**2, [0, 0, 1]))
    place = _spot(good, 0, size, rng)
    nearest = int(np.linalg.norm(centres - place, axis=1).argmin())
    along = np.abs(np.arange(len(centres)) - nearest) * np.linalg.norm(centres[1] - centres[0])
    middle = centres.mean(0) * [0, 1, 1]
    out = centres * [0, 1, 1] - middle
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    if defect in ("dent", "bump"):
        by = deep * _smooth(1 - along / rng.uniform(7, 10)) * (1 if defect == "bump" else -1)
        return replace(wire, centres=centres + by[:, None] * out)
    if defect == "missing":
        nicked = along < rng.uniform(3, 4.5)
        cut = min(deep / 2, float(radii[0]))
        left = np.where(nicked, radii - cut, radii)
        moved = np.where(nicked[:, None], centres - cut * out, centres)
        return Wire(moved[left > 0.1], left[left > 0.1])
    ball = max(2.2, 0.7 * deep)
    steps = np.flatnonzero(along < rng.uniform(1.5, 3))
    drops = centres[steps] + out[steps] * (radii[steps] + deep - ball)[:, None]
    return Wire(np.vstack([centres, drops]), np.concatenate([radii, np.full(len(drops), ball)]))


def truth(
    good: Seen, seen: Seen, deep: float, defect: str
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Where the surface is not what it was, and by how much."""
    nearer = good.z - seen.z
    # Where there was nothing, or is nothing now, the depth is what was done.
    there, gone = ~np.isfinite(good.z) & np.isfinite(seen.z), np.isfinite(good.z)
    gone &= ~np.isfinite(seen.z)
    nearer = np.where(there, deep, np.where(gone, -deep, np.nan_to_num(nearer)))
    mask = np.abs(nearer) > _SHOWS * deep
    return mask, np.where(mask, nearer, 0).astype(np.float32)


def stained(good: Seen, size: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """How much of each pixel's colour a stain hides, and where that is seen."""
    u, v, _ = _spot(good, 5, size, rng)
    at = np.nan_to_num(good.at, nan=1e3)
    inside = _outline(at[..., 0] - u, at[..., 1] - v, rng.uniform(5, 8), rng)
    hides = np.clip(inside * 4, 0, 1) * good.part * rng.uniform(0.45, 0.8)
    return hides, hides > 0.15
