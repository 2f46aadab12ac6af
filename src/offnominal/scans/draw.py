"""Pictures of a scan's geometry: what 2D detectors see of it, and what people look at.

Every picture has one fixed scale, the same for good parts and bad ones: a grey level is a number of
millimetres, never a share of what one scan happens to hold. Where nothing was measured the
neighbours are carried on, so that a missing point is no edge.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import OptionError
from offnominal.scans.scan import Scan

__all__ = ["depth_picture", "drawn", "height_picture", "normals_picture", "projected", "relief"]
__all__ += ["shown_with"]

Picture = NDArray[np.uint8]
Floats = NDArray[Any]

_REACH = 0.04  # metres that become black and white, from the middle grey
_LEAST = 0.001  # metres from a plane within which points are taken to lie on it
_FITTED = 6000  # points that the plane is fitted to
_LAMP = np.array([-0.50, -0.58, -0.64])  # towards it, in the camera's coordinates
_STEEPER = 2.0  # slopes are drawn so much steeper: a dent of half a millimetre shows
_PAPER = np.array([238, 234, 226])
_GAP = ((62, 70, 88), (70, 78, 97))  # of stripes where nothing was measured
_STRIPE = 5
_SIDE = 512  # pixels of a cloud's picture


def drawn(scan: Scan, modality: str) -> Picture:
    """A scan as the picture that a modality names.

    Parameters
    ----------
    scan : Scan
        On a grid.
    modality : {"colour", "depth", "height", "normals"}

    Returns
    -------
    uint8 array of shape (H, W, 3)

    Raises
    ------
    OptionError
        If the modality is unknown, the scan has no colour, or has no grid.
    """
    ways: dict[str, Callable[[Scan], Picture]] = {
        "depth": depth_picture,
        "height": height_picture,
        "normals": normals_picture,
    }
    if modality == "colour":
        if scan.colour is None:
            raise OptionError(
                "modality is colour, and this scan has none: choose depth, height or normals, or "
                "put the colour pictures where its layout has them"
            )
        return scan.colour
    if modality not in ways:
        raise OptionError(f"modality is {modality!r}; choose colour, {', '.join(ways)}")
    return ways[modality](scan)


def depth_picture(scan: Scan, reach: float = _REACH) -> Picture:
    """Depth as grey, nearer is brighter.

    The scan's own median depth is the middle grey, since a part that lies a little nearer is no
    worse; ``reach`` metres in front of it are white, and as many behind it black. At the default of
    40 mm a grey level is 0.31 mm.

    Returns
    -------
    uint8 array of shape (H, W, 3)
    """
    z = _grid(scan, reach)[..., 2]
    return _grey((np.nanmedian(z) - z) / reach, scan.measured)


def height_picture(scan: Scan, reach: float = _REACH) -> Picture:
    """Distance from the plane that most points lie on, as grey: towards the camera is brighter.

    The plane, usually the table, is the middle grey, so that a scan from a tilted camera looks the
    same; ``reach`` metres above it are white, and as many below it black. Without a plane it is the
    one through the points' middle, by their median distance.

    Returns
    -------
    uint8 array of shape (H, W, 3)
    """
    points = _grid(scan, reach)
    normal, offset = plane(points[scan.measured])
    return _grey((points @ normal - offset) / reach, scan.measured)


def normals_picture(scan: Scan) -> Picture:
    """Normals as colour: their x and y from -1 to 1 as red and green, z towards the camera as blue.

    Of tangents between means of small windows of the grid, which grow with it (5 x 5 pixels of a
    grid 224 wide): noise is calmed alike in every scan.

    Returns
    -------
    uint8 array of shape (H, W, 3)
    """
    normals, known = _normals(_grid(scan, 1))
    level = _filled(normals * [1, 1, -1], known)
    return np.clip(127.5 + 127.5 * level + 0.5, 0, 255).astype(np.uint8)


def relief(scan: Scan) -> Picture:
    """Shaded relief for people: lit from above on the left, slopes drawn twice as steep.

    Where nothing was measured there are dark blue stripes. A cloud without a grid is seen as
    :func:`projected` sees it.

    Returns
    -------
    uint8 array of shape (H, W, 3)
    """
    points = scan.points
    if not scan.organised:
        index = projected(points)
        points = np.where((index >= 0)[..., None], points[0, index], np.float32(np.nan))
    normals, known = _normals(points)
    steeper = _filled(normals, known) * [_STEEPER, _STEEPER, 1]
    steeper /= np.maximum(np.linalg.norm(steeper, axis=-1, keepdims=True), 1e-9)
    light = 0.22 + 0.78 * np.clip(steeper @ (_LAMP / np.linalg.norm(_LAMP)), 0, 1)
    row, column = np.indices(light.shape)
    stripes = np.asarray(_GAP)[(row + column) // _STRIPE % 2]
    shaded = np.where(np.isfinite(points[..., 2:]), _PAPER * light[..., None], stripes)
    return np.asarray(shaded, np.uint8)


def shown_with(scan: Scan, scores: NDArray[np.float32]) -> tuple[Picture, NDArray[np.float32]]:
    """A picture to show a scan by, its colour if it has some, and its scores at the same pixels.

    Parameters
    ----------
    scan : Scan
    scores : float32 array of shape (H, W)
        Of its pixels, or of the points (1, N) of a cloud, which is then seen as :func:`projected`
        sees it. Beside the cloud the least score stands.

    Returns
    -------
    uint8 array of shape (H, W, 3), float32 array of shape (H, W)
    """
    if scan.organised:
        return (relief(scan) if scan.colour is None else scan.colour), scores
    index = projected(scan.points)
    beside = index < 0
    level = np.where(beside, np.nanmin(scores), scores[0, index]).astype(np.float32)
    if scan.colour is None:
        return relief(scan), level
    row, column = np.indices(index.shape)
    stripes = np.asarray(_GAP, np.uint8)[(row + column) // _STRIPE % 2]
    return np.where(beside[..., None], stripes, scan.colour[0, index]), level


def projected(points: NDArray[np.float32], size: int = _SIDE) -> NDArray[np.int32]:
    """Which point of a cloud is seen at each pixel, looking along +z from far away.

    Parameters
    ----------
    points : float32 array of shape (1, N, 3)
    size : int
        Pixels of the picture's sides. The cloud's longer side fills it but for a margin.

    Returns
    -------
    int32 array of shape (size, size)
        Index of the nearest point, which covers as many pixels as points lie apart; -1: none.
    """
    cloud = points.reshape(-1, 3)
    there = np.flatnonzero(np.isfinite(cloud).all(1))
    if not len(there):
        return np.full((size, size), -1, np.int32)
    flat, z = cloud[there, :2].astype(float), cloud[there, 2]
    low, high = flat.min(0), flat.max(0)
    scale = 0.94 * size / max(float((high - low).max()), 1e-9)
    column, row = np.floor((flat - (low + high) / 2) * scale + size / 2).astype(np.intp).T
    # Cells of a coarse grid that hold points tell the area that they share.
    coarse = np.unique(row // 16 * size + column // 16)
    apart = np.sqrt(len(coarse) * 256 / len(there))
    reach = int(np.clip(np.ceil(1.1 * apart - 0.5), 0, 12))
    order = np.argsort(-z, kind="stable")  # the last one written is the nearest
    index = np.full((size, size), -1, np.int32)
    depth = np.full((size, size), np.inf, np.float32)
    index[row[order], column[order]] = there[order]
    depth[row[order], column[order]] = z[order]
    for axis in (0, 1):  # what is nearest within a square, along one side and then the other
        best, found = depth.copy(), index.copy()
        for step in range(1, reach + 1):
            lower, upper = slice(step, None), slice(-step)
            for one, other in ((lower, upper), (upper, lower)):
                here = (one,) if axis == 0 else (slice(None), one)
                beside = (other,) if axis == 0 else (slice(None), other)
                better = depth[beside] < best[here]
                best[here] = np.where(better, depth[beside], best[here])
                found[here] = np.where(better, index[beside], found[here])
        depth, index = best, found
    return index


def plane(points: Floats) -> tuple[Floats, float]:
    """The plane that most points (n, 3) lie on: unit normal (3,) towards the camera, and offset.

    ``points @ normal - offset`` is the distance from it. By least squares of z that weigh points
    less the farther they lie away (Cauchy weights), on the scale of their median distance, which
    goes down to a millimetre.
    """
    used = points[:: max(1, len(points) // _FITTED)].astype(float)
    flat = np.column_stack([used[:, :2], np.ones(len(used))])
    weight = np.ones(len(used))
    across: Floats = np.zeros(3)
    for _ in range(30):
        across = np.linalg.lstsq(flat * weight[:, None], used[:, 2] * weight, rcond=None)[0]
        away = flat @ across - used[:, 2]
        scale = max(_LEAST, 1.48 * float(np.median(np.abs(away))))
        weight = np.sqrt(1 / (1 + (away / scale) ** 2))
    normal = np.array([across[0], across[1], -1.0])
    length = float(np.linalg.norm(normal))
    return normal / length, -float(across[2]) / length


def _grid(scan: Scan, reach: float) -> NDArray[np.float32]:
    if not scan.organised:
        raise OptionError(
            "this cloud has no grid, and so no picture: choose a backbone that takes points, as "
            "fpfh"
        )
    if not reach > 0:
        raise OptionError(f"reach is {reach:g}: give metres, more than 0")
    return scan.points


def _grey(level: Floats, known: NDArray[np.bool_]) -> Picture:
    """Levels (H, W) from -1 to 1 as grey, those that are not known filled."""
    filled = _filled(level[..., None], known)
    grey = np.clip(127.5 + 127.5 * filled + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(grey, 3, axis=2)


def _normals(points: NDArray[np.float32]) -> tuple[Floats, NDArray[np.bool_]]:
    """Normals (H, W, 3) towards the camera, and where there are any."""
    half = max(1, round(points.shape[1] / 112))
    means = _means(points, half)
    step = np.full((2, *points.shape), np.nan)
    step[0, :, half:-half] = means[:, 2 * half :] - means[:, : -2 * half]
    step[1, half:-half] = means[2 * half :] - means[: -2 * half]
    normal = np.cross(step[1], step[0])
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    known = np.isfinite(length[..., 0]) & (length[..., 0] > 0)
    normal = np.where(known[..., None], normal / np.where(length > 0, length, 1), 0)
    # A grid that is mirrored, or read from below, has them the other way round.
    away = (normal * np.nan_to_num(means)).sum(-1, keepdims=True) > 0
    return np.where(away, -normal, normal), known


def _means(points: NDArray[np.float32], half: int) -> Floats:
    """Means of what was measured in windows (H, W, 3); NaN where that is less than a third."""
    there = np.isfinite(points[..., 2])
    values = np.dstack([np.where(there[..., None], points, 0).astype(float), there])
    width = 2 * half + 1
    for axis in (0, 1):
        pad = [(half + 1, half) if each == axis else (0, 0) for each in range(3)]
        total = np.cumsum(np.pad(values, pad), axis=axis)
        length = values.shape[axis]
        values = np.take(total, np.arange(width, width + length), axis)
        values = values - np.take(total, np.arange(length), axis)
    number = values[..., 3:]
    enough = number > width * width / 3
    return np.where(enough, values[..., :3] / np.maximum(number, 1), np.nan)


def _filled(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Values (H, W, C) with those that are not known carried on from around them.

    By means of blocks of 2 x 2, of 4 x 4, and so on, until all are known.
    """
    if known.all() or not known.any():
        return np.where(known[..., None], values, 0)
    height, width = known.shape
    pad = ((0, height % 2), (0, width % 2))
    there = np.pad(known, pad)
    padded = np.pad(np.where(known[..., None], values, 0), (*pad, (0, 0)))
    rows, columns = there.shape[0] // 2, there.shape[1] // 2
    number = there.reshape(rows, 2, columns, 2).sum((1, 3))
    total = padded.reshape(rows, 2, columns, 2, -1).sum((1, 3))
    coarse = _filled(total / np.maximum(number, 1)[..., None], number > 0)
    # Between the blocks' middles: three quarters of the own one, a quarter of the next.
    for axis in (0, 1):
        edge = [(1, 1) if each == axis else (0, 0) for each in range(3)]
        more, length = np.pad(coarse, edge, mode="edge"), coarse.shape[axis]
        before, own, after = (np.take(more, np.arange(length) + n, axis) for n in range(3))
        pair = np.stack([0.75 * own + 0.25 * before, 0.75 * own + 0.25 * after], axis + 1)
        shape = list(coarse.shape)
        shape[axis] *= 2
        coarse = pair.reshape(shape)
    return np.where(known[..., None], values, coarse[:height, :width])
