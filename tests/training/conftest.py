"""What all trainings are tested with."""

from pathlib import Path

import pytest
from tests.training.material import save_gabor_clip, write_half

from offnominal.datasets import open_dataset
from offnominal.datasets.dataset import Dataset


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gabor_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def small(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("data") / "tiles"
    return open_dataset(write_half(tiles, root, half=0, each=4))
