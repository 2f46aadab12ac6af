"""What may be odd about scans: their unit, which way their axes run, what is missing."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offnominal.datasets.report import Finding, Severity
from offnominal.extras import needs
from offnominal.scans.scan import Scan

__all__ = ["ScanFacts", "facts_of", "scan_findings"]

_SAMPLE = 2000  # points of a cloud whose nearest neighbours are looked for
_SURE = 0.75  # of neighbours on the grid that agree which way an axis runs
_OTHER_UNIT = 300  # times nearer or farther than in others: no two sensors of one set differ so
_FEWEST = 3  # scans of which one can be told from the others
_EXAMPLES = 3
# A part, in metres: neighbours and extents beyond are taken for another unit.
_SPACING, _EXTENT, _SMALLEST = 0.02, 5.0, 1e-4


class ScanFacts(NamedTuple):
    """What a scan's points are like.

    Attributes
    ----------
    points, missing : int
        Measured pixels, and those without a point.
    spacing : float
        Median distance of neighbours, in metres if the file's unit is metres.
    extent : float
        Longest side of the box around nearly all points, likewise.
    signs : (int, int, int)
        Which way x runs along the rows, y down the columns, and z from the camera: 1 and -1, or 0
        where that cannot be told, as of x and y without a grid.
    """

    points: int
    missing: int
    spacing: float
    extent: float
    signs: tuple[int, int, int]


def facts_of(scan: Scan) -> ScanFacts:
    """Look a scan over."""
    there = scan.points[scan.measured].astype(np.float64)
    low, high = np.percentile(there, (1, 99), axis=0)
    z = _sign(there[:, 2] > 0)
    if scan.organised:
        grid = scan.points.astype(np.float64)
        right, down = (_steps(grid, axis) for axis in (1, 0))
        steps = np.concatenate([right, down])
        spacing = float(np.median(np.linalg.norm(steps, axis=1))) if len(steps) else 0.0
        signs = (_sign(right[:, 0] > 0), _sign(down[:, 1] > 0), z)
    else:
        tree = needs("scipy.spatial", "fit", "checking a cloud without a grid").cKDTree
        some = there[:: -(-len(there) // _SAMPLE)]
        spacing = float(np.median(tree(there).query(some, 2)[0][:, 1]))
        signs = (0, 0, z)
    return ScanFacts(len(there), scan.missing, spacing, float((high - low).max()), signs)


def _steps(grid: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """From each pixel to the next (N, 3), where both have points."""
    steps = np.diff(grid, axis=axis).reshape(-1, 3)
    return steps[np.isfinite(steps).all(1)]


def _sign(positive: NDArray[np.bool_]) -> int:
    share = float(positive.mean()) if len(positive) else 0.5
    return 1 if share >= _SURE else -1 if share <= 1 - _SURE else 0


def scan_findings(read: Sequence[tuple[str, str, ScanFacts]]) -> Iterable[Finding]:
    """What is odd about the scans of a data set.

    Parameters
    ----------
    read : sequence of (category, name, ScanFacts)
    """
    if not read:
        return
    own: dict[str, list[tuple[str, ScanFacts]]] = defaultdict(list)
    for category, name, facts in read:
        own[category].append((name, facts))
    mixed, unscaled, mirrored, behind, handed = [], [], [], [], []
    for scans in own.values():
        usual = float(np.median([facts.spacing for _, facts in scans]))
        signs = [Counter(f.signs[axis] for _, f in scans if f.signs[axis]).most_common(1)
                 for axis in range(3)]  # fmt: skip
        for name, facts in scans:
            ratio = facts.spacing / usual if usual else 1.0
            if len(scans) >= _FEWEST and not 1 / _OTHER_UNIT < ratio < _OTHER_UNIT:
                mixed.append(f"{name} (neighbours {facts.spacing:.3g} apart, others {usual:.3g})")
                continue
            if not _SMALLEST < facts.extent < _EXTENT or facts.spacing > _SPACING:
                unscaled.append(
                    f"{name} (neighbours {facts.spacing:.3g} apart, {facts.extent:.3g} across)"
                )
            turned = [axis for axis, sign, usually in zip("xyz", facts.signs, signs, strict=True)
                      if sign and usually and sign != usually[0][0]]  # fmt: skip
            if turned and len(scans) >= _FEWEST:
                mirrored.append(f"{name} ({' and '.join(turned)})")
            elif facts.signs[2] < 0:
                behind.append(name)
            elif np.prod(facts.signs) < 0:
                handed.append(name)
    yield from _found(
        "error", "scans in another unit than others of their category", mixed,
        "they are used as they are, so that all of each is anomalous; write them anew in metres",
    )  # fmt: skip
    yield from _found(
        "warning", "scans that are hardly in metres", unscaled,
        "radii and distances are in metres; if they are in millimetres, write them anew with "
        "`offnominal datasets prepare --unit mm --no-plane --no-largest`",
    )  # fmt: skip
    yield from _found(
        "error", "scans whose axes run another way than in others of their category", mirrored,
        "they are used as they are, so that all of each may be anomalous; export them alike",
    )  # fmt: skip
    yield from _found(
        "warning", "scans behind the camera, with negative z", behind,
        "the camera is at the origin and looks along +z: normals are turned away from it here; "
        "turn the axes",
    )  # fmt: skip
    yield from _found(
        "warning", "scans that are mirrored: x to the right, y up and z away, or the like", handed,
        "all are mirrored alike, so that they can be compared with one another and with no scan "
        "of another source; turn one axis",
    )  # fmt: skip
    missing = sum(facts.missing for *_, facts in read)
    if missing:
        whole = missing + sum(facts.points for *_, facts in read)
        most = max(read, key=lambda one: one[2].missing / (one[2].missing + one[2].points))
        share = most[2].missing / (most[2].missing + most[2].points)
        holed = sum(facts.missing > 0 for *_, facts in read)
        yield Finding(
            "note", f"scans with missing points, {missing / whole:.1%} of all pixels", holed,
            (f"{most[1]} (most: {share:.1%})",), "what is missing is never a defect by itself",
        )  # fmt: skip


def _found(severity: Severity, what: str, hits: Sequence[str], action: str) -> list[Finding]:
    return [Finding(severity, what, len(hits), tuple(hits[:_EXAMPLES]), action)] if hits else []
