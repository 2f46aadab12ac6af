"""The nearest points of each point of a scan, by windows of the camera's grid or by a tree."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from offnominal.checks import check_range
from offnominal.errors import OptionError

__all__ = ["Neighbours", "nearest"]

Floats = NDArray[Any]

_CHUNK = 2**16  # candidates looked at together, which stay in a processor's own cache
_WINDOWS = (1.6, 4.0)  # candidates in a window, as a multiple of the neighbours that are asked for
_FAR = 1e18  # where a pixel without a point lies; its square is a float32


class Neighbours(NamedTuple):
    """Other points around each of the n points that were measured, row by row.

    Attributes
    ----------
    rows : int32 array of shape (n, k)
        Of the neighbours among the n; the point itself is none of them.
    squared : array of shape (n, k)
        Squared distances; infinite where there are fewer than k.
    inner : int
        The so many nearest stand in the first columns, in no order.
    """

    rows: NDArray[np.int32]
    squared: Floats
    inner: int


def nearest(points: Floats, count: int, inner: int | None = None) -> Neighbours:
    """The ``count`` nearest other points of each point, exactly.

    On a grid the candidates are those of a window around the pixel. Points outside it lie beyond
    the planes through the camera and the window's rim (and beyond the rim's least x and y), so that
    a distance below that to these planes is known to be right; points where it is not get a larger
    window, and the few that are left ask a tree.

    Parameters
    ----------
    points : float32 or float64 array of shape (H, W, 3)
        NaN where nothing was measured. (1, N, 3) has no grid, and distances in float64 are more
        than windows give: there a tree alone answers.
    count : int
        Neighbours of each; at least 1.
    inner : int or None
        How many of them are to stand in front; None: all.

    Raises
    ------
    OptionError
        If ``count`` is not positive, or fewer than two points were measured.
    """
    check_range("count", count, whole=True, least=1)
    inner = count if inner is None else min(inner, count)
    measured = np.asarray(np.isfinite(points).all(2))
    rows = np.ascontiguousarray(points[measured])
    total = len(rows)
    if total < 2:
        raise OptionError(f"a scan with {total} points: neighbours need two at least")
    index = np.zeros((total, count), np.int32)
    squared = np.full((total, count), np.inf, rows.dtype)
    left = np.arange(total)
    if points.shape[0] > 1 and points.dtype == np.float32:
        for share in _WINDOWS:
            reach = int(np.ceil((np.sqrt(share * (count + 1)) - 1) / 2))
            if 2 * reach < min(points.shape[:2]) and len(left):
                left = _by_window(points, measured, reach, left, inner, index, squared)
    if len(left):
        index[left], squared[left] = _by_tree(rows, left, count)
    return Neighbours(index, squared, inner)


def _by_window(
    points: Floats,
    measured: NDArray[np.bool_],
    reach: int,
    left: NDArray[np.intp],
    inner: int,
    index: NDArray[np.int32],
    squared: Floats,
) -> NDArray[np.intp]:
    """Fill in the rows ``left`` by windows of 2 * reach + 1 pixels; those in doubt are returned."""
    count = index.shape[1]
    padded = np.pad(
        np.where(measured[..., None], points, _FAR).astype(np.float32),
        ((reach, reach), (reach, reach), (0, 0)),
        constant_values=_FAR,
    )
    width = padded.shape[1]
    x, y, z = (np.ascontiguousarray(padded[..., axis]).ravel() for axis in range(3))
    numbered = np.zeros(measured.shape, np.int32)
    numbered[measured] = np.arange(len(index))
    number = np.pad(numbered, reach).ravel()
    steps = np.arange(-reach, reach + 1)
    offsets = (steps[:, None] * width + steps).ravel()
    offsets = offsets[offsets != 0]
    at_row, at_column = (axis[left] for axis in np.nonzero(measured))
    centres = (at_row + reach) * width + at_column + reach
    bound = _outside(points, measured, reach)[at_row, at_column]
    where = np.arange(len(offsets), dtype=np.int64)
    sure = np.zeros(len(left), bool)
    step = max(_CHUNK // len(offsets), 1)
    for start in range(0, len(left), step):
        part = slice(start, start + step)
        own = centres[part, None]
        near = own + offsets
        distance = (x[near] - x[own]) ** 2
        distance += (y[near] - y[own]) ** 2
        distance += (z[near] - z[own]) ** 2
        # Floats that are not negative are ordered as their bits are: one number holds both the
        # distance and which candidate it is of, and is selected faster than by an index.
        packed = distance.view(np.int32).astype(np.int64) << 32
        packed |= where
        packed.partition([inner - 1, count - 1], axis=1)
        packed = packed[:, :count]
        chosen = np.take_along_axis(near, packed & 0xFFFFFFFF, 1)
        distance = (packed >> 32).astype(np.int32).view(np.float32)
        rows = left[part]
        index[rows] = number[chosen]
        squared[rows] = distance
        sure[part] = distance.max(1) <= bound[part] ** 2
    return left[~sure]


def _outside(points: Floats, measured: NDArray[np.bool_], reach: int) -> Floats:
    """How far each point is at least (H, W) from all that lie outside its window.

    Pixels of a column have one x / z where the camera is a pinhole at the origin, and one x where
    it is orthographic. Neither is taken for granted: it is the extremes of all columns outside the
    window that count, so that with another camera the bound is low, and never wrong.
    """
    x, y, z = (np.where(measured, points[..., axis], np.nan).astype(float) for axis in range(3))
    bound = np.full(measured.shape, np.inf)
    ahead = bool((z[measured] > 0).all())
    for across, axis in ((x, 1), (y, 0)):
        best = _beyond(across, np.ones_like(z), axis, reach, flat=True)
        if ahead:
            best = np.maximum(best, _beyond(across, z, axis, reach, flat=False))
        bound = np.minimum(bound, best)
    return bound * (1 - 1e-6)


def _beyond(across: Floats, z: Floats, axis: int, reach: int, flat: bool) -> Floats:
    """Distance of each point from the nearest plane that bounds the lines outside its window."""
    slope = across / z
    best = np.zeros(across.shape)
    for sign in (1.0, -1.0):  # along the grid it may rise or fall
        least = np.fmin.reduce(sign * slope, axis=1 - axis)
        most = np.fmax.reduce(sign * slope, axis=1 - axis)
        after = np.fmin.accumulate(least[::-1])[::-1]
        before = np.fmax.accumulate(most)
        beyond = np.full(len(after), np.inf)
        beyond[: -reach - 1] = after[reach + 1 :]
        behind = np.full(len(after), -np.inf)
        behind[reach + 1 :] = before[: -reach - 1]
        shape = (1, -1) if axis else (-1, 1)
        each = np.full(across.shape, np.inf)
        for limit, turn in ((beyond.reshape(shape), sign), (behind.reshape(shape), -sign)):
            there = np.isfinite(limit)
            edge = np.where(there, limit, 0.0)
            away = (sign * turn * edge * z - turn * across) / (1.0 if flat else np.hypot(1, edge))
            each = np.minimum(each, np.where(there, away, np.inf))
        best = np.fmax(best, each)
    return best


def _by_tree(rows: Floats, asked: NDArray[np.intp], count: int) -> tuple[NDArray[np.int32], Floats]:
    """Neighbours of some rows by a tree, in the order of their distance."""
    distance, index = cKDTree(rows).query(rows[asked], min(count + 1, len(rows)))
    # The point itself comes first but where others lie in the very same place.
    distance[index == asked[:, None]] = -1
    if not (distance[:, 0] == -1).all():
        distance[(distance != -1).all(1), -1] = -1
        order = np.argsort(distance, 1, kind="stable")
        distance, index = (np.take_along_axis(each, order, 1) for each in (distance, index))
    found = np.zeros((len(asked), count), np.int32)
    squared = np.full((len(asked), count), np.inf, rows.dtype)
    others = index.shape[1] - 1
    found[:, :others] = index[:, 1:]
    squared[:, :others] = distance[:, 1:] ** 2
    return found, squared
