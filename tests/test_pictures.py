"""Colours, outlines and sizes of pictures."""

import cv2
import numpy as np
import pytest

from offnominal.pictures import DARK, colour_map, outline, overlay, resized, stroked

BRIGHT = (0, 230, 255)


def test_the_colours_are_those_of_inferno() -> None:
    levels = np.arange(256, dtype=np.float32)[None].repeat(3, 0)
    wanted = cv2.applyColorMap(levels.astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    np.testing.assert_array_equal(colour_map(levels, 0, 255), wanted)
    np.testing.assert_array_equal(colour_map(levels - 999, 0, 255), wanted[:, :1].repeat(256, 1))


def test_heat_lies_where_the_map_is_above_the_lowest_value() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    heat = np.zeros((40, 60), np.float32)
    heat[10:20, 10:20] = 2
    drawn = overlay(image, heat, 0.5, 1.5)
    changed = (drawn != image).any(-1)
    assert changed[10:20, 10:20].mean() > 0.9
    assert not changed[heat == 0].any()
    half = image[10:20, 10:20] / 2
    assert (np.abs(drawn[10:20, 10:20] - half - (drawn[10, 10] - half[0, 0])) <= 1.5).all()


def test_a_line_runs_around_regions_and_not_around_their_holes() -> None:
    image = np.full((80, 100, 3), 128, np.uint8)
    mask = np.zeros((80, 100), bool)
    mask[10:70, 10:70] = True
    mask[30:50, 30:50] = False  # a hole, and a region in it, which lies in the other one
    mask[38:42, 38:42] = True
    mask[75, 90] = True  # a single pixel
    mask[0, 80:] = True  # along the image's border
    drawn = stroked(image, mask, [(4, DARK), (2, BRIGHT)])
    edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    assert (drawn[10, 10:70] == BRIGHT).all()
    assert (drawn[10:70, 69] == BRIGHT).all()
    assert (drawn[0, 80:] == BRIGHT).all()
    assert (drawn[75, 90] == BRIGHT).all()
    assert (drawn[8, 20:60] == DARK).all()
    assert (drawn[12, 20:60] == DARK).all()
    assert (drawn[15:65, 15:65] == 128).all(), "neither the hole nor what is in it"
    far = cv2.dilate(edge.astype(np.uint8), np.ones((9, 9))) == 0
    assert (drawn[far] == 128).all()
    assert (image == 128).all(), "a copy is drawn on"
    assert len(np.unique(drawn[66:75, 66:80].reshape(-1, 3), axis=0)) > 3, "its edges are soft"
    np.testing.assert_array_equal(outline(image, np.zeros((80, 100), bool)), image)


@pytest.mark.parametrize("size", [(33, 57), (200, 311), (90, 40), (120, 90)])
def test_maps_and_pictures_of_another_size(size: tuple[int, int]) -> None:
    y, x = np.mgrid[:90, :120].astype(np.float32)
    slope = x + 2 * y
    for exact in (False, True):
        found = resized(slope, size, exact=exact)
        assert found.shape == size[::-1]
        assert found.dtype == np.float32
        assert found.min() >= 0
        assert found.max() <= slope.max()
        assert found.mean() == pytest.approx(slope.mean(), rel=0.01)
    image = slope[..., None].repeat(3, 2).clip(0, 255).astype(np.uint8)
    picture = resized(image, size)
    assert picture.shape == (*size[::-1], 3)
    assert picture.flags.writeable or picture is image
    assert picture.mean() == pytest.approx(image.mean(), abs=2)


def test_not_one_pixel_of_a_map_is_left_out() -> None:
    rng = np.random.default_rng(0)
    for place in rng.integers(0, (90, 120), (50, 2)):
        dot = np.zeros((90, 120), np.float32)
        dot[tuple(place)] = 1
        assert resized(dot, (41, 37), exact=True).max() > 0.05
