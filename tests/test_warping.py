"""Affine maps and warps, against OpenCV's."""

import cv2
import numpy as np
import pytest

from offnominal.warping import inverse, rotation, through, warp

# What the processor and the installed OpenCV give to the bit, others by a last grey level.
FUSED = cv2.__version__ >= "5" and cv2.checkHardwareSupport(11)  # AVX2


def check(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    apart = np.abs(found.astype(int) - wanted)
    assert apart.max() <= (1 if cv2.__version__ >= "5" else 16)  # noise, the worst there is
    if FUSED:
        assert np.count_nonzero(apart) <= max(1, 1e-5 * apart.size)


@pytest.mark.parametrize("size", [(64, 64), (97, 133), (130, 61), (9, 50), (13, 8), (301, 257)])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_a_turned_image_is_opencvs(size: tuple[int, int], channels: int | None) -> None:
    shape = size if channels is None else (*size, channels)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    height, width = size
    for angle in (45, 90, 135, 180, 225, 270, 315, 0.01, 33.3, -17.7, 359):
        matrix = rotation((width / 2, height / 2), angle)
        wanted = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
        np.testing.assert_array_equal(matrix, wanted)
        np.testing.assert_array_equal(inverse(matrix), cv2.invertAffineTransform(wanted))
        turned = cv2.warpAffine(image, wanted, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        check(warp(image, matrix, (width, height)), turned.reshape(shape))


@pytest.mark.parametrize("border", ["mirror", "repeat"])
def test_a_piece_that_reaches_far_beyond_the_image(border: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    corners = np.array([[-70.0, -9.5], [20.5, -30.0], [41.0, 55.25]])
    target = np.array([[-0.5, -0.5], [76.5, -0.5], [76.5, 50.5]])
    matrix = through(corners, target)
    wanted = cv2.getAffineTransform(corners.astype(np.float32), target.astype(np.float32))
    np.testing.assert_allclose(matrix, wanted, atol=1e-9)
    there = {"mirror": cv2.BORDER_REFLECT_101, "repeat": cv2.BORDER_REPLICATE}[border]
    found = warp(image, matrix, (77, 51), "mirror" if border == "mirror" else "repeat")
    check(found, cv2.warpAffine(image, matrix, (77, 51), borderMode=there))


def test_an_image_of_one_row_and_a_view_of_an_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    row = image[:1]
    down = np.array([[1.0, 0, 0], [0, 1, 2]])
    assert (warp(row, down, (30, 5)) == row).all()
    matrix = rotation((15, 20), 30)
    view = image[::-1, :, ::-1]
    np.testing.assert_array_equal(warp(view, matrix, (30, 40)), warp(view.copy(), matrix, (30, 40)))
