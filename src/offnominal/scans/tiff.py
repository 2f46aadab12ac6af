"""TIFFs of points (three floating-point channels) and of depth (one channel)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import ImageError
from offnominal.extras import needs
from offnominal.scans.limits import check_claim

__all__ = ["read_depth_tiff", "read_points_tiff"]


def read_points_tiff(path: Path) -> NDArray[np.float32]:
    """Points (H, W, 3) of a TIFF as MVTec 3D-AD has them, as they are stored.

    Raises
    ------
    ImageError
        If it is of another type, of several pages, or shorter than it says.
    """
    points = _read(path)
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind != "f":
        reason = f"holds {points.shape} {points.dtype}; points are (H, W, 3) in floating point"
        raise ImageError(path, f"{reason}: save x, y and z as three channels")
    return points.astype(np.float32, copy=False)


def read_depth_tiff(path: Path) -> NDArray[np.float32]:
    """Counts (H, W) of a depth picture, as they are stored; raises as the other does."""
    depth = _read(path)
    if depth.ndim == 3 and 1 in (depth.shape[0], depth.shape[2]):
        depth = depth.reshape([side for side in depth.shape if side > 1] or [1, 1])
    if depth.ndim != 2 or depth.dtype.kind not in "uif":
        reason = f"holds {depth.shape} {depth.dtype}; a depth picture has one channel (H, W)"
        raise ImageError(path, f"{reason}: save the depth alone")
    return depth.astype(np.float32)


def _read(path: Path) -> NDArray[Any]:
    tifffile = needs("tifffile", "3d", f"{path.name}, a TIFF of points or depths,")
    size = path.stat().st_size
    with tifffile.TiffFile(path) as file:
        if len(file.pages) != 1:
            reason = f"holds {len(file.pages)} pages; save the one to inspect as a file of its own"
            raise ImageError(path, reason)
        page = file.pages[0]
        check_claim(path, "pixels", page.imagelength * page.imagewidth, page.nbytes, size,
                    packed=page.compression != 1)  # fmt: skip
        ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > size:
            reason = "is truncated or damaged (its pixels lie behind its end); copy it again"
            raise ImageError(path, reason)
        pixels: NDArray[Any] = page.asarray(maxworkers=1)
    if page.planarconfig == 2 and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, 2)
    return pixels
