"""Weights that are not pretrained say so, and so does all that is made with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.seeded import CLIP_TINY, UNTRAINED, dinov2_vits14, save_clip, save_dinov2_vits14
from typer.testing import CliRunner

from offnominal import AnomalyDINO, load
from offnominal.backbones import load_backbone
from offnominal.backbones.mae import SHAPES, MaskedAutoencoder
from offnominal.backbones.weights import untrained_reason
from offnominal.benchmark.plan import Request, make_plan
from offnominal.benchmark.runner import Runner
from offnominal.benchmark.store import Store, read_runs
from offnominal.datasets import open_dataset
from offnominal.detectors.networks import untrained
from offnominal.detectors.registry import detector_class

pytestmark = pytest.mark.slow

WHY = "drawn at random from seeds"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("no: drawn at random from seed 0", "drawn at random from seed 0"),
        ("No", "as the file says"),
        ("false", "as the file says"),
        ("normalised on ImageNet", ""),
        ("yes", ""),
        ("", ""),
    ],
)
def test_what_a_file_says(said: str, reason: str) -> None:
    assert untrained_reason({"pretrained": said}) == reason
    assert untrained_reason({}) == ""


def test_every_kind_of_backbone_carries_it(tmp_path: Path, mobilenet: Path) -> None:
    clip, dinov2 = save_clip(tmp_path, CLIP_TINY, "tiny"), save_dinov2_vits14(tmp_path)
    network = load_backbone(None, clip)
    assert network.untrained == WHY
    assert network.at_levels([0]).untrained == WHY
    assert load_backbone("dinov2_vits14", dinov2).untrained == WHY
    assert load_backbone(None, mobilenet).untrained == ""
    assert load_backbone("builtin").untrained == ""


def test_masked_autoencoders_carry_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES["mae_vitb16"]._replace(dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1)
    monkeypatch.setitem(SHAPES, "mae_vitb16", shape)
    tensors = MaskedAutoencoder("x", shape).state_dict()
    save_file(tensors, tmp_path / "mae.safetensors", metadata=UNTRAINED)
    assert MaskedAutoencoder.load("mae_vitb16", tmp_path / "mae.safetensors").untrained == WHY


def test_a_saved_detector_still_knows(parts: Path, tmp_path: Path) -> None:
    weights = save_dinov2_vits14(tmp_path)
    good = sorted((parts / "fabric" / "train" / "good").iterdir())[:1]
    detector = AnomalyDINO(
        weights=str(weights), backbone="dinov2_vits14", resolution=56, mask="off"
    )
    assert untrained(detector) == WHY
    detector.fit(good).save(tmp_path / "m.offn")
    assert untrained(load(tmp_path / "m.offn", device="cpu")) == WHY
    # The same numbers in a file that says nothing.
    save_file(dinov2_vits14(), tmp_path / "silent.safetensors")
    silent = str(tmp_path / "silent.safetensors")
    assert untrained(load(tmp_path / "m.offn", silent, "cpu")) == ""


def test_learned_files_count_as_well(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "layers.safetensors", metadata={"pretrained": "no"})
    weights = str(save_clip(tmp_path, CLIP_TINY, "tiny"))
    kind = detector_class("april-gan")
    detector = kind(projections=tmp_path / "layers.safetensors", weights=weights)
    assert untrained(detector) == f"{WHY}; as the file says"


def test_cells_record_it_and_a_run_says_it_once(parts: Path, tmp_path: Path) -> None:
    weights = save_dinov2_vits14(tmp_path)
    dataset = open_dataset(parts, categories=["fabric"])
    asked: dict[str, Any] = {"methods": ("dn2", "anomalydino"), "seeds": 1}
    asked["backbones"] = (f"dn2:dinov2_vits14={weights}", "anomalydino:builtin")
    asked["sets"] = {"rotations": ["none"], "dn2:resolution": [56]}
    work = make_plan([dataset], Request(**asked, shots=(1, 2)))
    outcome = Runner(work, Store(tmp_path / "runs")).run()
    assert outcome.failed == []
    assert outcome.untrained == {f"dn2: {WHY}"}
    found = {cell.settings["method"]: cell.untrained for cell in read_runs(tmp_path / "runs")[0]}
    assert found == {"dn2": WHY, "anomalydino": ""}


def test_commands_say_so_once(parts: Path, tmp_path: Path) -> None:
    from offnominal.cli import app

    weights, model = save_dinov2_vits14(tmp_path), tmp_path / "m.offn"
    fabric = parts / "fabric"
    image = next((fabric / "test" / "good").iterdir())
    fit = ["--method", "dn2", "--backbone", "dinov2_vits14", "--resolution", 56]
    benchmark = ["--method", "dn2", "--backbone", f"dinov2_vits14={weights}", "--no-cache"]
    benchmark += ["--set", "resolution=56", "--seeds", 1, "-o", tmp_path / "runs"]
    for command, method in (
        (["fit", fabric / "train" / "good", *fit, "--weights", weights, "-o", model], ""),
        (["predict", model, image], ""),
        (["evaluate", model, fabric], ""),
        (["benchmark", "--data", fabric, *benchmark], "dn2: "),
    ):
        done = CliRunner().invoke(app, [str(word) for word in command])
        assert done.exit_code == 0, done.output
        assert done.output.count(f"weights not pretrained ({method}{WHY})") == 1
