"""Agreement of reverse distillation with its released code, with weights made from seeds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.trained import Golden, assert_close, draw, load, seed, total_norm
from torch import Tensor, nn
from torchvision.models import resnet18, wide_resnet50_2

from offnominal.detectors.teacher_student.reverse_distillation import (
    distance_map,
    distillation_loss,
)
from offnominal.detectors.teacher_student.reverse_networks import (
    Decoder,
    OneClassBottleneck,
    plan_of,
)
from offnominal.scoring import anomaly_map

CHANNELS = {"resnet18": (64, 128, 256), "wide_resnet50_2": (256, 512, 1024)}


def levels(network: Any, pixels: Tensor) -> list[Tensor]:
    """Outputs of the first three stages."""
    with torch.no_grad():
        stem = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
        fine = network.layer1(stem)
        middle = network.layer2(fine)
        return [fine, middle, network.layer3(middle)]


def seeded(name: str) -> tuple[OneClassBottleneck, Decoder, dict[str, nn.Parameter]]:
    """The two networks, and what of them is trained by the released names."""
    plan = plan_of(name, CHANNELS[name])
    with torch.device("meta"):
        bottleneck, decoder = OneClassBottleneck(plan).eval(), Decoder(plan).eval()
    bottleneck.to_empty(device="cpu")
    decoder.to_empty(device="cpu")

    def released(name: str) -> str:
        return name.replace("downsample", "upsample")

    seed(bottleneck, "cnn", "bottleneck.")
    seed(decoder, "cnn", "decoder.", released)
    trained = {f"bottleneck.{name}": each for name, each in bottleneck.named_parameters()}
    trained |= {f"decoder.{released(name)}": each for name, each in decoder.named_parameters()}
    return bottleneck, decoder, trained


@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("wide_resnet50_2", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_released_code(shared: Path, tiles: Path, name: str) -> None:
    golden = Golden(shared, f"reverse_distillation_{name}")
    with torch.device("meta"):
        teacher = {"resnet18": resnet18, "wide_resnet50_2": wide_resnet50_2}[name]().eval()
        teacher.layer4 = teacher.fc = nn.Identity()
    seed(teacher.to_empty(device="cpu"), "cnn")
    bottleneck, decoder, trained = seeded(name)
    test = levels(teacher, load(tiles, golden["test"], golden["size"]))
    train = levels(teacher, load(tiles, golden["train"], golden["size"]))
    size = (golden["size"], golden["size"])

    def check(when: str, allow_scores: float, allow_maps: float) -> None:
        with torch.no_grad():
            maps = distance_map(test, decoder(bottleneck(test)), size)
        for number, each in enumerate(maps.numpy()):
            smooth = anomaly_map(each, size, 4.0)
            expected = golden.array(f"{when}/map_stride8/{number}")
            assert_close(smooth[::8, ::8], expected, allow_maps)
            score = golden[f"{when}/score"][number]
            assert float(smooth.max()) == pytest.approx(score, rel=allow_scores)

    with torch.no_grad():
        embedding = bottleneck([level[:1] for level in test])[0]
        assert_close(embedding[:: len(embedding) // 64], golden.array("embedding_first_image"))
        for number, level in enumerate(decoder(embedding[None]), start=1):
            every = len(level[0]) // 8
            expected = golden.array(f"decoder{number}_first_image")
            assert_close(level[0, ::every, ::4, ::4], expected)
    check("before", 1e-4, 1e-4)

    bottleneck.train()
    decoder.train()
    # Of the released bottleneck one convolution and its norm are never used.
    wide = 2 * CHANNELS[name][-1]
    shapes = {"conv4.weight": (wide, 2 * wide, 1, 1), "bn4.weight": (wide,), "bn4.bias": (wide,)}
    idle = [draw(f"bottleneck.{key}", shape, "cnn") for key, shape in shapes.items()]
    start = {key: each.detach().clone() for key, each in trained.items()}
    optimiser = torch.optim.Adam(trained.values(), lr=0.005, betas=(0.5, 0.999))
    steps = golden["steps"]
    for step, expected in enumerate(steps["loss"]):
        loss = distillation_loss(train, decoder(bottleneck(train)), "whole")
        assert loss.item() == pytest.approx(expected, rel=3e-3 if step else 1e-4)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            assert total_norm([each.grad for each in trained.values()]) == pytest.approx(
                golden["grad_total_norm"], rel=2e-3
            )
            for key, told in golden["grad"].items():
                gradient = trained[key].grad
                assert gradient is not None
                assert total_norm([gradient]) == pytest.approx(told["norm"], rel=2e-3)
                difference = gradient.flatten()[:8] - torch.tensor(told["first8"])
                assert float(difference.abs().max()) <= 5e-3 * told["norm"]  # 2.2e-3 seen
            if "after/score" not in golden.told:
                return  # its one step agrees too, and takes as long as all the rest
        optimiser.step()
        moved = [each.detach() - start[key] for key, each in trained.items()]
        assert total_norm(moved) == pytest.approx(steps["param_delta"][step], rel=3e-3)
        norm = total_norm([*(each.detach() for each in trained.values()), *idle])
        assert norm == pytest.approx(steps["param_norm"][step], rel=3e-3)
    bottleneck.eval()
    decoder.eval()
    check("after", 1e-2, 3e-2)


@pytest.mark.parametrize(
    ("name", "channels", "bottleneck", "decoder"),
    [
        # The released counts, less those that nothing goes through.
        ("resnet18", (64, 128, 256), 12_205_312 - 525_312, 3_703_168),
        ("wide_resnet50_2", (256, 512, 1024), 67_277_824 - 8_392_704, 24_917_504),
    ],
)
def test_parameter_counts(
    name: str, channels: tuple[int, int, int], bottleneck: int, decoder: int
) -> None:
    with torch.device("meta"):
        plan = plan_of(name, channels)
        networks = OneClassBottleneck(plan), Decoder(plan)
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [bottleneck, decoder]
