"""Clusters of points by density (DBSCAN), exact, in memory that does not grow with the density.

Points are sorted into cells whose diagonal is the reach, so that all points of a cell are
neighbours: of dense cells no distance is computed, and two cells are joined as soon as one pair of
their points is near enough.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from offnominal.extras import needs

__all__ = ["clusters"]


def clusters(points: NDArray[np.floating], reach: float, fewest: int) -> NDArray[np.intp]:
    """The cluster of each point (Ester et al., KDD 1996).

    Parameters
    ----------
    points : array of shape (N, 3)
    reach : float
        Distance within which points are neighbours, in the points' unit.
    fewest : int
        Neighbours, the point itself counted, that make it a core of a cluster.

    Returns
    -------
    int array of shape (N,)
        From 0; -1 is noise. A point that several clusters reach goes to that of the nearest core.
    """
    KDTree = needs("scipy.spatial", "fit", "the largest cluster of a scan").cKDTree
    labels = np.full(len(points), -1, np.intp)
    if not len(points):
        return labels
    places: NDArray[np.float64] = points.astype(np.float64)
    core = _cores(places, reach, fewest, KDTree)
    where = np.flatnonzero(core)
    if not len(where):
        return labels
    labels[where] = _joined(places[where], reach)
    rest = np.flatnonzero(~core)
    distance, nearest = KDTree(places[where]).query(places[rest], distance_upper_bound=reach)
    near = np.isfinite(distance)
    labels[rest[near]] = labels[where[nearest[near]]]
    return labels


def _cells(points: NDArray[np.float64], reach: float) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Places (M, 3) of the cells that hold points, and the cell of each point (N,)."""
    # A hair smaller, so that rounding makes no neighbours of what is not.
    side = reach / np.sqrt(3) * (1 - 1e-9)
    places = np.floor((points - points.min(axis=0)) / side).astype(np.int64)
    cells, own = np.unique(places, axis=0, return_inverse=True)
    return cells, own.reshape(-1)


def _cores(
    points: NDArray[np.float64], reach: float, fewest: int, KDTree: type
) -> NDArray[np.bool_]:
    own = _cells(points, reach)[1]
    core: NDArray[np.bool_] = np.bincount(own)[own] >= fewest
    doubtful = np.flatnonzero(~core)
    if len(doubtful):
        found = KDTree(points).query_ball_point(points[doubtful], reach, return_length=True)
        core[doubtful] = found >= fewest
    return core


def _joined(points: NDArray[np.float64], reach: float) -> NDArray[np.intp]:
    """Components of points that are joined where they are neighbours."""
    cells, own = _cells(points, reach)
    order = np.argsort(own, kind="stable")
    borders = np.searchsorted(own[order], np.arange(len(cells) + 1))
    parent = list(range(len(cells)))

    def root(cell: int) -> int:
        while parent[cell] != cell:
            parent[cell] = parent[parent[cell]]
            cell = parent[cell]
        return cell

    number = {tuple(place): cell for cell, place in enumerate(cells.tolist())}
    # Half of those around, the nearest first: most are joined by then, and not looked into.
    around = sorted((step for step in product(range(-2, 3), repeat=3) if step > (0, 0, 0)),
                    key=lambda step: sum(s * s for s in step))  # fmt: skip
    for dx, dy, dz in around:
        for cell, (x, y, z) in enumerate(cells.tolist()):
            other = number.get((x + dx, y + dy, z + dz))
            if other is None or (first := root(cell)) == (second := root(other)):
                continue
            one = points[order[borders[cell] : borders[cell + 1]]]
            two = points[order[borders[other] : borders[other + 1]]]
            if _near(one, two, reach):
                parent[max(first, second)] = min(first, second)
    roots = np.array([root(cell) for cell in range(len(cells))])
    return np.unique(roots, return_inverse=True)[1].reshape(-1)[own]


def _near(one: NDArray[np.float64], two: NDArray[np.float64], reach: float) -> bool:
    """Whether any pair is: the points of one cell by thousands, so that memory stays small."""
    for begin in range(0, len(one), 1000):
        apart = one[begin : begin + 1000, None] - two
        if (np.einsum("ijk,ijk->ij", apart, apart) <= reach * reach).any():
            return True
    return False
