"""Truth of clouds: which points are defective, as a table of x, y, z and a label says."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offnominal.errors import ImageError
from offnominal.extras import needs
from offnominal.scans.scan import Scan
from offnominal.scans.text import read_table

__all__ = ["read_truth"]

_FAR = 0.01  # of the cloud's extent: the truth of another cloud lies further from it


def read_truth(path: Path, scan: Scan) -> NDArray[np.bool_]:
    """Which points of a cloud are defective.

    Parameters
    ----------
    path : Path
        Lines of x, y, z and a label, not 0 where the point is defective; parted by blanks or
        commas. Its points need not be in the cloud's order: each point of the cloud has the label
        of the nearest.
    scan : Scan
        Read in the file's own unit.

    Returns
    -------
    bool array of shape (H, W)
        Of the scan's grid, (1, N) of a cloud.

    Raises
    ------
    ImageError
        If the table cannot be read, or is of other points.
    """
    table = read_table(path, path.read_bytes(), first=True)
    if table.shape[1] != 4 or not np.isfinite(table).all():
        reason = f"has {table.shape[1]} numbers a line; truth is x, y, z and a label, all finite"
        raise ImageError(path, f"{reason}: copy it again")
    there = scan.measured
    points = scan.points[there].astype(np.float64)
    found = np.zeros(there.shape, np.bool_)
    extent = float(np.ptp(points, axis=0).max())
    if len(table) == len(points) and np.abs(table[:, :3] - points).max() <= 1e-3 * extent:
        found[there] = table[:, 3] != 0
        return found
    tree = needs("scipy.spatial", "fit", "truth in another order than its cloud").cKDTree
    away, nearest = tree(table[:, :3]).query(points)
    if np.median(away) > _FAR * extent:
        reason = "is of other points than its cloud, or in another unit; copy both again"
        raise ImageError(path, reason)
    found[there] = table[nearest, 3] != 0
    return found
