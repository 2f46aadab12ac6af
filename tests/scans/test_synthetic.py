"""Made scans: that the truth is true, the camera errs as it should, and what the files hold."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.cli.conftest import offnominal, passed

from offnominal.errors import DatasetError, OptionError
from offnominal.scans.shapes import SHAPES
from offnominal.scans.synthetic import DEFECTS, draw_scan, write_scans

SMALL = 96


@pytest.mark.parametrize("shape", SHAPES)
def test_a_damage_is_as_deep_as_was_asked_for(shape: str) -> None:
    for defect, sign in (("dent", -1), ("extra", 1)):
        made = draw_scan(shape, 0, 3, defect, 1.5, 0, 128)
        depth = made.depth[made.mask]
        assert made.mask.any()
        assert not made.mask.all()
        # Along the view's axis; where a wire moved, what lies behind it comes into sight.
        near = np.abs(depth) < 4
        assert np.sign(np.median(depth[near])) == sign
        assert 0.8 < np.abs(depth[near]).max() < 3.5
        assert (made.depth[~made.mask] == 0).all()
        assert made.depth_mm == 1.5


def test_the_points_without_noise_are_the_good_ones_moved_by_the_truth() -> None:
    made = draw_scan("plate", 5, 2, "dent", 2.0, 0, SMALL)
    there = made.scan.measured & ~made.mask
    # On the table, which is a plane, nothing but the plane is there.
    z, y, x = made.scan.points[..., 2], made.scan.points[..., 1], made.scan.points[..., 0]
    border = np.zeros_like(there)
    border[:8], border[-8:] = True, True
    rows = there & border
    fit = np.column_stack([x[rows], y[rows], np.ones(rows.sum())]).astype(float)
    away = fit @ np.linalg.lstsq(fit, z[rows], rcond=None)[0] - z[rows]
    assert np.abs(away).max() < 2e-5
    assert 0.25 < np.nanmin(z) < np.nanmax(z) < 0.4
    low = made.depth.min()
    assert -2.1 < low < -1.7


def test_noise_grows_with_the_square_of_the_distance_and_misses_points() -> None:
    clean = draw_scan("bottle", 0, 0, noise_mm=0, size=160).scan
    noisy = draw_scan("bottle", 0, 0, noise_mm=0.2, size=160).scan
    both = clean.measured & noisy.measured
    z = clean.points[..., 2][both]
    error = 1000 * (noisy.points[..., 2][both] - z)
    assert error.std() == pytest.approx(0.2 * np.mean((z / 0.3) ** 2), rel=0.05)
    assert 0.005 < noisy.missing / noisy.measured.size < 0.1
    assert np.isnan(noisy.points[~noisy.measured]).all()


def test_a_stain_is_in_colour_alone() -> None:
    made = draw_scan("plate", 0, 1, "stain", 1, 0.1, SMALL)
    assert (made.depth == 0).all()
    assert made.scan.colour is not None
    brightness = made.scan.colour.mean(2)
    assert brightness[made.mask].mean() < 0.8 * np.median(brightness[brightness > 100])


def test_a_spring_hangs_free() -> None:
    scan = draw_scan("spring", 0, 0, size=SMALL).scan
    assert scan.missing > 0.8 * scan.measured.size


def test_the_same_seed_gives_the_same_scan_and_another_one_another() -> None:
    one, same, other = (draw_scan("plate", seed, 4, "bump", size=48) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.scan.as_array(), same.scan.as_array())
    assert one.scan.colour is not None
    assert (one.scan.colour != other.scan.colour).mean() > 0.5


def test_the_command_writes_the_layout(tmp_path: Path) -> None:
    few = ("--size", 32, "--train", 1, "--test", 1, "--defective", 2, "--depth", 1, "--depth", 3)
    more = ("--noise", 0.05, "--shape", "plate")
    said = passed(offnominal("datasets", "synthetic-scans", tmp_path / "set", *few, *more))
    assert "wrote 14 scans" in said
    home = tmp_path / "set" / "plate"
    points = tifffile.imread(home / "test" / "dent" / "xyz" / "001.tiff")
    assert points.shape == (32, 32, 3)
    assert points.dtype == np.float32
    assert (points == 0).all(2).any()
    assert not np.isnan(points).any()
    mask = np.asarray(Image.open(home / "test" / "dent" / "gt" / "001.png"))
    assert set(np.unique(mask)) == {0, 255}
    assert not np.asarray(Image.open(home / "test" / "good" / "gt" / "000.png")).any()
    assert Image.open(home / "train" / "good" / "rgb" / "000.png").size == (32, 32)
    rows = (home / "truth.csv").read_text().splitlines()
    assert "test/dent/xyz/001.tiff,dent,3.0" in rows
    assert "test/stain/xyz/000.tiff,stain,0.0" in rows
    assert len(rows) == 3 + 2 * len(DEFECTS)
    with pytest.raises(DatasetError, match="exists already"):
        write_scans(tmp_path / "set", 1, 0, 0)
    assert (
        "plate, bottle" in offnominal("datasets", "synthetic-scans", "x", "--shape", "nut").stderr
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"shape": "cube"}, "plate, bottle, spring"),
        ({"defect": "rust"}, "dent, bump"),
        ({"depth_mm": 0}, "more than 0"),
        ({"noise_mm": -1}, "0 to 5"),
        ({"size": 8}, "32 to 1024"),
        ({"seed": -1}, "negative"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        draw_scan(**({"shape": "plate", "seed": 0, "index": 0} | given))  # type: ignore[arg-type]
