"""Small seeded networks, and a cache of each test's own."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

CNN, VIT = "test_resnet", "test_vit"  # timm's smallest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFNOMINAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OFFNOMINAL_ENGINE")
    return tmp_path / "cache" / "engines"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Seeded weights of a convolutional network and of a transformer."""
    found = {}
    for name in (CNN, VIT):
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        torch.manual_seed(0)
        save_file(timm.create_model(name, num_classes=0).state_dict(), path)
        found[name] = str(path)
    return found
