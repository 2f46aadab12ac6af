"""Looks at an image: rotations as the reference code turns, and where each patch lies."""

import cv2
import numpy as np
import pytest

from offnominal.errors import OptionError
from offnominal.images import read_image
from offnominal.paths import find_images
from offnominal.rotations import AGNOSTIC_ANGLES, parse_rotations, rotate_image
from offnominal.views import (
    Flip,
    View,
    cropped_view,
    flipped,
    merge,
    patch_corners,
    quarter_turned,
    turned_back,
    unseen,
    whole_view,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", (0,)),
        ("agnostic", (0, 45, 90, 135, 180, 225, 270, 315)),
        ("0,90,180", (0, 90, 180)),
        ("90, 180", (0, 90, 180)),
        ("90,0", (0, 90)),
        ("-90,360,450", (0, 270, 90)),
        ("-1e-20", (0,)),
        ([30, 60.5], (0, 30, 60.5)),
        ((0,), (0,)),
        (AGNOSTIC_ANGLES, AGNOSTIC_ANGLES),
    ],
)
def test_parse_rotations(value, expected):
    angles = parse_rotations(value)
    assert angles == expected
    assert all(type(angle) is float for angle in angles)


@pytest.mark.parametrize("value", ["", "some", "0,,90", "nan", "0,inf", [], ["x"], None, 90])
def test_bad_rotations(value):
    with pytest.raises(OptionError, match=r"rotations=.*'none', 'agnostic' or degrees"):
        parse_rotations(value)


def test_no_rotation_is_the_same_image():
    image = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    assert rotate_image(image, 0.0) is image


@pytest.mark.parametrize("shape", [(40, 40, 3), (41, 60, 3), (60, 41)])
def test_half_a_turn_reverses_both_axes(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    turned = rotate_image(image, 180)
    assert turned.shape == shape
    assert turned.dtype == np.uint8
    # The reference turns about (w / 2, h / 2), half a pixel beside the middle of the pixel grid, so
    # half a turn also moves the picture by one pixel.
    np.testing.assert_array_equal(turned[1:, 1:], image[:0:-1, :0:-1])


def test_positive_angles_are_anticlockwise():
    image = np.zeros((101, 101, 3), np.uint8)
    image[45:55, 80:100] = 255
    turned = rotate_image(image, 90)
    assert turned[0:20, 45:55].mean() > 200
    assert turned[80:, 45:55].mean() < 1


def test_corners_are_filled_by_mirroring():
    image = np.full((60, 90, 3), 120, np.uint8)
    for angle in AGNOSTIC_ANGLES:
        assert (rotate_image(image, angle) == 120).all()


@pytest.mark.parametrize("angle", AGNOSTIC_ANGLES[1:])
def test_agrees_with_bilinear_sampling_of_the_mirrored_tile(tiles, angle):
    image = read_image(find_images([tiles / "train"])[7])
    height, width = image.shape[:2]
    turn = np.deg2rad(angle)
    rows, columns = np.mgrid[0:height, 0:width]
    x, y = columns - width / 2, rows - height / 2
    source_x = np.cos(turn) * x - np.sin(turn) * y + width / 2
    source_y = np.sin(turn) * x + np.cos(turn) * y + height / 2

    def mirrored(index, size):
        index = np.mod(index, 2 * size - 2)
        return np.where(index < size, index, 2 * size - 2 - index)

    left, top = np.floor(source_x).astype(int), np.floor(source_y).astype(int)
    expected = np.zeros(image.shape)
    for dy in (0, 1):
        for dx in (0, 1):
            weight_x = 1 - np.abs(source_x - left - dx)
            weight_y = 1 - np.abs(source_y - top - dy)
            pixels = image[mirrored(top + dy, height), mirrored(left + dx, width)]
            expected += pixels * (weight_x * weight_y)[..., None]
    # OpenCV samples at 1/32 of a pixel, in fixed point.
    error = np.abs(rotate_image(image, angle) - expected)
    assert error.mean() < 0.5
    assert error.max() < 16
    upright = cv2.absdiff(image, rotate_image(image, angle))
    assert upright.mean() > 4 * error.mean()


def view_of(image: np.ndarray) -> View:
    return whole_view(image, 64, 8, "square", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def spot(size: tuple[int, int], x: int, y: int) -> np.ndarray:
    """A black image with a bright square around a point."""
    image = np.zeros((*size, 3), np.uint8)
    image[y - 6 : y + 6, x - 6 : x + 6] = 255
    return image


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", ["", "rows", "columns"])
def test_a_turned_and_flipped_patch_is_traced_back(quarters: int, flip: Flip) -> None:
    image = spot((160, 240), 50, 110)
    view = quarter_turned(view_of(image), quarters)
    view = flipped(view, flip) if flip else view
    brightest = int(cv2.resize(view.pixels[0], (8, 8), interpolation=cv2.INTER_AREA).argmax())
    middle = patch_corners(view, (8, 8), brightest).mean(0)
    assert np.abs(middle - [50, 110]).max() <= 240 / 8


@pytest.mark.parametrize("angle", [30.0, 90.0, 225.0])
def test_a_patch_of_a_rotated_image_is_traced_back(angle: float) -> None:
    image = spot((160, 240), 90, 70)
    view = turned_back(view_of(rotate_image(image, angle)), (160, 240), angle)
    brightest = int(cv2.resize(view.pixels[0], (8, 8), interpolation=cv2.INTER_AREA).argmax())
    middle = patch_corners(view, (8, 8), brightest).mean(0)
    assert np.abs(middle - [90, 70]).max() <= 240 / 8
    assert not view.upright


def test_views_of_one_window_are_averaged_and_turned_back() -> None:
    plain = view_of(spot((160, 240), 50, 110))
    mirrored = flipped(plain, "columns", upright=True)
    grid = np.arange(64, dtype=np.float32).reshape(8, 8)
    merged, window = merge([plain, mirrored], [grid, grid[:, ::-1] + 2])
    np.testing.assert_array_equal(merged, grid + 1)
    assert window is None


def test_a_single_flipped_view_is_turned_back() -> None:
    mirrored = flipped(view_of(spot((160, 240), 50, 110)), "rows", upright=True)
    grid = np.arange(64, dtype=np.float32).reshape(8, 8)
    merged, window = merge([mirrored], [grid])
    np.testing.assert_array_equal(merged, grid[::-1])
    assert window is None


BLACK = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.mark.parametrize("size", [(237, 224), (224, 237), (2370, 2240), (100, 350), (9, 8)])
def test_whole_patches_cover_the_image_to_its_edges(size: tuple[int, int]) -> None:
    view = whole_view(np.zeros((*size, 3), np.uint8), 224, 14, "short", *BLACK)
    assert unseen([view], size) is None
    assert view.window is None
    np.testing.assert_allclose(patch_corners(view, (1, 1), 0)[2], size[::-1])


def test_a_crop_says_what_it_leaves_out() -> None:
    black = np.zeros((2370, 2240, 3), np.uint8)
    view = whole_view(black, 224, 14, "crop", *BLACK)
    assert view.window is None
    told = "the last 130 rows of a picture of 2240 x 2370 are not inspected"
    assert unseen([view], (2370, 2240)) == told
    black = np.zeros((300, 400, 3), np.uint8)
    middle = cropped_view(black, (256, 341), (16, 58, 224, 224), *BLACK)
    assert unseen([middle], (300, 400)) == (
        "the first 19 rows, the last 19 rows, the first 69 columns and the last 70 columns of a "
        "picture of 400 x 300 are not inspected"
    )
