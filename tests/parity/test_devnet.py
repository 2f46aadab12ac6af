"""Agreement with DevNet's released code on real images, with weights from seeds."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.parity.trained import Golden, assert_close, load, seed, total_norm
from torch.nn.utils import clip_grad_norm_

from offnominal.detectors.supervised.devnet import DevNet
from offnominal.scoring import anomaly_map
from offnominal.training.imbalance import deviation


@pytest.mark.slow
def test_agrees_with_the_released_code(shared: Path, tiles: Path) -> None:
    golden = Golden(shared, "devnet_resnet18")
    side = golden["size"]
    detector = DevNet(resolution=side, localise="gradient", device="cpu")
    detector.make_networks()
    seed(detector.encoder, "cnn")
    seed(detector.scorer, "linear", "conv.")
    test, train = (load(tiles, golden[part], side) for part in ("test", "train"))
    detector.eval()
    with torch.inference_mode():
        maps = detector.maps(test)
        assert_close(detector.scores(maps), golden["before/score"])
        assert_close(maps[0][0], golden.array("score_map_first_image_scale0"))
        found = detector.compare(test[1:2])
    assert found.image.item() == pytest.approx(golden["before/score"][1], rel=1e-4)
    heat = anomaly_map(found.patches.numpy(), (side, side), detector.smoothing)
    assert_close(heat[::4, ::4], golden.array("map_second_image_stride4"))

    detector.train()
    z = np.random.default_rng(zlib.crc32(b"devnet_reference")).standard_normal(5000)
    drawn, labels = torch.from_numpy(z.astype(np.float32)), torch.tensor(golden["labels"]).float()
    trained = list(detector.parameters())
    start = [each.detach().clone() for each in trained]
    [optimiser] = detector.optimisers()
    for step, told in enumerate(golden["steps"]):
        loss = deviation(detector.scores(detector.maps(train)), labels, prior=drawn)
        assert loss.item() == pytest.approx(told["loss"], rel=3e-3 if step else 1e-4)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        if not step:
            norm = total_norm([each.grad for each in trained])
            assert norm == pytest.approx(golden["grad_total_norm"], rel=2e-3)
            for wanted, layer in (("conv1", detector.encoder.conv1), ("conv", detector.scorer)):
                grad, one = layer.weight.grad, golden["grad"][f"{wanted}.weight"]
                assert total_norm([grad]) == pytest.approx(one["norm"], rel=2e-3)
                apart = grad.flatten()[:8].numpy() - one["first8"]
                assert np.abs(apart).max() < 2e-3 * one["norm"]
        assert detector.schedule.clip == 1
        clip_grad_norm_([each for each in trained if each.grad is not None], 1.0)
        optimiser.step()
        moved = [(now - then).detach() for now, then in zip(trained, start, strict=True)]
        assert total_norm(moved) == pytest.approx(told["param_delta"], rel=3e-3)
    detector.eval()
    with torch.inference_mode():
        assert_close(detector.scores(detector.maps(test)), golden["after/score"], 1e-2)
