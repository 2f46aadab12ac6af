"""Agreement with SimpleNet's released code, with weights made from seeds."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.parity.trained import Golden, assert_close, seed, total_norm
from tests.seeded import UNTRAINED
from torch import Tensor, nn
from torchvision.transforms import functional

from offnominal.detectors.one_class.simplenet import SimpleNet, hinge
from offnominal.scoring import anomaly_map

LAYERS = {"0": "body.block1.0", "1": "body.block1.1", "3": "tail"}


def made(folder: Path, golden: Golden, **options: Any) -> SimpleNet:
    """The seeded detector."""
    model = timm.create_model("resnet18", num_classes=0)
    seed(model, "cnn")
    path = folder / "resnet18.safetensors"
    save_file(model.state_dict(), path, metadata=UNTRAINED)
    told = {"dim": golden["dim"], "hidden": golden["dsc_hidden"], "weights": str(path)}
    told |= {"resolution": golden["crop"], "device": "cpu"}
    detector = SimpleNet(backbone="resnet18", **told, **options)
    detector.make_networks()
    seed(detector.adaptor, "linear", "pre_projection.layers.0fc.")
    seed(
        detector.discriminator, "linear", "discriminator.", lambda name: LAYERS[name[0]] + name[1:]
    )
    return detector.eval()


def images(tiles: Path, names: list[str], short: int, crop: int) -> Tensor:
    """As the released code sizes them: the shorter side first, then the middle."""
    found = []
    for name in names:
        picture = Image.open(tiles / name).convert("RGB")
        cut = functional.center_crop(functional.resize(picture, [short]), [crop])
        found.append(functional.normalize(functional.to_tensor(cut), *NORMAL))
    return torch.stack(found)


NORMAL = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@torch.inference_mode()
def scored(detector: SimpleNet, pixels: Tensor) -> tuple[Tensor, np.ndarray]:
    patches = [detector.compare(each[None]).patches for each in pixels]
    size = pixels.shape[-2:]
    maps = np.stack(
        [anomaly_map(each.numpy(), tuple(size), detector.smoothing) for each in patches]
    )
    return torch.stack(patches).amax((1, 2)), maps[:, ::4, ::4]


def test_agrees_with_the_released_code(shared: Path, tiles: Path, tmp_path: Path) -> None:
    golden = Golden(shared, "simplenet_resnet18")
    size = golden["resize_short_side"], golden["crop"]
    test, train = (images(tiles, golden[part], *size) for part in ("test", "train"))
    detector = made(tmp_path, golden)
    [features] = detector.frozen(test[:1])
    wanted = golden.array("embedding_first_image")
    assert_close(features[0].permute(1, 2, 0)[::2, ::2], wanted)
    scores, maps = scored(detector, test)
    assert_close(scores, golden["before/score"])
    assert_close(maps, golden.array("before/map_stride4"))

    rows = detector.frozen(train)[0].permute(0, 2, 3, 1).flatten(0, 2)
    learned = nn.ModuleList([detector.adaptor, detector.discriminator])
    start = [each.detach().clone() for each in learned.parameters()]
    optimisers, rng = detector.optimisers(), np.random.default_rng(zlib.crc32(b"simplenet_noise"))
    detector.train()
    for step, told in enumerate(golden["steps"]):
        noise = torch.from_numpy((0.015 * rng.standard_normal((512, 96))).astype(np.float32))
        adapted = detector.adaptor(rows)
        total = hinge(detector.discriminator, adapted, noise, detector.margin)["total"]
        assert total.item() == pytest.approx(told["loss"], rel=1e-4)
        learned.zero_grad()
        torch.autograd.backward(total)
        if step == 0:
            grads = [each.grad for each in learned.parameters()]
            assert total_norm(grads) == pytest.approx(golden["grad_total_norm"], rel=1e-4)
            grad = detector.adaptor.weight.grad
            assert grad is not None
            expected = golden["grad"]["pre_projection.layers.0fc.weight"]
            assert_close(grad.flatten()[:8], expected["first8"], 1e-3)
        for optimiser in optimisers:
            optimiser.step()
        apart = [(a - b).detach() for a, b in zip(learned.parameters(), start, strict=True)]
        assert total_norm(apart) == pytest.approx(told["param_delta"], rel=2e-4)
    scores, maps = scored(detector.eval(), test)
    assert_close(scores, golden["after/score"], 2e-4)
    assert_close(maps, golden.array("after/map_stride4"), 2e-4)


def test_a_released_checkpoint_can_be_reproduced(shared: Path, tiles: Path, tmp_path: Path) -> None:
    """After the pass of an image of ones, which is left out where nobody asks for it."""
    golden = Golden(shared, "simplenet_resnet18")
    detector = made(tmp_path, golden, statistics="released")
    test = images(tiles, golden["test"], golden["resize_short_side"], golden["crop"])
    [features] = detector.frozen(test[:1])
    wanted = golden.array("as_released/embedding_first_image")
    assert_close(features[0].permute(1, 2, 0)[::2, ::2], wanted)
    assert_close(scored(detector, test)[0], golden["as_released/before/score"])
