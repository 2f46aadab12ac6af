"""Agreement of normals and FPFH with Open3D's, on synthetic scans."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from offnominal.scans.fpfh import describe, fpfh
from offnominal.scans.normals import normals

CLOSE = 1e-4  # of the reference's README: entries run from 0 to 200


@pytest.fixture(scope="module")
def golden(shared: Path) -> NpzFile:
    arrays: NpzFile = np.load(shared / "golden" / "threed" / "fpfh.npz")
    return arrays


def points_of(golden: NpzFile, case: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """As the released code reads them: a point is dropped when any coordinate is zero."""
    points = golden[f"xyz/{case}"].astype(float)
    kept = (points != 0).all(2)
    np.testing.assert_array_equal(np.flatnonzero(kept), golden[f"valid_index/{case}"])
    points[~kept] = np.nan
    return points, kept


@pytest.mark.parametrize("case", ["smooth", "dent", "turned_holes"])
def test_as_open3d(golden: NpzFile, case: str) -> None:
    points, kept = points_of(golden, case)
    unoriented = normals(points, orient=False)
    theirs = golden[f"normals/{case}"]
    np.testing.assert_allclose(unoriented[kept], theirs, atol=1e-6)  # and so every sign
    assert 0.1 < (theirs[:, 2] > 0).mean() < 0.9, "signs that fall as they will"
    features = fpfh(points, unoriented)
    np.testing.assert_allclose(features[kept], golden[f"fpfh/{case}"], atol=CLOSE)
    assert np.isnan(features[~kept]).all()

    oriented = normals(points)
    assert ((oriented * points).sum(2)[kept] <= 0).all()
    for name, radius in (("", 0.25), ("_radius6mm", 0.006)):
        wanted = golden[f"fpfh_oriented{name}_rows_0::5/{case}"]
        found = fpfh(points, oriented, radius=radius)[kept][::5]
        np.testing.assert_allclose(found, wanted, atol=CLOSE)


def test_in_single_precision(golden: NpzFile) -> None:
    """What detectors use: of all pairs so few fall into another bin that here none does."""
    points, kept = points_of(golden, "turned_holes")
    found = describe(points.astype(np.float32), orient=False)[1]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[kept], golden["fpfh/turned_holes"], atol=1e-3)
