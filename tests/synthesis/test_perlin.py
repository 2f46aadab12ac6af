from pathlib import Path

import cv2
import numpy as np
import pytest

from offnominal.errors import OptionError
from offnominal.synthesis.perlin import perlin_defect, perlin_mask, perlin_noise
from offnominal.synthesis.textures import Textures


def test_noise_is_zero_at_the_lattice_and_needs_no_even_division() -> None:
    angles = np.random.default_rng(0).uniform(0, 7, (4, 6))
    noise = perlin_noise((30, 50), (3, 5), angles)
    np.testing.assert_allclose(noise[::10, ::10], 0, atol=1e-12)
    np.testing.assert_allclose(perlin_noise((31, 50), (3, 5), angles)[0], noise[0])


def test_a_defect_stays_in_its_mask_and_on_the_part_and_without_colour_where_there_is_none() -> (
    None
):
    rng, textures = np.random.default_rng(0), Textures()
    grey = np.repeat(rng.integers(90, 110, (64, 80, 1), dtype=np.uint8), 3, 2)
    within = np.zeros((64, 80), bool)
    within[16:48, 10:70] = True
    for _ in range(8):
        made, mask = perlin_defect(grey, rng, textures, within)
        assert mask.any()
        assert not (mask & ~within).any()
        assert (made[~mask] == grey[~mask]).all()
        assert (made[mask] != grey[mask]).any()
        assert (made == made[..., :1]).all()
    coloured = grey + np.array([0, 10, 20], np.uint8)
    assert np.ptp(perlin_defect(coloured, rng, textures)[0].astype(int), axis=2).max() > 20
    again = [perlin_defect(grey, np.random.default_rng(5), textures)[0] for _ in range(2)]
    assert (again[0] == again[1]).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 200, 3), (17, 31, 3)])
@pytest.mark.slow
def test_small_and_narrow_images(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    for _ in range(8):
        made, mask = perlin_defect(image, rng, Textures())
        assert (made.shape, mask.shape) == (shape, shape[:2])
    assert 0 < np.mean([perlin_mask(64, 64, rng).mean() for _ in range(20)]) < 0.3


def test_textures_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--textures"):
        Textures(tmp_path)
    cv2.imwrite(str(tmp_path / "red.png"), np.full((20, 30, 3), (0, 0, 200), np.uint8))
    drawn = Textures(tmp_path).draw(40, 50, np.random.default_rng(0))
    assert (drawn.shape, drawn.dtype) == ((40, 50, 3), np.uint8)


def test_a_texture_that_cannot_be_read_makes_room_for_another(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(OptionError, match=r"--textures .*cannot be read, such as .*broken\.png"):
        Textures(tmp_path).draw(8, 8, np.random.default_rng(0))
    cv2.imwrite(str(tmp_path / "whole.png"), np.full((9, 9, 3), 7, np.uint8))
    for seed in range(4):
        assert Textures(tmp_path).draw(8, 8, np.random.default_rng(seed)).shape == (8, 8, 3)
