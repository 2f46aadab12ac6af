"""The painter: its size, its file, its training, and what it paints."""

from pathlib import Path

import numpy as np
import pytest

from offnominal.errors import ModelFileError, OptionError
from offnominal.synthesis.diffusion import Painter
from offnominal.synthesis.painter_file import learn, open_painter
from offnominal.synthesis.seeds import Seed, cut_seeds


@pytest.fixture(scope="module")
def seeds() -> list[Seed]:
    image = np.random.default_rng(0).integers(90, 110, (80, 100, 3), dtype=np.uint8)
    mask = np.zeros((80, 100), bool)
    mask[30:44, 30:60] = mask[60:72, 70:80] = True
    image[mask] //= 3
    return cut_seeds(image, mask)


def test_the_full_network_is_small() -> None:
    assert sum(each.numel() for each in Painter([]).parameters()) < 5_000_000


@pytest.mark.slow
def test_broken_off_and_gone_on_with_it_ends_with_the_same_bytes(
    tmp_path: Path, seeds: list[Seed]
) -> None:
    def stop(stage: str, done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    painter = learn(whole, seeds, 3, width=8)
    with pytest.raises(KeyboardInterrupt):
        learn(parts, seeds, 3, width=8, progress=stop)
    assert not parts.exists()
    learn(parts, seeds, 3, width=8)
    assert whole.read_bytes() == parts.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, parts.name}

    image = np.random.default_rng(1).integers(60, 80, (70, 90, 3), dtype=np.uint8)
    on = np.zeros((70, 90), bool)
    on[5:65, 5:85] = True
    made, mask = painter(image, np.random.default_rng(2), on)
    again, _ = open_painter(whole)(image, np.random.default_rng(2), on)
    assert (made == again).all()
    assert ((made != image).any(-1) == mask).all()
    assert mask.any()
    assert not (mask & ~on).any()


def test_files_that_are_none(tmp_path: Path, seeds: list[Seed]) -> None:
    path = tmp_path / "p.safetensors"
    learn(path, seeds, 1, width=8)
    path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    with pytest.raises(ModelFileError, match=r"p\.safetensors: damaged.*train anew"):
        open_painter(path)
    with pytest.raises(OptionError, match=r"ends in \.safetensors"):
        learn(tmp_path / "p.offn", seeds, 1, width=8)
    with pytest.raises(OptionError, match="--steps 0: give 1 or more"):
        learn(path, seeds, 0, width=8)
