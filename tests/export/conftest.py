"""A small network and good parts for exported models."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="package")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seeded weights of timm's smallest residual network."""
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return str(path)


@pytest.fixture(scope="package")
def good(parts: Path) -> list[Path]:
    """Six pictures of a flange."""
    return sorted((parts / "part" / "train" / "good").iterdir())
