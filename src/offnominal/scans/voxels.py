"""A cloud without a grid, brought to one density: the mean of the points in each small cube."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from offnominal.checks import check_range
from offnominal.errors import OptionError

__all__ = ["default_voxel", "voxels"]

Floats = NDArray[Any]

_SPACINGS = 3.0  # of neighbouring points in a voxel's side
_ASKED = 10_000  # points whose nearest neighbour is looked for
_MOST = 2**20  # voxels along an axis, either way


def default_voxel(points: Floats) -> float:
    """A side that suits a cloud (N, 3): three times the median distance of nearest neighbours.

    Raises
    ------
    OptionError
        If there are no two points in different places.
    """
    some = points[:: max(1, len(points) // _ASKED)].astype(float)
    spacing = 0.0
    if len(points) > 1:
        distance = cKDTree(points).query(some, 2)[0][:, 1]
        apart = distance[(distance > 0) & np.isfinite(distance)]
        spacing = float(np.median(apart)) if len(apart) else 0.0
    if not spacing:
        raise OptionError(f"a cloud of {len(points)} points in one place has no surface")
    return _SPACINGS * spacing


def voxels(points: Floats, side: float) -> tuple[Floats, NDArray[np.intp]]:
    """Means of the points in each cube of a fixed lattice, and which cube each point is in.

    The lattice begins at the origin, not at the cloud, so that a cloud that gains a stray point
    keeps its cubes.

    Parameters
    ----------
    points : float array of shape (N, 3)
    side : float
        Of the cubes, in metres.

    Returns
    -------
    centres : float array of shape (V, 3)
        In the order of the lattice; of the points' type.
    index : int array of shape (N,)

    Raises
    ------
    OptionError
        If ``side`` is not positive, or more than a million times smaller than the cloud is far.
    """
    check_range("voxel", side, above=0)
    cell = np.floor(points.astype(float) / side)
    if len(cell) and not np.abs(cell).max() < _MOST:
        raise OptionError(
            f"points lie up to {np.abs(points).max():g} m away, more than {_MOST:,} voxels of "
            f"{side:g} m; check that the cloud is in metres, and for stray points"
        )
    x, y, z = (cell.astype(np.int64) + _MOST).T
    _, index, count = np.unique(
        (x * 2 * _MOST + y) * 2 * _MOST + z, return_inverse=True, return_counts=True
    )
    sums = [np.bincount(index, points[:, axis], len(count)) for axis in range(3)]
    return (np.stack(sums, 1) / count[:, None]).astype(points.dtype), index
