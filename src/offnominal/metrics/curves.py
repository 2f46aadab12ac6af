"""Curves for drawing: a few hundred points that keep the shape."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from offnominal.errors import OptionError
from offnominal.metrics.rows import Rows

__all__ = ["Curve", "curve", "pixel_curves"]

Doubles = npt.NDArray[np.float64]
Curve = dict[str, list[float]]


def curve(x: Doubles, y: Doubles, thresholds: Doubles, points: int) -> Curve:
    """Points of a curve at even steps along it, with both ends.

    Parameters
    ----------
    x, y, thresholds : float64 arrays of shape (n,)
        The whole curve in order.
    points : int
        How many to keep, at least 2.

    Returns
    -------
    dict of str to list of float
        ``x``, ``y`` and ``thresholds``, at most `points` long.
    """
    if points < 2:
        raise OptionError(f"points is {points}: a curve needs at least 2")
    if len(x) > points:
        length = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
        kept = np.searchsorted(length, np.linspace(0, length[-1], points))
        kept[-1] = len(x) - 1
        kept = np.unique(kept)
        x, y, thresholds = x[kept], y[kept], thresholds[kept]
    return {"x": x.tolist(), "y": y.tolist(), "thresholds": thresholds.tolist()}


def pixel_curves(
    tables: Iterable[Rows],
    totals: tuple[int, int, int],
    top: float,
    limit: float,
    points: int,
) -> dict[str, Curve]:
    """ROC, precision-recall and per-region-overlap curves of a table.

    Parameters
    ----------
    tables : iterable of Rows
        The rows from the top.
    totals : tuple of int
        Good pixels, defective pixels and regions in all.
    top : float
        Threshold that no pixel reaches, where the curves begin.
    limit : float
        False-positive rate at which the overlap curve ends, by interpolation.
    points : int
        Points of each curve.
    """
    whole = np.array(totals, np.float64)[:, None]
    cells = 8 * points
    ends = [np.zeros((3, 1))]
    thresholds = [np.array([top])]
    before = np.zeros((3, 1))
    for rows in tables:
        sums = np.cumsum(np.stack([rows.good, rows.defective, rows.overlap]), axis=1) + before
        before = sums[:, -1:]
        # Long tables are thinned as they come: what falls in one cell is drawn as one point.
        share = np.concatenate([sums / whole, sums[:1] / (whole[0] * limit)])
        cell = np.floor(share * cells)
        last = np.append((cell[:, 1:] != cell[:, :-1]).any(axis=0), True)
        ends.append(sums[:, last])
        thresholds.append(rows.threshold[last])
    false, true, overlap = np.minimum(np.concatenate(ends, axis=1) / whole, 1.0)
    threshold = np.concatenate(thresholds)
    predicted = true * totals[1] + false * totals[0]
    some = predicted > 0
    precision = true[some] * totals[1] / predicted[some]
    inside = int(np.searchsorted(false, limit, side="right"))
    pro_x, pro_y = false[:inside], overlap[:inside]
    pro_threshold = threshold[:inside]
    if inside < len(false) and pro_x[-1] < limit:
        pro_x = np.append(pro_x, limit)
        pro_y = np.append(pro_y, np.interp(limit, false[inside - 1 :], overlap[inside - 1 :]))
        pro_threshold = np.append(pro_threshold, threshold[inside])
    return {
        "roc": curve(false, true, threshold, points),
        "pr": curve(true[some], precision, threshold[some], points),
        "pro": curve(pro_x, pro_y, pro_threshold, points),
    }
