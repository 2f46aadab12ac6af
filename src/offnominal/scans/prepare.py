"""Preparing scans: the ground plane away, the largest object alone, another grid.

The values by default are those that "Back to the Feature" (Horwitz and Hoshen, CVPR Workshops 2023)
prepared MVTec 3D-AD with. They take a scene of centimetres, in metres.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.scans.clusters import clusters
from offnominal.scans.scan import Scan

__all__ = ["Plane", "largest_cluster", "padded", "plane_of_border", "resized", "without_plane"]

Floats = NDArray[np.float64]

_AT_ONCE = 50  # planes whose distances are in memory


class Plane(NamedTuple):
    """A plane: a x + b y + c z + d = 0, where (a, b, c) has length 1 and c is not negative."""

    a: float
    b: float
    c: float
    d: float

    def distances(self, points: NDArray[np.floating]) -> Floats:
        """How far points (..., 3) lie from it, in their unit; negative on the origin's side."""
        away: Floats = points.astype(np.float64) @ np.array(self[:3]) + self.d
        return away


def plane_of_border(
    scan: Scan,
    *,
    border: int = 10,
    distance: float = 0.004,
    sample: int = 50,
    iterations: int = 1000,
    seed: int = 0,
) -> Plane | None:
    """The plane that most points at the edges of the picture lie on, by RANSAC.

    Parameters
    ----------
    scan : Scan
        On a grid.
    border : int
        Rows and columns at each edge that are looked at.
    distance : float
        Metres from a plane within which a point is on it.
    sample : int
        Points that each plane is tried from.
    iterations : int
        Planes tried.
    seed : int
        Of the draws.

    Returns
    -------
    Plane or None
        Fitted to all points that lie on the best; None where the border has fewer points than
        `sample`.

    Raises
    ------
    OptionError
        If the scan has no grid, or a value is not positive.
    """
    if not scan.organised:
        raise OptionError("a cloud without a grid has no border to find a plane on; use --no-plane")
    if min(border, distance, iterations) <= 0 or sample < 3:
        raise OptionError("border, distance and iterations are positive, a sample is 3 points or "
                          "more")  # fmt: skip
    edge = scan.measured.copy()
    edge[border:-border, border:-border] = False
    points = scan.points[edge].astype(np.float64)
    if len(points) < sample:
        return None
    rng = np.random.default_rng(seed)
    best, most, least = None, -1, np.inf
    for begin in range(0, iterations, _AT_ONCE):
        many = min(_AT_ONCE, iterations - begin)
        drawn = np.stack([rng.choice(len(points), sample, replace=False) for _ in range(many)])
        normals, offsets = _fitted(points[drawn])
        away = np.abs(points @ normals.T + offsets)
        on = away < distance
        counts = on.sum(0)
        errors = np.square(away, out=away).sum(0, where=on)
        for number in np.flatnonzero(counts >= most):
            if counts[number] > most or errors[number] < least:
                best, most, least = on[:, number], counts[number], errors[number]
    assert best is not None  # as many are tried as one at least
    if most < 3:
        return None
    normal, offset = _fitted(points[best][None])
    turned = -1.0 if normal[0, 2] < 0 else 1.0
    a, b, c = (turned * normal[0]).tolist()
    return Plane(a, b, c, turned * float(offset[0]))


def _fitted(samples: Floats) -> tuple[Floats, Floats]:
    """Normals (K, 3) and offsets (K,) of the planes of least squares through samples (K, n, 3)."""
    centres = samples.mean(axis=1)
    apart = samples - centres[:, None]
    normals = np.linalg.eigh(np.einsum("kni,knj->kij", apart, apart))[1][:, :, 0]
    return normals, -np.einsum("ki,ki->k", normals, centres)


def without_plane(scan: Scan, plane: Plane, within: float = 0.005) -> Scan:
    """The scan without the points within some metres of a plane; their colour becomes black."""
    with np.errstate(invalid="ignore"):
        return _kept(scan, ~(np.abs(plane.distances(scan.points)) < within) & scan.measured)


def largest_cluster(scan: Scan, reach: float = 0.006, fewest: int = 30) -> Scan:
    """The scan with its largest object only, by DBSCAN; as it is where there is none.

    Noise is no object, however much there is of it; the released code keeps it where it has most
    points.

    Parameters
    ----------
    scan : Scan
    reach : float
        Metres within which points are neighbours.
    fewest : int
        Neighbours that make a point the core of an object.
    """
    if reach <= 0 or fewest < 1:
        raise OptionError("the reach of a cluster and its fewest points are positive")
    there = scan.measured
    labels = clusters(scan.points[there], reach, fewest)
    counts = np.bincount(labels[labels >= 0])
    if not len(counts):
        return scan
    keep = np.zeros_like(there)
    keep[there] = labels == counts.argmax()
    return _kept(scan, keep)


def _kept(scan: Scan, keep: NDArray[np.bool_]) -> Scan:
    """Only some points: the others are missing and black, or left out where there is no grid."""
    if not scan.organised:
        some = None if scan.colour is None else scan.colour[:, keep[0]]
        return Scan(scan.points[:, keep[0]], some)
    points = np.where(keep[..., None], scan.points, np.float32(np.nan))
    if scan.colour is None:
        return Scan(points)
    taken = scan.measured & ~keep
    return Scan(points, np.where(taken[..., None], np.uint8(0), scan.colour))


def padded(array: NDArray[np.generic], multiple: int = 100) -> NDArray[np.generic]:
    """A grid (H, W, ...) in the middle of a square: missing around points, black around colours.

    The side is the longer one, rounded up to a multiple.
    """
    side = -(-max(array.shape[:2]) // multiple) * multiple
    around = np.full((side, side, *array.shape[2:]), np.nan if array.dtype.kind == "f" else 0,
                     array.dtype)  # fmt: skip
    top, left = (side - array.shape[0]) // 2, (side - array.shape[1]) // 2
    around[top : top + array.shape[0], left : left + array.shape[1]] = array
    return around


def resized(array: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.generic]:
    """A grid (H, W, ...) at another size (h, w): row i is row floor(i * H / h), columns likewise.

    Never a mean of points, which would lie where nothing was measured.
    """
    rows = np.arange(size[0]) * array.shape[0] // size[0]
    columns = np.arange(size[1]) * array.shape[1] // size[1]
    chosen: NDArray[np.generic] = array[rows[:, None], columns]
    return chosen
