"""Plane removal, largest cluster and resizing: as the released preparation of MVTec 3D-AD did."""

import json
from pathlib import Path

import numpy as np
import pytest

from offnominal.scans.prepare import (
    largest_cluster,
    padded,
    plane_of_border,
    resized,
    without_plane,
)
from offnominal.scans.scan import Scan


@pytest.mark.parametrize("seed", [0, 3])
def test_plane_and_cluster(shared: Path, seed: int) -> None:
    folder = shared / "golden" / "threed"
    stored = np.load(folder / "preprocess.npz")
    said = json.loads((folder / "preprocess.json").read_text())
    xyz = stored["xyz"]
    scan = Scan(np.where((xyz != 0).all(2)[..., None], xyz, np.float32(np.nan)))
    assert scan.measured.sum() == said["valid"]
    plane = plane_of_border(scan, seed=seed)
    assert plane is not None
    # Theirs is fitted along z, ours across the plane: the noise of 0.2 mm is the difference.
    assert np.allclose(plane, said["planes"][seed], atol=1e-5)
    alone = without_plane(scan, plane)
    kept = np.unpackbits(stored["kept_after_plane"])[: xyz[..., 0].size].reshape(xyz.shape[:2])
    assert (alone.measured == kept.astype(bool)).all()
    square = Scan(padded(alone.points))
    assert list(square.points.shape) == said["padded_shape"]
    part = largest_cluster(square)
    kept = np.unpackbits(stored["kept_after_clustering"]).reshape(square.points.shape[:2])
    assert (part.measured == kept.astype(bool)).all()
    assert part.measured.sum() == said["part_pixels"]


def test_resizing() -> None:
    grid = np.arange(280 * 280).reshape(280, 280)
    wanted = [i * 280 // 224 for i in range(224)]
    assert (resized(grid, (224, 224)) == grid[np.ix_(wanted, wanted)]).all()
