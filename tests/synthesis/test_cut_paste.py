import numpy as np
import pytest

from offnominal.synthesis.copies import altered_copies
from offnominal.synthesis.cut_paste import KINDS, Kind, cut_paste
from offnominal.synthesis.sizes import CELLS, SHARES, make_defect


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", SHARES.values())
def test_a_piece_of_the_size_that_was_asked_for_is_pasted_and_shows(
    kind: Kind, share: float
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    before = image.copy()
    made, mask = cut_paste(image, kind, share, np.random.default_rng(1))
    assert (image == before).all(), "the good image is left as it is"
    assert (made[~mask] == image[~mask]).all()
    assert mask.mean() == pytest.approx(share, rel=0.35)
    assert np.abs(made[mask].astype(float) - image[mask]).mean() >= 8


def test_the_same_draw_gives_the_same_defect() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    for cell in CELLS:
        one, two, other = (make_defect(image, cell, draw)[0] for draw in (0, 0, 1))
        assert (one == two).all()
        assert (one != other).any()


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 200, 3), (200, 2, 3), (17, 31, 3)])
def test_small_and_narrow_images(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for cell in CELLS:
        made, mask = make_defect(image, cell, 0)
        assert made.shape == shape
        assert mask.shape == shape[:2]
    for copy in altered_copies(image).values():
        assert (copy.shape, copy.dtype) == (shape, np.uint8)


def test_nothing_can_be_made_of_a_blank_image() -> None:
    blank = np.zeros((64, 64, 3), np.uint8)
    made, mask = make_defect(blank, CELLS[0], 0)
    assert not mask.any()
    assert (made == blank).all()
