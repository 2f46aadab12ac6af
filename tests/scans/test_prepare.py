"""Preparation: planes, clusters and grids of scans made here; what options refuse."""

import numpy as np
import pytest
from sklearn.cluster import DBSCAN
from tests.scans.written import cloud, colours, plate

from offnominal.errors import OptionError
from offnominal.scans.clusters import clusters
from offnominal.scans.prepare import (
    largest_cluster,
    padded,
    plane_of_border,
    resized,
    without_plane,
)
from offnominal.scans.scan import Scan


def test_the_plane_goes_and_the_part_stays() -> None:
    points = plate()
    points[0, :5] = np.nan
    scan = Scan(points, colours(0, points.shape[:2]))
    plane = plane_of_border(scan, border=3, seed=1)
    assert plane is not None
    assert np.allclose(plane, (0, 0, 1, -0.5), atol=1e-3)
    assert plane == plane_of_border(scan, border=3, seed=1)
    alone = without_plane(scan, plane)
    assert (alone.measured == (points[..., 2] < 0.49)).all()
    assert np.isnan(alone.points[~alone.measured]).all()
    assert alone.colour is not None
    assert (alone.colour[scan.measured & ~alone.measured] == 0).all()
    assert (alone.colour[0, :5] == colours(0, points.shape[:2])[0, :5]).all()  # never measured
    assert plane_of_border(scan, border=1, sample=400) is None


@pytest.mark.parametrize(("reach", "fewest"), [(0.06, 10), (0.04, 6), (0.1, 30), (0.2, 5)])
def test_clusters_are_those_of_dbscan(reach: float, fewest: int) -> None:
    points = np.random.default_rng(0).random((1500, 3)) ** 2
    ours = clusters(points, reach, fewest)
    theirs = DBSCAN(eps=reach, min_samples=fewest).fit(points)
    core = theirs.core_sample_indices_
    assert ((ours < 0) == (theirs.labels_ < 0)).all()
    pairs = set(zip(ours[core].tolist(), theirs.labels_[core].tolist(), strict=True))
    assert len(pairs) == theirs.labels_.max() + 1 == ours.max() + 1


def test_the_largest_cluster_stays() -> None:
    both = np.concatenate([cloud(0, 500), cloud(1, 300) + np.float32(0.1)])[None]
    kept = largest_cluster(Scan(both))
    assert (kept.points[0] == cloud(0, 500)).all()
    apart = Scan(np.float32(10) * cloud(0, 40)[None])
    assert largest_cluster(apart) is apart  # nothing but noise


def test_squares_and_grids() -> None:
    square = padded(plate()[..., 0], 20)
    assert square.shape == (40, 40)
    assert np.isfinite(square[8:32, 5:35]).all()
    assert np.isnan(square).sum() == 40 * 40 - 24 * 30
    assert (padded(np.ones((3, 4), np.uint8), 2)[[0, 3]] == [[1] * 4, [0] * 4]).all()
    assert resized(np.arange(10)[:, None], (4, 1))[:, 0].tolist() == [0, 2, 5, 7]


def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match="--no-plane"):
        plane_of_border(Scan(cloud()[None]))
    with pytest.raises(OptionError, match="positive"):
        plane_of_border(Scan(plate()), distance=0)
    with pytest.raises(OptionError, match="positive"):
        largest_cluster(Scan(plate()), reach=-1)
