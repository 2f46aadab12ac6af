"""Neighbours, normals and FPFH: exact neighbours, degenerate clouds, and turns of a part."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from offnominal.errors import OptionError
from offnominal.scans.fpfh import describe, fpfh
from offnominal.scans.neighbours import nearest


def bowl(size: int = 48, missing: float = 0.05, pinhole: bool = True) -> NDArray[np.float32]:
    """A steep bowl with noise, half a metre away; its sides run nearly along the line of sight."""
    rng = np.random.default_rng(0)
    x, y = (np.mgrid[:size, :size][::-1] - (size - 1) / 2) / (1.2 * size)
    out = np.hypot(x, y) / 0.4
    z = 0.5 - 0.15 * np.sqrt(np.maximum(1 - out**2, 0)) + rng.normal(0, 2e-4, x.shape)
    depth = z if pinhole else np.full_like(z, 0.5)
    points = np.stack([x * depth, y * depth, z], 2)
    points[(out > 1) | (rng.random(x.shape) < missing)] = np.nan
    return points.astype(np.float32)


def turned(points: NDArray[Any], degrees: float) -> NDArray[Any]:
    """The part turned about an axis across the line of sight, through its middle."""
    turn = Rotation.from_rotvec([0, degrees, 0], degrees=True).as_matrix()
    middle = np.nanmean(points, (0, 1))
    return np.asarray((points - middle) @ turn.T + middle)


@pytest.mark.parametrize(
    "change", ["pinhole", "orthographic", "mirrored", "turned away", "on its side", "behind"]
)
def test_windows_find_the_exact_nearest(change: str) -> None:
    points = bowl(pinhole=change != "orthographic")
    if change == "mirrored":
        points = points[:, ::-1].copy()
    if change == "turned away":  # as after a calibration to a robot's coordinates
        points = np.add(turned(points, 140), [3, 2, 1]).astype(np.float32)
    if change == "on its side":
        points = points.transpose(1, 0, 2).copy()
    if change == "behind":
        points[..., 2] -= 1
    found = nearest(points, 60, 20)
    rows = points[np.isfinite(points).all(2)].astype(float)
    distance, _ = cKDTree(rows).query(rows, 61)
    squared = np.sort(found.squared, 1)
    np.testing.assert_allclose(np.sqrt(squared), distance[:, 1:], rtol=1e-4)
    own = ((rows[found.rows] - rows[:, None]) ** 2).sum(2)
    np.testing.assert_allclose(own, found.squared, rtol=1e-4)
    assert found.squared[:, :20].max(1).max() <= squared[:, 20].max()
    assert (found.squared[:, :20].max(1) <= found.squared[:, 20:].min(1)).all()


def test_cloud_without_a_grid_is_the_same() -> None:
    points = bowl(32)
    kept = np.isfinite(points).all(2)
    gridded = describe(points, count=40)[1][kept]
    cloud = describe(points[kept][None], count=40)[1][0]
    assert np.mean(np.abs(gridded - cloud).max(1) < 1e-2) > 0.98, "but for ties of distances"


def test_few_points_and_points_in_one_place() -> None:
    few = bowl(32)
    few[np.arange(32) != 15] = np.nan
    few[15, 18:] = np.nan
    directions, features = describe(few)
    there = np.asarray(np.isfinite(few).all(2))
    assert np.isfinite(features[there]).all()
    assert np.isfinite(directions[there]).all()
    same = np.repeat(few[there][:1], 20, 0)[None]
    directions, features = describe(same)
    np.testing.assert_array_equal(directions[0], [[0, 0, -1]] * 20)
    np.testing.assert_array_equal(features[0, :, 5::11], 100)  # pairs without a frame
    alone = np.full((8, 8, 3), np.nan, np.float32)
    alone[3, 3] = 1
    with pytest.raises(OptionError, match="1 points"):
        describe(alone)
    far = fpfh(few, np.full_like(few, 1), radius=1e-6)
    np.testing.assert_array_equal(far[there], 0)


def test_features_keep_when_a_part_is_turned() -> None:
    """Turned to the camera they keep; with signs as they fall the same place is another."""
    x, y = (np.mgrid[:40, :40][::-1] - 19.5) / 1000
    z = 0.5 - 0.018 * np.sqrt(1 - (x**2 + y**2) / 0.03**2) + 6e-4 * np.sin(300 * x)
    z += np.random.default_rng(0).normal(0, 1e-4, x.shape)
    points = np.stack([x, y, z], 2)
    away = turned(points, 29)
    moved = {}
    for orient in (True, False):
        before, after = (describe(each, orient)[1] for each in (points, away))
        moved[orient] = float(np.linalg.norm(before - after, axis=2).mean())
    assert moved[True] < 0.1 < 5 < moved[False]
