"""Real shapes of parts, as a camera sees them: a plate, a lying bottle, a hanging spring.

A part has coordinates of its own, in millimetres: u along it, v across it, w towards the camera.
Plate and bottle are heights w over a table, met by each pixel's ray; the spring is a wire, the
union of many small balls, which hangs free. Damage moves the surface itself, so that what is seen
of it is right from any side.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

__all__ = ["SHAPES", "Heights", "Pose", "Seen", "Shape", "Wire"]

Floats = NDArray[np.float64]

_CELL = 0.25  # millimetres of a cell of the heights
_STEPS, _HALVINGS = 18, 8  # along a ray: from the part's top to the table, then between two steps


class Pose(NamedTuple):
    """Where a part is before the camera: a point p of it is at ``turn @ p + place``."""

    turn: Floats
    """(3, 3)"""
    place: Floats
    """(3,), in millimetres"""


class Seen(NamedTuple):
    """What each pixel sees; NaN where that is nothing.

    ``z`` (H, W) along the camera's axis in millimetres, ``at`` (H, W, 3) and ``normal`` (H, W, 3)
    in the part's own coordinates, ``part`` (H, W) whether it is the part rather than the table.
    """

    z: Floats
    at: Floats
    normal: Floats
    part: NDArray[np.bool_]


@dataclass(frozen=True)
class Heights:
    """A solid on a table: its height over each place (v, u), which is 0 along the border."""

    heights: Floats
    half: tuple[float, float]
    """Of the length and the width that the heights are known over; the table is beyond."""
    top: float
    """From where on rays look for it: above it, damaged or not."""

    def seen(self, rays: Floats, pose: Pose) -> Seen:
        """What the rays (H, W, 3), of length 1 along z, meet."""
        eye, away = -pose.place @ pose.turn, rays.reshape(-1, 3) @ pose.turn
        slope = away[:, :2] / away[:, 2:]
        start = eye[:2] - slope * eye[2]  # where a ray meets w = 0
        met = np.zeros(len(away))
        near = np.flatnonzero(self._passes(start, slope))
        met[near] = self._met(start[near], slope[near])
        at = np.column_stack([start + slope * met[:, None], met])
        normal = np.zeros_like(at)
        normal[:, 2] = 1
        normal[near] = self._normals(at[near, :2])
        part: NDArray[np.bool_] = np.zeros(len(at), bool)
        part[near] = self._near(at[near, :2]) > 0
        z = (met - eye[2]) / away[:, 2]
        shape = rays.shape[:2]
        return Seen(z.reshape(shape), at.reshape(*shape, 3), normal.reshape(*shape, 3),
                    part.reshape(shape))  # fmt: skip

    def _passes(self, start: Floats, slope: Floats) -> NDArray[np.bool_]:
        """Whether rays come near the part at all."""
        rows, columns = np.flatnonzero(self.heights.any(1)), np.flatnonzero(self.heights.any(0))
        least = np.array([columns[0], rows[0]]) * _CELL - self.half - 2 * _CELL
        most = np.array([columns[-1], rows[-1]]) * _CELL - self.half + 2 * _CELL
        high = start + slope * self.top
        inside = (np.maximum(start, high) > least) & (np.minimum(start, high) < most)
        return np.asarray(inside.all(1), bool)

    def _met(self, start: Floats, slope: Floats) -> Floats:
        """The heights (n,) at which rays meet the surface, the table at the latest."""
        levels = np.linspace(self.top, 0, _STEPS)
        below = np.zeros(len(start))
        left = np.arange(len(start))
        for level in levels[:-1]:
            inside = self._near(start[left] + slope[left] * level) >= level
            below[left[inside]] = level
            left = left[~inside]
        above = below + levels[0] - levels[1]
        above[left[self._near(start[left]) <= 0]] = 0  # the table itself
        for _ in range(_HALVINGS):
            middle = (below + above) / 2
            inside = self.over(start + slope * middle[:, None]) >= middle
            below, above = np.where(inside, middle, below), np.where(inside, above, middle)
        return below

    def _normals(self, flat: Floats) -> Floats:
        """Of the surface over places (n, 2)."""
        row, column = self._cells(flat)
        down, across = self.heights.shape
        u = (self.heights[row, np.maximum(column - 1, 0)]
             - self.heights[row, np.minimum(column + 1, across - 1)])  # fmt: skip
        v = (self.heights[np.maximum(row - 1, 0), column]
             - self.heights[np.minimum(row + 1, down - 1), column])  # fmt: skip
        normal = np.column_stack([u, v, np.full(len(flat), 2 * _CELL)])
        found: Floats = normal / np.linalg.norm(normal, axis=1, keepdims=True)
        return found

    def over(self, flat: Floats) -> Floats:
        """Heights over places (n, 2), between the cells."""
        row = (flat[:, 1] + self.half[1]) / _CELL
        column = (flat[:, 0] + self.half[0]) / _CELL
        found: Floats = map_coordinates(self.heights, [row, column], order=1, mode="nearest")
        return found

    def _near(self, flat: Floats) -> Floats:
        found: Floats = self.heights[self._cells(flat)]
        return found

    def _cells(self, flat: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        down, across = self.heights.shape
        row = np.clip(np.rint((flat[:, 1] + self.half[1]) / _CELL), 0, down - 1)
        column = np.clip(np.rint((flat[:, 0] + self.half[0]) / _CELL), 0, across - 1)
        return row.astype(np.intp), column.astype(np.intp)

    @property
    def places(self) -> tuple[Floats, Floats]:
        """The u and the v of the heights, each (rows, columns)."""
        return _places(self.half)

    def moved(self, by: Floats) -> "Heights":
        """The surface moved along its normal by so many millimetres; what is gone is the table."""
        down, across = np.gradient(self.heights, _CELL)
        # Along the normal that is more along w where the surface is steep; walls stay walls.
        steep = np.sqrt(1 + down * down + across * across)
        steep = np.where(steep > 5, 1, np.minimum(steep, 1.6))
        new = np.where(self.heights > 0, np.maximum(self.heights + by * steep, 0), 0)
        return replace(self, heights=new)

    def lifted(self, by: Floats) -> "Heights":
        """What stands on the table moved along w."""
        return replace(self, heights=np.where(self.heights > 0, self.heights + by, 0))


@dataclass(frozen=True)
class Wire:
    """A wire: balls along its middle line, ``centres`` (n, 3) with ``radii`` (n,)."""

    centres: Floats
    radii: Floats

    def seen(self, rays: Floats, pose: Pose) -> Seen:
        """What the rays (H, W, 3), of length 1 along z, meet."""
        height, width = rays.shape[:2]
        focal = (width - 1) / (rays[0, -1, 0] - rays[0, 0, 0])
        centres = self.centres @ pose.turn.T + pose.place
        middle = centres[:, :2] / centres[:, 2:] * focal
        corner = rays[0, 0, :2] * focal  # of the first pixel
        reach = int(np.ceil((self.radii / centres[:, 2]).max() * focal)) + 1
        offsets = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
        first = np.rint(middle - corner).astype(np.intp)
        column, row = first[:, :1] + offsets[1], first[:, 1:] + offsets[0]
        ball = np.broadcast_to(np.arange(len(centres))[:, None], row.shape)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column, ball = row[inside], column[inside], ball[inside]
        ray, centre, radius = rays[row, column], centres[ball], self.radii[ball]
        square, along = (ray * ray).sum(1), (ray * centre).sum(1)
        root = along * along - square * ((centre * centre).sum(1) - radius * radius)
        hit = root > 0
        pixel, ball = (row * width + column)[hit], ball[hit]
        z = (along[hit] - np.sqrt(root[hit])) / square[hit]
        order = np.lexsort([z, pixel])  # of each pixel the nearest ball
        pixel, first_of = np.unique(pixel[order], return_index=True)
        chosen = order[first_of]
        depth = np.full(height * width, np.nan)
        depth[pixel] = z[chosen]
        at, normal = np.full((2, height * width, 3), np.nan)
        at[pixel] = (rays.reshape(-1, 3)[pixel] * depth[pixel, None] - pose.place) @ pose.turn
        normal[pixel] = (at[pixel] - self.centres[ball[chosen]]) / self.radii[ball[chosen], None]
        shape = (height, width)
        return Seen(depth.reshape(shape), at.reshape(*shape, 3), normal.reshape(*shape, 3),
                    np.isfinite(depth).reshape(shape))  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A kind of part: how it is made, how long it is, its colour, and whether a table is there."""

    name: str
    solid: Callable[[], "Heights | Wire"]
    half: float
    """Half its length in millimetres."""
    colour: tuple[float, float, float]
    """RGB on [0, 1]."""
    distance: float
    """Of its lowest point from the camera, in millimetres."""
    gloss: float
    streaks: float
    """Contrast of machining marks along it."""


@lru_cache(maxsize=4)
def _places(half: tuple[float, float]) -> tuple[Floats, Floats]:
    across = np.arange(-half[0], half[0] + _CELL / 2, _CELL)
    down = np.arange(-half[1], half[1] + _CELL / 2, _CELL)
    u, v = np.meshgrid(across, down)
    return u, v


def _ramp(distance: Floats, width: float) -> Floats:
    """0 outside of an edge, 1 from so far inside on, round between."""
    share = np.clip(distance / width, 0, 1)
    return np.sqrt(1 - (1 - share) ** 2)


@lru_cache(maxsize=1)
def _plate() -> Heights:
    """88 x 60 mm, 6 mm thick with a boss of 9 mm, a bore, four holes and two slots."""
    half = (47.0, 33.0)
    u, v = _places(half)
    qx, qy = np.abs(u) - 44 + 8, np.abs(v) - 30 + 8
    inner = 8 - np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) - np.minimum(np.maximum(qx, qy), 0)
    radius = np.hypot(u, v)
    height = (4.8 + 1.2 * _ramp(inner, 1.2)) * (inner > 0)
    height += 3 * _ramp(18 - radius, 0.8) * (radius < 18)
    for x in (-34.0, 34.0):
        for y in (-20.0, 20.0):
            hole = np.hypot(u - x, v - y)
            height = np.where(hole < 6, np.minimum(height, 4.5), height)  # a counterbore
            height = np.where(hole < 3.6, 0, height)
        slot = np.hypot(u - np.sign(x) * 27, np.maximum(np.abs(v) - 7, 0))
        height = np.where(slot < 3, 0, height)
    return Heights(np.where(radius < 10, 0, height), half, 15)


@lru_cache(maxsize=1)
def _bottle() -> Heights:
    """100 mm long, 34 mm thick: a body with two grooves, a shoulder, a neck and a ribbed cap."""
    half = (53.0, 20.0)
    u, v = _places(half)
    along = u + 50  # from the base
    knots = np.array([0, 0.6, 1.8, 3.5, 6, 58, 62, 66, 70, 74, 78, 100.0])
    radii = np.array([11.5, 13.6, 15.4, 16.5, 17, 17, 16.5, 14.8, 12.0, 9.2, 8.0, 8.0])
    radius = np.interp(along, knots, radii)
    for groove in (14.0, 50.0):
        radius -= 0.8 * np.exp(-(((along - groove) / 1.1) ** 2))
    radius += np.where((along > 82) & (along < 98.8), 1.6, 0.0)
    radius += np.where((along > 79) & (along < 80.6), 2.4, 0.0)  # the ring under the cap
    angle = np.arcsin(np.clip(v / np.maximum(radius, 1), -1, 1))
    radius += np.where((along > 83) & (along < 97.5), 0.25 * np.cos(30 * angle), 0.0)
    inside = (np.abs(v) < radius) & (along > 0) & (along < 100)
    height = 17 + np.sqrt(np.maximum(radius * radius - v * v, 0))
    return Heights(np.where(inside, height, 0), half, 40)


@lru_cache(maxsize=1)
def _spring() -> Wire:
    """84 mm long, 26 mm thick, of wire of 3.2 mm: nine turns, the last one at each end closed."""
    turns, radius, wire = 10.5, 11.4, 1.6
    angle = np.arange(0, 2 * np.pi * turns, 0.3 / radius)
    turn = angle / (2 * np.pi)
    # The rise of a turn grows from the wire's thickness to 9.4 mm and falls to it again.
    rise = 2 * wire + 6.2 * np.clip(np.minimum(turn, turns - turn) - 0.75, 0, 0.5) / 0.5
    along = np.cumsum(rise) * (0.3 / radius) / (2 * np.pi)
    along -= along[-1] / 2
    centres = np.column_stack([along, radius * np.cos(angle), radius * np.sin(angle) + 13])
    return Wire(centres, np.full(len(angle), wire))


SHAPES: dict[str, Shape] = {
    one.name: one
    for one in (
        Shape("plate", _plate, 44, (0.66, 0.67, 0.69), 318, 0.5, 0.035),
        Shape("bottle", _bottle, 50, (0.30, 0.52, 0.60), 342, 0.35, 0.006),
        Shape("spring", _spring, 40, (0.47, 0.47, 0.50), 318, 0.6, 0.02),
    )
}
