"""A page with one cloud of points in it, which can be turned; it opens from disk, offline."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.pictures import colour_map
from offnominal.report.page import write
from offnominal.scans.draw import relief
from offnominal.scans.scan import Scan

__all__ = ["MOST", "write_cloud_page"]

MOST = 50_000
"""Points that a page holds, of 12 bytes each with colour and 9 without; of more, some are shown."""


def write_cloud_page(
    path: Path,
    scan: Scan,
    scores: NDArray[np.float32],
    title: str,
    headline: str,
    heat: tuple[float, float],
    limit: float | None = None,
) -> int:
    """Write a page on which a scan is turned with the mouse, its heat over colour or relief.

    Parameters
    ----------
    path : Path
        Replaced in one step; its folder must exist.
    scan : Scan
    scores : float32 array of shape (H, W)
        Of the points; what was not measured is left out.
    title, headline : str
        What the scan is, and what was said of it.
    heat : (float, float)
        Scores that are drawn as none and as full heat.
    limit : float or None
        Points above it are counted as anomalous.

    Returns
    -------
    int
        How many points the page shows: at most :data:`MOST`, of a grid each second, third and so on
        of both sides, of other clouds by chance, with a fixed seed.

    Raises
    ------
    OptionError
        If it cannot be written.
    """
    row, column, whole = _chosen(scan)
    points = scan.points[row, column].astype(float)
    low, high = points.min(0), points.max(0)
    step = max(float((high - low).max()), 1e-9) / 65535
    level = scores[row, column]
    least, most = float(level.min()), float(level.max())
    score_step = (most - least) / 65535 or 1.0
    surfaces = {"relief": _text(_shade(scan, row, column))}
    if scan.colour is not None:
        surfaces = {"colour": _text(scan.colour[row, column])} | surfaces
    told = f"{whole:,} points" + (f", of which {len(row):,} are shown" if len(row) < whole else "")
    if scan.missing:
        told += f"; {scan.missing:,} of {scan.measured.size:,} pixels were not measured"
    if limit is not None:
        above = int((scores[scan.measured] > limit).sum())
        told += f"; {above:,} above the limit of {limit:.4g}"
    data: dict[str, Any] = {
        "points": _text(np.rint((points - low) / step).astype("<u2")),
        "scores": _text(np.rint((level - least) / score_step).astype("<u2")),
        "surfaces": surfaces,
        "at": low.tolist(),
        "step": step,
        "score": [least, score_step],
        "heat": [float(heat[0]), float(heat[1])],
        # From violet to orange, as the overlays have it.
        "palette": _text(colour_map(np.linspace(0, 1, 256)[None], -0.5, 1.35)[0]),
        "apart": _apart(points),
    }
    write(path, "cloud.html.j2", title, [headline], told=told, data=data)
    return len(row)


def _chosen(scan: Scan) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Rows and columns of the points that are shown, and how many there are."""
    row, column = np.nonzero(scan.measured)
    whole = len(row)
    if scan.organised:
        every = 1
        while True:
            kept = (row % every == 0) & (column % every == 0)
            if kept.sum() <= MOST:
                return row[kept], column[kept], whole
            every += 1
    if whole > MOST:
        drawn = np.sort(np.random.default_rng(0).permutation(whole)[:MOST])
        row, column = row[drawn], column[drawn]
    return row, column, whole


def _shade(scan: Scan, row: NDArray[np.intp], column: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Grey of each point: its relief, or by its depth where there is no grid."""
    if scan.organised:
        return np.ascontiguousarray(relief(scan)[row, column, 1])
    z = scan.points[row, column, 2]
    share = (z - z.min()) / max(float(z.max() - z.min()), 1e-9)
    return np.asarray(230 - 150 * share, np.uint8)


def _apart(points: NDArray[np.float64]) -> float:
    """How far points lie from one another, about, in metres: by the area that they cover."""
    spans = np.sort(np.ptp(points, axis=0))[1:]
    side = max(float(spans[1]) / 128, 1e-9)
    cells = len(np.unique(np.floor(points / side).astype(np.int64), axis=0))
    return math.sqrt(cells * side * side / len(points))


def _text(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
