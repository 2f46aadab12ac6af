"""Reverse distillation and EfficientAD, narrow and short; a teacher from any backbone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.seeded import UNTRAINED
from typer.testing import CliRunner

from offnominal import load, load_backbone
from offnominal.backbones.builtin import Builtin
from offnominal.backbones.pdn import SIZES, PatchDescriber, PatchDescription
from offnominal.cli import app
from offnominal.detectors.teacher_student.efficientad import EfficientAD
from offnominal.detectors.teacher_student.efficientad_parts import (
    Autoencoder,
    jitter,
    loss_parts,
    scaled_map,
)
from offnominal.detectors.teacher_student.reverse_distillation import (
    ReverseDistillation,
    distillation_loss,
)
from offnominal.detectors.teacher_student.teacher import TeacherRecipe, teach
from offnominal.errors import ImageError, OptionError, WeightsError


@pytest.fixture(scope="module")
def good() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(90, 140, (72, 80, 3), dtype=np.uint8) for _ in range(12)]


@pytest.fixture(scope="module")
def folder(good: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("anything")
    for number, image in enumerate(good[:6]):
        Image.fromarray(image).save(path / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow one that knows nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    network = PatchDescription("pdn_small", 8, 0.05)
    save_file(network.state_dict(), path, UNTRAINED | {"model": "pdn_small"})
    return path


def same_again(detector: Any, path: Path, image: np.ndarray) -> None:
    detector.save(path)
    [one], [other] = detector.predict(image), load(path, device="cpu").predict(image)
    assert one.score == other.score
    np.testing.assert_array_equal(one.patch_scores, other.patch_scores)


@pytest.mark.slow
def test_reverse_distillation(good: list[np.ndarray], tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "small.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), weights, UNTRAINED)
    options: dict[str, Any] = {"backbone": "test_resnet", "weights": str(weights)}
    options |= {"resolution": 64, "batch": 2}
    detector = ReverseDistillation(**options, steps=5, device="cpu").fit(good, synthetic=False)
    assert detector.losses[-1]["total"] < detector.losses[0]["total"]
    same_again(detector, tmp_path / "a.offn", good[0])
    with pytest.raises(OptionError, match="multiple of 32"):
        ReverseDistillation(**options | {"resolution": 72})
    with pytest.raises(OptionError, match="strides 4, 8 and 16"):
        ReverseDistillation(**options, layers=(2, 3), steps=1, device="cpu").fit(good)


def test_whole_weighs_positions_by_the_teachers_strength() -> None:
    teacher = torch.tensor([[3.0, 1.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
    decoded = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)  # right, then wrong
    assert distillation_loss([teacher], [decoded], "position").item() == pytest.approx(0.5)
    assert distillation_loss([teacher], [decoded], "whole").item() == pytest.approx(0.1)


@pytest.mark.slow
def test_efficientad(good: list[np.ndarray], folder: Path, teacher: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"weights": str(teacher), "width": 0.05, "resolution": 64}
    options |= {"device": "cpu", "steps": 12, "lr_scale": 10}
    plain = EfficientAD(**options).fit(good, synthetic=False)
    assert plain.losses[-1]["total"] < plain.losses[0]["total"]
    assert "penalty" not in plain.losses[0]
    same_again(plain, tmp_path / "a.offn", good[0])
    kept = EfficientAD(**options, penalty=str(folder)).fit(good, synthetic=False)
    assert kept.losses[0]["penalty"] > 0
    with pytest.raises(WeightsError, match="efficientad-teacher"):
        EfficientAD(device="cpu").fit(good)
    with pytest.raises(OptionError, match="no such file or folder"):
        EfficientAD(**options, penalty=str(folder / "none")).fit(good)


def test_efficientads_parts() -> None:
    """Hard errors by their definition; borders; colours that stay in range."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 30, 30), torch.randn(2, 4, 30, 30)
    errors = (a - b).square()
    hard = errors[errors >= errors.flatten().quantile(0.999)].mean()
    parts = loss_parts(a, b, a, a, a, None)
    assert parts["hard"].item() == pytest.approx(hard.item())
    assert parts["total"].item() == pytest.approx(hard.item())

    maps, quantiles = torch.ones(1, 2, 3, 3), torch.tensor([[0.0, 1.0], [1.0, 3.0]])
    for border, outside in (("nearest", 0.05), ("zero", 0.0)):
        found = scaled_map(maps, quantiles, border)[0, 0]  # type: ignore[arg-type]  # of the loop
        assert found.shape == (11, 11)
        assert found[5, 5].item() == pytest.approx(0.05)
        assert found[0, 0].item() == pytest.approx(outside)
    images = torch.full((9, 3, 4, 4), 200, dtype=torch.uint8)
    assert jitter(images, np.random.default_rng(0)).unique().numel() > 2


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("side", [64, 128])
def test_grids_follow_from_the_side(size: str, side: int) -> None:
    with torch.device("meta"):
        pixels = torch.zeros(1, 3, side, side)
        network = PatchDescription(size, 6, 0.1)
        assert network(pixels).shape == Autoencoder(side, 6, 0.1)(pixels).shape
        assert network(pixels, channels=slice(2)).shape == (1, 2, side // 4 - 8, side // 4 - 8)
        assert network(pixels, padded=True).shape == (1, 6, side // 4, side // 4)


def test_teachers_are_backbones(teacher: Path, tmp_path: Path) -> None:
    network = load_backbone(weights=teacher)
    assert isinstance(network, PatchDescriber)
    assert (network.name, network.dim, network.family) == ("pdn_small", 8, "pdn")
    assert network(torch.zeros(1, 3, 40, 48)).shape == (1, 8, 10, 12)
    # As anomalib names the convolutions.
    names = {"0": "conv1", "3": "conv2", "6": "conv3", "8": "conv4"}
    tensors = {
        f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": tensor
        for key, tensor in network.model.state_dict().items()
    }
    save_file(tensors, tmp_path / "other.safetensors")
    again = load_backbone("pdn_small", tmp_path / "other.safetensors")
    assert again.digest == network.digest
    with pytest.raises(WeightsError, match="pdn_small"):
        load_backbone("pdn_medium", tmp_path / "other.safetensors")


def test_teaching_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    images = [*sorted(folder.iterdir()), tmp_path / "broken.png"]
    recipe = TeacherRecipe(width=0.05, steps=4, batch=2, resolution=64)
    bad: list[ImageError] = []
    options: dict[str, Any] = {"device": "cpu", "on_error": bad.append}
    whole = teach(Builtin(), images, tmp_path / "whole.safetensors", recipe, **options)
    assert len(bad) == 1

    def stop(stage: str, done: int) -> None:
        if (stage, done) == ("training", 2):
            raise KeyboardInterrupt

    part = tmp_path / "part.safetensors"
    with pytest.raises(KeyboardInterrupt):
        teach(Builtin(), images, part, recipe, **options, progress=stop)
    assert not part.exists()
    lines: list[str] = []
    teach(Builtin(), images, part, recipe, **options, tell=lines.append)
    assert any("goes on" in line for line in lines)
    assert part.read_bytes() == whole.read_bytes()
    network = load_backbone(weights=part)
    assert network.dim == Builtin().dim
    part.with_suffix(".state.safetensors").unlink()
    with pytest.raises(OptionError, match="overwrite"):
        teach(Builtin(), images, part, recipe, **options)


def test_command(folder: Path, tmp_path: Path) -> None:
    words = ["train", "efficientad-teacher", "--data", str(folder), "--backbone", "builtin"]
    words += ["--steps", "1", "--batch", "2", "--width", "0.05", "--resolution", "64", "-o"]
    told = CliRunner().invoke(app, [*words, str(tmp_path / "teacher.safetensors")])
    assert told.exit_code == 0
    assert "--method efficientad --weights" in told.stdout
    told = CliRunner().invoke(app, [*words, str(tmp_path / "b.safetensors"), "--split", "all"])
    assert told.exit_code == 2
