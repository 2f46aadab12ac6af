"""Clouds that 3D-ST's teacher learns from: simple solids, turned, scaled and strewn at random.

In place of the paper's, which are made of ten objects of ModelNet10 in the same way (section 4).
Here three lie in a cloud: of fewer points more have to lie on each, for surfaces to be seen.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.teacher_student.point_networks import farthest

__all__ = ["SOLIDS", "make_cloud"]

Points = NDArray[np.float64]
_OBJECTS = 3
_ROOM = 3.0  # objects, whose longest side is 1, lie within so much of the origin


def _ball(rng: np.random.Generator, count: int) -> Points:
    found = rng.normal(size=(count, 3))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True) * rng.uniform(0.3, 1, 3))


def _box(rng: np.random.Generator, count: int) -> Points:
    sides = rng.uniform(0.2, 1, 3)
    area = np.roll(sides, 1) * np.roll(sides, 2)
    axis = rng.choice(3, count, p=area / area.sum())
    found = rng.uniform(-1, 1, (count, 3))
    found[np.arange(count), axis] = rng.choice([-1.0, 1.0], count)
    return np.asarray(found * sides)


def _cylinder(rng: np.random.Generator, count: int) -> Points:
    """A tube, a cone or what lies between, with its lids."""
    high, top = rng.uniform(0.3, 1.5), rng.uniform(0, 1)
    angle, along = rng.uniform(0, 2 * np.pi, count), rng.uniform(-1, 1, count)
    radius = 1 + (top - 1) * (along + 1) / 2
    lid = rng.random(count) < 0.3
    along[lid] = np.sign(along[lid])
    radius[lid] = np.sqrt(rng.random(lid.sum())) * np.where(along[lid] > 0, top, 1)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), high * along], axis=1)


def _ring(rng: np.random.Generator, count: int) -> Points:
    thick = rng.uniform(0.15, 0.5)
    around, across = rng.uniform(0, 2 * np.pi, (2, count))
    radius = 1 + thick * np.cos(across)
    return np.stack(
        [radius * np.cos(around), radius * np.sin(around), thick * np.sin(across)], axis=1
    )


def _sheet(rng: np.random.Generator, count: int) -> Points:
    x, y = rng.uniform(-1, 1, (2, count))
    waves = rng.uniform(0, 6, (2, 2)) @ np.stack([x, y])
    return np.stack([x, y, rng.uniform(0, 0.15) * np.sin(waves).sum(0)], axis=1)


SOLIDS: dict[str, Callable[[np.random.Generator, int], Points]] = {
    "ball": _ball, "box": _box, "cylinder": _cylinder, "ring": _ring, "sheet": _sheet,
}  # fmt: skip
"""Each draws so many points (N, 3) of a solid's surface."""


def make_cloud(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """A cloud (count, 3) of three solids, its points chosen as far from one another as can be."""
    each = -(-4 * count // _OBJECTS)
    found = []
    for _ in range(_OBJECTS):
        points = SOLIDS[rng.choice(list(SOLIDS))](rng, each)
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        points = points / np.ptp(points, axis=0).max() @ turn
        found.append(points + rng.uniform(-_ROOM, _ROOM, 3))
    cloud = np.concatenate(found).astype(np.float32)
    return cloud[farthest(cloud, count, int(rng.integers(2**31)))]
