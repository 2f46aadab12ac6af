"""Fast point feature histograms: how the normals around a point lie to one another.

Rusu, Blodow and Beetz, "Fast Point Feature Histograms (FPFH) for 3D registration", ICRA 2009, with
the weights of Open3D: neighbours count by the inverse of the *squared* distance, and each of the
three histograms sums to 200.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from offnominal.checks import check_range
from offnominal.scans.neighbours import Neighbours, nearest
from offnominal.scans.normals import normals

__all__ = ["BINS", "WIDTH", "describe", "fpfh"]

Floats = NDArray[Any]

BINS = 11
WIDTH = 3 * BINS
"""Of a feature: histograms of an angle about the normal, and of two cosines."""

_PAIRS = 2**15  # pairs at a time, which stay in a processor's own cache
_ROWS = 8192  # points at a time whose neighbours' histograms are added


def describe(
    points: Floats,
    orient: bool = True,
    normal_count: int = 30,
    normal_radius: float = 0.1,
    count: int = 100,
    radius: float = 0.25,
) -> tuple[Floats, Floats]:
    """Normals and features of a scan, neighbours being looked for once.

    Parameters and results are those of :func:`~offnominal.scans.normals.normals` and :func:`fpfh`.
    """
    most = max(count, normal_count) - 1
    found = nearest(points, most, normal_count - 1)
    if normal_count > count:
        directions = normals(points, normal_count, normal_radius, orient, found)
        return directions, fpfh(points, directions, count, radius)
    directions = normals(points, normal_count, normal_radius, orient, found)
    return directions, fpfh(points, directions, count, radius, found)


def fpfh(
    points: Floats,
    directions: Floats,
    count: int = 100,
    radius: float = 0.25,
    found: Neighbours | None = None,
) -> Floats:
    """FPFH of every point of a scan.

    Parameters
    ----------
    points : float32 or float64 array of shape (H, W, 3)
        In metres, NaN where nothing was measured; (1, N, 3) of a cloud without a grid. What is
        computed has the precision that they have.
    directions : array of shape (H, W, 3)
        Unit normals of the points.
    count : int
        Nearest points that a histogram is made of, the point itself counted; at least 2.
    radius : float
        Only points within so many metres.
    found : Neighbours or None
        The ``count - 1`` nearest, if they are known already.

    Returns
    -------
    array of shape (H, W, 33)
        Entries from 0 to 200, NaN where nothing was measured; zero for a point without neighbours.

    Raises
    ------
    OptionError
        If ``count`` is less than 2, ``radius`` not positive, or fewer than two points are there.
    """
    check_range("count", count, whole=True, least=2)
    check_range("radius", radius, above=0)
    found = nearest(points, count - 1) if found is None else found
    measured = np.isfinite(points).all(2)
    rows, across = points[measured], directions[measured].astype(points.dtype)
    place = [np.ascontiguousarray(rows[:, axis]) for axis in range(3)]
    turn = [np.ascontiguousarray(across[:, axis]) for axis in range(3)]
    step = max(_PAIRS // found.rows.shape[1], 1)
    parts = [slice(start, start + step) for start in range(0, len(rows), step)]
    simple = np.empty((len(rows), WIDTH), points.dtype)
    for part in parts:
        near = found.squared[part] <= radius**2
        simple[part] = _simple(place, turn, found.rows[part], found.squared[part], near, part)
    whole = np.full((*points.shape[:2], WIDTH), np.nan, points.dtype)
    whole[measured] = simple + _around(simple, found, radius)
    return whole


def _simple(
    place: list[Floats],
    turn: list[Floats],
    index: NDArray[np.int32],
    squared: Floats,
    near: NDArray[np.bool_],
    part: slice,
) -> Floats:
    """Histograms (n, 33) of the pairs of each point with its neighbours (n, k)."""
    dx, dy, dz = (each[index] - each[part, None] for each in place)
    x, y, z = (each[part, None] for each in turn)
    u, v, w = (each[index] for each in turn)
    length = np.sqrt(squared)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / length
        one = (dx * x + dy * y + dz * z) * inverse  # cosine of this normal and the way there
        two = (dx * u + dy * v + dz * w) * inverse
        both = x * u + y * v + z * w
        triple = dx * (y * w - z * v) + dy * (z * u - x * w) + dz * (x * v - y * u)
        triple *= inverse
        # The normal that lies closer to the line between the two is the frame's. Read from the
        # other end the triple product is the same.
        swap = np.abs(one) < np.abs(two)
        along = np.where(swap, -two, one)
        rest = np.where(swap, two * both - one, two - one * both)
        sine = np.sqrt(np.maximum(1 - along * along, 0))
        angle = np.arctan2(rest, both * sine)
        side = triple / sine
    flat = ~(sine > 0)  # no frame: the same place, or a line along the normal
    for each in (angle, side, along):
        each[flat] = 0
    size = len(index) * WIDTH
    base = np.arange(0, size, WIDTH)[:, None]
    total = np.zeros(size + 1)
    for block, value in enumerate((angle / np.pi, side, along)):
        bins = np.minimum((value * (BINS / 2) + BINS / 2).astype(np.intp), BINS - 1)
        place_of = np.where(near, base + bins + block * BINS, size)
        total += np.bincount(place_of.ravel(), minlength=size + 1)
    histogram = total[:size].reshape(-1, WIDTH)
    return np.asarray(histogram * (100 / np.maximum(near.sum(1), 1))[:, None])


def _around(simple: Floats, found: Neighbours, radius: float) -> Floats:
    """The neighbours' histograms by 1 / squared distance, each block's sum 100."""
    number, count = found.rows.shape
    result = np.empty_like(simple)
    for start in range(0, number, _ROWS):
        part = slice(start, start + _ROWS)
        index, squared = found.rows[part], found.squared[part]
        weights = np.zeros_like(squared)
        np.divide(1, squared, out=weights, where=(squared <= radius**2) & (squared > 0))
        starts = np.arange(0, index.size + 1, count)
        graph = csr_array((weights.ravel(), index.ravel(), starts), (len(index), number))
        blocks = (graph @ simple).reshape(-1, 3, BINS)
        sums = blocks.sum(2, keepdims=True)
        blocks *= np.divide(100, sums, out=np.zeros_like(sums), where=sums > 0)
        result[part] = blocks.reshape(-1, WIDTH)
    return result
