"""What a station that cannot see says: nothing good of any part."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from offnominal.datasets.synthetic import draw_good
from offnominal.station.inspection.sight import CHECKS, Usual, look

Pixels = NDArray[np.uint8]
GOOD = [draw_good("part", 0, index) for index in range(6)]


@pytest.fixture(scope="module")
def usual() -> Usual:
    found = Usual.of([look(one) for one in GOOD])
    assert found is not None
    return found


def dark(pixels: Pixels) -> Pixels:
    return (0.3 * pixels).astype(np.uint8)


def bright(pixels: Pixels) -> Pixels:
    return np.clip(4.0 * pixels, 0, 255).astype(np.uint8)


def blurred(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(5)))


def moved(pixels: Pixels) -> Pixels:
    return np.roll(pixels, pixels.shape[1] // 3, axis=1)


def size(pixels: Pixels) -> Pixels:
    return pixels[:, :-8]


@pytest.mark.parametrize("harm", [dark, bright, blurred, moved, size])
def test_each_fault_is_called_by_its_name_and_can_be_switched_off(harm, usual: Usual) -> None:
    name = harm.__name__
    for one in GOOD[:3]:
        told = usual.fault(look(harm(one)))
        assert told.partition(":")[0] == name
        assert usual.fault(look(harm(one)), off=CHECKS) == ""
        assert usual.fault(look(harm(one)), off=[name]).partition(":")[0] != name


@pytest.mark.slow
def test_good_parts_and_defects_are_judged(usual: Usual) -> None:
    for index in range(6, 16):
        assert usual.fault(look(draw_good("part", 0, index))) == ""


def test_parts_that_lie_anywhere_are_not_said_to_have_moved() -> None:
    fabric = [draw_good("fabric", 0, index) for index in range(6)]
    found = Usual.of([look(one) for one in fabric])
    assert found is not None
    assert found.coarse is None
    assert found.fault(look(moved(fabric[0]))) == ""


def test_pictures_of_several_sizes_may_come_in_others() -> None:
    found = Usual.of([look(GOOD[0]), look(size(GOOD[1]))])
    assert found is not None
    assert found.size is None


def test_what_is_usual_is_kept_as_plain_values(usual: Usual) -> None:
    again = Usual.from_dict(usual.to_dict())
    assert again is not None
    assert again == usual
    assert Usual.from_dict(None) is None
    assert Usual.of([]) is None


def test_a_scan_and_a_picture_of_a_few_pixels_are_measured() -> None:
    scan = np.full((20, 20, 6), np.nan, np.float32)
    assert look(scan).brightness == 0
    assert look(np.full((2, 2, 3), 255, np.uint8)).sharpness == 0
