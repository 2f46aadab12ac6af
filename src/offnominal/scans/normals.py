"""Normals of a scan: the direction in which the points around a point spread least.

The eigenvector of a symmetric 3 x 3 matrix is found in closed form, for all points at once, as
Eberly describes it ("A Robust Eigensolver for 3 x 3 Symmetric Matrices", Geometric Tools, 2014,
section on the non-iterative solver). Open3D's normals come from the same formulas, so that their
signs, which are left as they fall, can be met.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import check_range
from offnominal.scans.neighbours import Neighbours, nearest

__all__ = ["normals"]

Floats = NDArray[Any]

_CHUNK = 4096  # points at a time


def normals(
    points: Floats,
    count: int = 30,
    radius: float = 0.1,
    orient: bool = True,
    found: Neighbours | None = None,
) -> Floats:
    """Unit normals of a scan.

    Parameters
    ----------
    points : float32 or float64 array of shape (H, W, 3)
        In metres, NaN where nothing was measured; (1, N, 3) of a cloud without a grid.
    count : int
        How many points a plane is laid through, the point itself among them; at least 3.
    radius : float
        Only points within so many metres.
    orient : bool
        Turned towards the camera, which is the origin. False: with the sign that the solver leaves,
        as Open3D does; on a smooth surface a sixth of the normals then points the other way.
    found : Neighbours or None
        What :func:`nearest` found, with ``inner`` not above ``count - 1``; None: looked for here.

    Returns
    -------
    array like ``points``
        NaN where nothing was measured. Points with fewer than two neighbours have the direction of
        the camera's axis.

    Raises
    ------
    OptionError
        If ``count`` is less than 3, ``radius`` not positive, or fewer than two points are there.
    """
    check_range("count", count, whole=True, least=3)
    check_range("radius", radius, above=0)
    found = nearest(points, count - 1) if found is None else found
    measured = np.isfinite(points).all(2)
    rows = points[measured]
    index, squared = found.rows[:, : count - 1], found.squared[:, : count - 1]
    if not orient:
        order = np.argsort(squared, 1, kind="stable")
        index, squared = (np.take_along_axis(each, order, 1) for each in (index, squared))
    result = np.empty_like(rows)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        result[part] = _of_chunk(rows, index[part], squared[part] <= radius**2, part, orient)
    whole = np.full_like(points, np.nan)
    whole[measured] = result
    return whole


def _of_chunk(
    rows: Floats, index: NDArray[np.int32], near: NDArray[np.bool_], part: slice, orient: bool
) -> Floats:
    own = rows[part].astype(float)
    if not orient:
        return _least_or_axis(_about_origin(rows, own, index, near), near)
    # Moments about the point itself: about the origin they would lose half of their digits.
    x, y, z = (np.where(near, rows[:, axis][index] - own[:, axis, None], 0.0) for axis in range(3))
    number = near.sum(1) + 1.0
    mean = [each.sum(1) / number for each in (x, y, z)]

    def moment(one: int, two: int) -> Floats:
        pair = (x, y, z)
        product = np.einsum("nk,nk->n", pair[one], pair[two]) / number
        return np.asarray(product - mean[one] * mean[two])

    covariance = [moment(0, 0), moment(0, 1), moment(0, 2)]
    covariance += [moment(1, 1), moment(1, 2), moment(2, 2)]
    normal = _least_or_axis(np.stack(covariance), near)
    away = (normal * own).sum(1) > 0
    normal[away] *= -1
    return normal


def _about_origin(
    rows: Floats, own: Floats, index: NDArray[np.int32], near: NDArray[np.bool_]
) -> Floats:
    """Covariances (6, n) by moments about the origin, the nearest point's added first.

    Points that share all their neighbours have one normal, up to rounding. Which of the two is the
    frame of a pair's features is then settled by the last digit, so that those of Open3D are met
    only if sums are formed in its order.
    """
    total = np.zeros((9, len(own)))
    for column in range(-1, index.shape[1]):
        x, y, z = (own if column < 0 else rows[index[:, column]].astype(float)).T
        each = np.stack([x, y, z, x * x, x * y, x * z, y * y, y * z, z * z])
        total += each if column < 0 else np.where(near[:, column], each, 0)
    x, y, z, xx, xy, xz, yy, yz, zz = total / (near.sum(1) + 1.0)
    return np.stack([xx - x * x, xy - x * y, xz - x * z, yy - y * y, yz - y * z, zz - z * z])


def _least_or_axis(covariance: Floats, near: NDArray[np.bool_]) -> Floats:
    normal = _least_spread(covariance)
    normal[(near.sum(1) < 2) | ~np.isfinite(normal).all(1)] = (0.0, 0.0, 1.0)
    return normal


def _least_spread(matrices: Floats) -> Floats:
    """Eigenvectors (n, 3) of the least eigenvalues of matrices xx, xy, xz, yy, yz, zz (6, n)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        a = matrices / matrices.max(0)
        xx, xy, xz, yy, yz, zz = a
        off = xy**2 + xz**2 + yz**2
        mean = (xx + yy + zz) / 3
        bx, by, bz = xx - mean, yy - mean, zz - mean
        scale = np.sqrt((bx**2 + by**2 + bz**2 + 2 * off) / 6)
        determinant = bx * (by * bz - yz**2) - xy * (xy * bz - yz * xz) + xz * (xy * yz - by * xz)
        half = np.clip(determinant / scale**3 / 2, -1, 1)
        angle = np.arccos(half) / 3
        most = 2 * np.cos(angle)
        least = 2 * np.cos(angle + 2 * np.pi / 3)
        middle = -(least + most)
        # The eigenvalue that stands apart is the safe one to begin with: the largest of a matrix
        # whose determinant, so shifted, is positive, and otherwise the least.
        apart = np.where(half >= 0, most, least)
        first = _kernel(a, mean + scale * apart)
        second = _across(a, first, mean + scale * middle)
        normal = np.where(half >= 0, np.cross(second, first, axis=0), first)
    diagonal = off == 0
    if diagonal.any():
        sizes = np.stack([xx, yy, zz])[:, diagonal]
        normal[:, diagonal] = np.eye(3)[:, sizes[::-1].argmin(0) * -1 + 2]
    return np.ascontiguousarray(normal.T)


def _kernel(a: Floats, value: Floats) -> Floats:
    """The unit vector (3, n) that the matrices less ``value`` map to zero."""
    xx, xy, xz, yy, yz, zz = a
    rows = (
        np.stack([xx - value, xy, xz]),
        np.stack([xy, yy - value, yz]),
        np.stack([xz, yz, zz - value]),
    )
    pairs = ((0, 1), (0, 2), (1, 2))
    crosses = np.stack([np.cross(rows[one], rows[two], axis=0) for one, two in pairs])
    lengths = (crosses**2).sum(1)
    best = lengths.argmax(0)[None]
    chosen = np.take_along_axis(crosses, best[:, None], 0)[0]
    return np.asarray(chosen / np.sqrt(np.take_along_axis(lengths, best, 0)))


def _across(a: Floats, first: Floats, value: Floats) -> Floats:
    """The eigenvector (3, n) of another eigenvalue, in the plane across the first."""
    x, y, z = first
    none = np.zeros_like(x)
    wide = np.abs(x) > np.abs(y)
    u = np.where(wide, np.stack([-z, none, x]), np.stack([none, z, -y]))
    u = u / np.sqrt((u**2).sum(0))
    v = np.cross(first, u, axis=0)
    au, av = _times(a, u), _times(a, v)
    m00, m01, m11 = (u * au).sum(0) - value, (u * av).sum(0), (v * av).sum(0) - value
    # Of two rows of the 2 x 2 matrix the longer one, divided by its larger entry.
    upper = np.abs(m00) >= np.abs(m11)
    main = np.where(upper, m00, m11)
    by_main = np.abs(main) >= np.abs(m01)
    ratio = np.where(by_main, m01 / main, main / m01)
    long = 1 / np.sqrt(1 + ratio**2)
    short = ratio * long
    on_main, on_off = np.where(by_main, long, short), np.where(by_main, short, long)
    found = np.where(upper, on_off * u - on_main * v, on_main * u - on_off * v)
    flat = np.maximum(np.abs(main), np.abs(m01)) == 0
    return np.asarray(np.where(flat, u, found))


def _times(a: Floats, vector: Floats) -> Floats:
    xx, xy, xz, yy, yz, zz = a
    x, y, z = vector
    return np.stack([xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z])
