"""Each kind of synthetic defect: what it changes, where, and that it does so again."""

import numpy as np
import pytest
from numpy.typing import NDArray

from offnominal.datasets.synthetic import draw_defective, draw_good, object_mask
from offnominal.synthesis.exact import exact
from offnominal.synthesis.kinds import KINDS, Draw, Kind, drawer
from offnominal.synthesis.nsa import nsa
from offnominal.synthesis.seeds import Seed, cut_seeds

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
DRAWN = [kind for kind in KINDS if kind != "diffusion"]


@pytest.fixture(scope="module")
def part() -> tuple[Image, Mask]:
    return draw_good("part", 0, 0), object_mask("part", 0, 0)


@pytest.fixture(scope="module")
def seeds() -> list[Seed]:
    drawn = [draw_defective("part", 0, index, "rust") for index in range(2)]
    return [seed for image, mask, _ in drawn for seed in cut_seeds(image, mask)]


def maker(kind: Kind, seeds: list[Seed]) -> Draw:
    other = draw_good("part", 0, 1), object_mask("part", 0, 1)
    return drawer(kind, None, lambda rng: other, seeds)


@pytest.mark.parametrize("kind", DRAWN)
def test_a_defect_is_on_the_object_and_its_mask_is_what_changed(
    kind: Kind, part: tuple[Image, Mask], seeds: list[Seed]
) -> None:
    image, on = part
    before, draw = image.copy(), maker(kind, seeds)
    found = [draw(image, np.random.default_rng([5, n]), on) for n in range(3)]
    assert (image == before).all(), "the good image is left as it is"
    assert any(mask.any() for _, mask in found)
    for made, mask in found:
        assert ((made != image).any(-1) == mask).all()
        assert not (mask & ~on).any()
    again, _ = draw(image, np.random.default_rng([5, 0]), on)
    assert (again == found[0][0]).all()
    assert (found[1][0] != found[0][0]).any()


@pytest.mark.parametrize("kind", DRAWN)
def test_without_an_object_and_in_narrow_images(kind: Kind, seeds: list[Seed]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 60, 3), dtype=np.uint8)
    made, mask = maker(kind, seeds)(image, np.random.default_rng(1), None)
    assert made.shape == image.shape
    assert ((made != image).any(-1) == mask).all()


def test_what_does_not_show_is_no_defect() -> None:
    image = np.full((40, 40, 3), 100, np.uint8)
    made = image.copy()
    made[5:15, 5:15] += 3  # faint
    made[2, 30] += 90  # a speck, smoothed away
    made[20:30, 20:30] += 20
    made[25, 25] = 100  # alike by chance
    kept, mask = exact(image, made)
    there = np.zeros((40, 40), bool)
    there[20:30, 20:30] = True
    assert (mask == there).all()
    assert ((kept != image).any(-1) == mask).all()
    assert np.abs(kept[25, 25].astype(int) - 100).max() == 1


def test_nsa_leaves_an_image_alone_where_there_is_no_object() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    nowhere = np.zeros((64, 64), bool)
    made, mask = nsa(image, image[::-1].copy(), np.random.default_rng(0), nowhere, nowhere)
    assert (made == image).all()
    assert not mask.any()


def test_defects_are_cut_out_one_by_one_and_know_the_edges_they_touch() -> None:
    image = np.zeros((80, 100, 3), np.uint8)
    mask = np.zeros((80, 100), bool)
    mask[:10, 20:30] = mask[40:60, 60:64] = True
    mask[40:60, 67:70] = True  # three pixels beside it: the same defect
    mask[70, 5] = True  # a crumb
    one, two = cut_seeds(image, mask)
    assert one.edges == (True, False, False, False)
    assert two.edges == (False, False, False, False)
    assert (one.mask.sum(), two.mask.sum()) == (100, 140)
    assert one.image.shape[:2] == one.mask.shape


def test_a_defect_at_an_edge_stays_at_one(seeds: list[Seed]) -> None:
    image = np.random.default_rng(0).integers(90, 110, (90, 120, 3), dtype=np.uint8)
    broken = image.copy()
    broken[:12, 40:60] = 20
    mask = np.zeros((90, 120), bool)
    mask[:12, 40:60] = True
    draw = drawer("seeds", seeds=cut_seeds(broken, mask))
    for number in range(4):
        _, found = draw(image, np.random.default_rng(number), None)
        assert found[0].any() or found[-1].any()
        assert not found[20:70].any()


def test_a_defect_is_as_bright_as_its_place_makes_it() -> None:
    # Half as bright as what is around it, on a bright surface: so it is on a dark one.
    bright, dark = np.full((80, 80, 3), 200, np.uint8), np.full((80, 80, 3), 100, np.uint8)
    mask = np.zeros((80, 80), bool)
    mask[30:50, 30:50] = True
    defect = bright.copy()
    defect[mask] = 100
    draw = drawer("seeds", seeds=cut_seeds(defect, mask))
    for number in range(4):
        made, found = draw(dark, np.random.default_rng(number), None)
        # Between a fifth fainter and a quarter stronger than 50 below what is around it.
        assert 100 - 50 * 1.25 - 2 < np.median(made[found]) < 100 - 50 * 0.8 + 2
