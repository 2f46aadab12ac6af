"""Pictures of scans: their scale, what is missing in them, and clouds seen from far away."""

import numpy as np
import pytest

from offnominal.errors import OptionError
from offnominal.scans import draw
from offnominal.scans.scan import Scan


def table(size: int = 64, dent: float = 0.0, tilt: float = 0.0, at: float = 0.3) -> Scan:
    """A plane at a distance, in metres, with a dent in its middle."""
    slope = (np.arange(size) - size / 2 + 0.5) / size * 0.4
    x, y = np.meshgrid(slope, slope)
    radius = np.hypot(x, y) / 0.1
    z = at / (1 - tilt * x) + dent * np.clip(1 - radius, 0, 1)
    return Scan(np.dstack([x * z, y * z, z]).astype(np.float32))


def test_a_grey_level_is_the_same_depth_in_every_scan() -> None:
    flat, dented = draw.depth_picture(table()), draw.depth_picture(table(dent=0.01))
    assert (flat == 128).all()
    # 10 mm of a reach of 40 mm, on 127.5 levels, darker since it is farther away.
    assert flat[0, 0, 0] - dented[32, 32].max() == pytest.approx(0.01 / 0.04 * 127.5, abs=2)
    assert (dented[0] == 128).all()
    nearer = draw.depth_picture(table(dent=0.01, at=0.31))
    np.testing.assert_array_equal(nearer, dented)
    wide = draw.depth_picture(table(dent=0.01), reach=0.02)
    assert int(flat[0, 0, 0]) - int(wide[32, 32, 0]) == pytest.approx(0.01 / 0.02 * 127.5, abs=3)


def test_heights_do_not_see_the_tilt() -> None:
    tilted = draw.height_picture(table(dent=0.01, tilt=0.3))
    flat = draw.height_picture(table(dent=0.01))
    assert np.abs(tilted.astype(int) - flat).max() <= 3
    assert np.ptp(draw.depth_picture(table(tilt=0.3))) > 50


def test_the_plane_is_the_one_that_most_points_lie_on() -> None:
    scan = table(tilt=0.1)
    raised = scan.points.copy()
    raised[10:40, 10:50, 2] -= 0.02  # 29 per cent of the points
    normal, offset = draw.plane(raised[scan.measured])
    away = raised @ normal - offset
    assert np.abs(away[50:]).max() < 2e-3
    assert away[20:30, 20:30].mean() == pytest.approx(0.02, abs=2e-3)


def test_normals_have_a_fixed_scale() -> None:
    picture = draw.normals_picture(table())
    assert np.abs(picture.astype(int) - [128, 128, 255]).max() <= 1
    tilted = draw.normals_picture(table(tilt=0.5))
    expected = 127.5 + 127.5 * 0.5 / np.sqrt(1.25)
    assert np.abs(tilted[5:-5, 5:-5, 0] - expected).max() < 12  # x and z of a cone of rays
    assert tilted[32, 32, 1] == pytest.approx(128, abs=1)


@pytest.mark.parametrize("modality", ["depth", "height", "normals"])
def test_a_missing_point_is_no_edge(modality: str) -> None:
    whole = table(tilt=0.2, dent=0.003)
    points = whole.points.copy()
    points[20:26, 40:47] = np.nan
    points[:, 0] = np.nan
    there, filled = draw.drawn(whole, modality), draw.drawn(Scan(points), modality)
    assert np.abs(there.astype(int) - filled).max() <= 8
    none = np.full_like(points, np.nan)
    none[30, 30] = points[30, 30]
    assert np.ptp(draw.drawn(Scan(none), modality)[..., 0]) == 0


def test_what_is_missing_shows_in_the_relief_and_stands_apart() -> None:
    points = table().points.copy()
    points[10:20, 10:20] = np.nan
    picture = draw.relief(Scan(points)).astype(int)
    hole = picture[11:19, 11:19]
    assert (hole[..., 2] > hole[..., 0] + 20).all(), "blue"
    assert (picture[30:, 30:, 0] > picture[30:, 30:, 2]).all(), "paper"


def test_colour_is_asked_for_where_there_is_none() -> None:
    with pytest.raises(OptionError, match="choose depth, height or normals"):
        draw.drawn(table(), "colour")
    with pytest.raises(OptionError, match="choose colour"):
        draw.drawn(table(), "heat")
    with pytest.raises(OptionError, match="fpfh"):
        draw.drawn(Scan(table().points.reshape(1, -1, 3)), "depth")


def test_of_a_cloud_the_nearest_points_are_seen() -> None:
    rng = np.random.default_rng(0)
    ball = rng.standard_normal((1, 4000, 3)).astype(np.float32)
    ball /= np.linalg.norm(ball, axis=2, keepdims=True)
    index = draw.projected(ball, 96)
    assert index.shape == (96, 96)
    assert (index[:12, :12] == -1).all(), "round"
    assert (index[28:68, 28:68] >= 0).mean() > 0.99, "hardly a gap between the points"
    assert (ball[0, index[28:68, 28:68], 2] < 0).mean() > 0.97, "the far side is hidden"
    assert (index[48, 20], index[20, 48]) != (-1, -1)
    left = ball[0, index[48, 6:14]]
    assert (left[:, 0] < -0.6).all(), "x to the right"
    picture, scores = draw.shown_with(Scan(ball), ball[..., 0])
    assert picture.shape == (512, 512, 3)
    assert 0.5 < np.median(scores[236:276, 380:420]) < 0.75, "x = 0.6"
    assert scores[0, 0] == ball[..., 0].min()
