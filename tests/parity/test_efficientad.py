"""Agreement of EfficientAD with its reproduction, with weights made from seeds."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tests.parity.trained import Golden, assert_close, load, seed, total_norm
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms.v2.functional import adjust_brightness

from offnominal.backbones.locally_aware import locally_aware
from offnominal.backbones.pdn import PatchDescriber, PatchDescription
from offnominal.detectors.teacher_student.efficientad import EfficientAD
from offnominal.detectors.teacher_student.efficientad_parts import Autoencoder, loss_parts
from offnominal.images import read_image
from offnominal.scoring import anomaly_map


def seeded(size: str, border: Literal["nearest", "zero"] = "zero") -> EfficientAD:
    detector = EfficientAD(border=border, device="cpu")
    network = PatchDescriber(f"pdn_{size}").eval().requires_grad_(False)
    seed(network.model, "cnn", "teacher.")
    detector.use_network(network)
    detector.make_networks()
    seed(detector.student, "cnn", "student.")
    seed(detector.autoencoder, "cnn", "autoencoder.")
    return detector.eval()


def known(golden: Golden) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the teacher's channels."""
    mean, std = (torch.from_numpy(golden.array(f"teacher_{kind}")) for kind in ("mean", "std"))
    return mean[:, None, None], std[:, None, None]


@pytest.mark.slow
def test_small_measures_as_released(shared: Path, tiles: Path) -> None:
    golden = Golden(shared, "efficientad_small")
    detector = seeded("small")
    names = [*golden["train"], *golden["quantiles"]["validation"]]
    stored = np.stack([detector.sized(read_image(tiles / name)) for name in names])
    with torch.no_grad():
        detector.prepare(detector.images(stored, [0, 1]))
        detector.held_back = detector.images(stored, [2])
        detector.settle(detector.held_back)
    assert_close(detector.mean_.flatten(), golden.array("teacher_mean"))
    assert_close(detector.std_.flatten(), golden.array("teacher_std"))
    for found, kind in zip(detector.quantiles_.tolist(), ("st", "ae"), strict=True):
        told = [golden["quantiles"][f"{kind}_{share}"] for share in (0.9, 0.995)]
        assert found == pytest.approx(told, rel=1e-4)


@pytest.mark.slow
def test_small_learns_as_released(shared: Path, tiles: Path) -> None:
    golden = Golden(shared, "efficientad_small")
    detector = seeded("small")
    mean, std = known(golden)
    bright = adjust_brightness(Image.open(tiles / golden["train"][0]).convert("RGB"), 1.1)
    jittered = detector.images(detector.sized(np.asarray(bright))[None], [0]).pixels([0])
    plain, penalty = load(tiles, golden["train"], 256).split(1)
    with torch.no_grad():
        teacher, other = ((detector.frozen(each)[0] - mean) / std for each in (plain, jittered))
    [optimiser] = detector.optimisers()
    trained = optimiser.param_groups[0]["params"]
    start = [each.detach().clone() for each in trained]
    first, second = slice(0, 384), slice(384, 768)
    parts = loss_parts(
        teacher,
        detector.student(plain, channels=first),
        other,
        detector.student(jittered, channels=second),
        detector.autoencoder(jittered),
        detector.student(penalty, channels=first),
    )
    # Of the hard errors some tie with the threshold within rounding.
    told = golden["steps"][0]
    names = {"hard": "hard", "autoencoder": "ae", "student_autoencoder": "stae"}
    names |= {"penalty": "penalty", "total": "total"}
    for name, value in parts.items():
        assert value.item() == pytest.approx(told[names[name]], rel=1e-3)
    torch.autograd.backward(parts["total"])
    grads = [each.grad for each in trained]
    assert total_norm(grads) == pytest.approx(golden["grad_total_norm"], rel=1e-3)
    optimiser.step()
    apart = [each.detach() - before for each, before in zip(trained, start, strict=True)]
    assert total_norm(apart) == pytest.approx(told["param_delta"], rel=1e-3)


@pytest.mark.slow
def test_medium_scores_as_released(shared: Path, tiles: Path) -> None:
    golden = Golden(shared, "efficientad_medium")
    detector = seeded("medium")
    detector.mean_, detector.std_ = known(golden)
    shares = [f"{kind}_{share}" for kind in ("st", "ae") for share in (0.9, 0.995)]
    told = [golden["quantiles"][share] for share in shares]
    detector.quantiles_ = torch.tensor(told).reshape(2, 2)
    with torch.no_grad():
        found = detector.compare(load(tiles, golden["test"][:1], 256)).patches
    assert_close(found[4:-4:2, 4:-4:2], golden.array("map_combined/0"))
    height, width = golden["results"][0]["full_shape"]
    full = anomaly_map(found.numpy(), (height, width), 0.0)
    assert_close(full[::8, ::8], golden.array("map_full_stride8/0"))
    assert float(full.max()) == pytest.approx(golden["results"][0]["score"], rel=1e-4)


@pytest.mark.slow
def test_teacher_learns_as_released(shared: Path, tiles: Path) -> None:
    golden = Golden(shared, "efficientad_distillation")
    with torch.device("meta"):
        backbone = resnet18()
        backbone.layer4 = backbone.fc = nn.Identity()
    seed(backbone.to_empty(device="cpu"), "cnn")
    backbone.eval()
    with torch.no_grad():
        large = load(tiles, golden["images"], 512)
        stem = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(large))))
        middle = backbone.layer2(backbone.layer1(stem))
        target = locally_aware([middle, backbone.layer3(middle)], 3, 1024, 384)
    assert_close(target[:, ::16, ::8, ::8], golden.array("target"))
    mean = target.mean((0, 2, 3), keepdim=True)
    std = (target - mean).square().mean((0, 2, 3), keepdim=True).sqrt()
    assert_close(mean.flatten(), golden.array("channel_mean"))
    assert_close(std.flatten(), golden.array("channel_std"))
    pupil = PatchDescription("pdn_small")
    seed(pupil, "cnn", "teacher.")
    found = pupil(load(tiles, golden["images"], 256), padded=True)
    loss = (found - (target - mean) / std).square().mean()
    assert loss.item() == pytest.approx(golden["steps"][0]["loss"], rel=1e-4)
    torch.autograd.backward(loss)
    grads = [each.grad for each in pupil.parameters()]
    assert total_norm(grads) == pytest.approx(golden["grad_total_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("size", "teacher", "student"),
    [("small", 2_694_144, 4_267_392), ("medium", 8_026_624, 11_615_488)],
)
def test_parameter_counts(size: str, teacher: int, student: int) -> None:
    with torch.device("meta"):
        networks = [PatchDescription(f"pdn_{size}", dim) for dim in (384, 768)]
        networks.append(Autoencoder(256, 384))
    counts = [sum(each.numel() for each in network.parameters()) for network in networks]
    assert counts == [teacher, student, 1_096_320]
