"""A cloud of points with its scores as a PLY file, which MeshLab, CloudCompare and Open3D read."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offnominal.atomic import write_atomically
from offnominal.errors import OptionError
from offnominal.paths import MARK
from offnominal.pictures import overlay

__all__ = ["heat_colours", "write_ply"]

_ROW = [(name, "<f4") for name in "xyz"]
_ROW += [(name, "u1") for name in ("red", "green", "blue")] + [("score", "<f4")]
_GREY = 150


def write_ply(
    path: Path,
    points: NDArray[np.float32],
    scores: NDArray[np.float32],
    colour: NDArray[np.uint8] | None = None,
    heat: tuple[float, float] | None = None,
) -> int:
    """Write the points that were measured, with their scores and the heat as colour.

    Binary, little-endian: ``x``, ``y``, ``z`` in metres, ``red``, ``green``, ``blue``, and
    ``score`` as float32.

    Parameters
    ----------
    path : Path
        Replaced in one step; its folder must exist.
    points : float32 array of shape (H, W, 3)
        NaN where nothing was measured; (1, N, 3) of a cloud without a grid.
    scores : float32 array of shape (H, W)
    colour : uint8 array of shape (H, W, 3), or None
        Under the heat; None: grey.
    heat : (float, float) or None
        Scores that are drawn as none and as full heat; None: the least and the largest.

    Returns
    -------
    int
        How many points were written.

    Raises
    ------
    OptionError
        If the shapes differ, or the file cannot be written.
    """
    if scores.shape != points.shape[:2]:
        raise OptionError(f"scores {scores.shape} of points {points.shape[:2]}: give one for each")
    there = np.isfinite(points).all(-1)
    rows = np.zeros(int(there.sum()), _ROW)
    rows["x"], rows["y"], rows["z"] = points[there].T
    rows["score"] = scores[there]
    painted = heat_colours(scores, colour, heat)[there]
    rows["red"], rows["green"], rows["blue"] = painted.T
    kinds = {"<f4": "float", "u1": "uchar"}
    head = ["ply", "format binary_little_endian 1.0", f"comment {MARK}"]
    head += [f"element vertex {len(rows)}"]
    head += [f"property {kinds[kind]} {name}" for name, kind in _ROW]
    write_atomically(path, ("\n".join([*head, "end_header"]) + "\n").encode() + rows.tobytes())
    return len(rows)


def heat_colours(
    scores: NDArray[np.float32],
    colour: NDArray[np.uint8] | None = None,
    heat: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """The colour (H, W, 3) of each point with the heat of its score over it."""
    known = scores[np.isfinite(scores)]
    low, high = heat or ((float(known.min()), float(known.max())) if len(known) else (0.0, 1.0))
    under = np.full((*scores.shape, 3), _GREY, np.uint8) if colour is None else colour
    return overlay(under, np.where(np.isfinite(scores), scores, low), low, high)
