"""Agreement with DifferNet's released code, on real images with seeded weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.parity.flows import check_gradients, copied, moved, parameters, seed_flow
from tests.parity.trained import Golden, assert_close, draw, load, seed
from torch import Tensor
from torchvision.models import alexnet

from offnominal.detectors.flow.coupling import Flow
from offnominal.detectors.flow.differnet import Step, nll


def released(name: str) -> str:
    """The name in the released code of one of our tensors."""
    number, net, place, rest = re.match(r"steps\.(\d+)\.(\w+)(?:\.(\d))?(.*)", name).groups()
    fully = {None: "", "0": ".fc1", "2": ".fc2", "4": ".fc2b", "6": ".fc3"}[place]
    return f"nf.module_list.{2 * int(number) + 2}.{net}{fully}{rest}"


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor; the orders are those of numpy's older generator."""
    if name.endswith("order"):
        number = int(name.split(".")[2]) // 2 - 1
        return torch.from_numpy(np.random.RandomState(number).permutation(shape[0]))
    z = draw(name, shape, "cnn")
    return z * 0.05 if name.endswith("fc3.weight") else z


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared, "differnet_alexnet")


@pytest.fixture(scope="module")
def features(golden: Golden, tiles: Path) -> dict[str, Tensor]:
    """AlexNet's at three scales, averaged over the positions, (images x turns, 768)."""
    network = alexnet().features
    seed(network, "cnn", "alexnet.features.")
    found = {}
    for which, quarters in (("test", (0, 1, 2, 3)), ("train", (0, 2))):
        images = load(tiles, golden[which], 256)
        turned = torch.stack([images.rot90(k, (2, 3)) for k in quarters], dim=1).flatten(0, 1)
        with torch.no_grad():
            scales = [network(F.interpolate(turned, size=side)) for side in (256, 128, 64)]
        found[which] = torch.cat([one.mean((2, 3)) for one in scales], dim=1)
    return found


@pytest.fixture
def flow() -> Flow:
    made = Flow(Step(768, 64) for _ in range(8))
    seed_flow(made, released, drawn)
    return made


@torch.no_grad()
def test_latents_and_scores(golden: Golden, features: dict[str, Tensor], flow: Flow) -> None:
    assert_close(features["test"][::4], golden.array("features"))
    z, log_det = flow(features["test"])
    assert_close(z[:, ::4], golden.array("latent"))
    assert_close(log_det, golden["log_jac"])
    assert_close(nll(z, log_det).mean(), golden["eval_loss"])
    assert_close(z.square().view(3, -1).mean(1), golden["score"])


def test_gradients_and_steps(golden: Golden, features: dict[str, Tensor], flow: Flow) -> None:
    ours = parameters(flow, released)
    # The released networks declare a batch norm each, of 384 features, that nothing uses.
    assert sum(one.numel() for one in ours.values()) + 16 * 2 * 384 == golden["parameters"]
    before = copied(ours)
    optimiser = torch.optim.Adam(
        flow.parameters(), lr=2e-4, betas=(0.8, 0.8), eps=1e-4, weight_decay=1e-5
    )
    for number, told in enumerate(golden["steps"]):
        loss = nll(*flow(features["train"])).mean()
        optimiser.zero_grad()
        loss.backward()
        if number == 0:
            check_gradients(ours, golden.told)
        optimiser.step()
        assert_close(loss, told["loss"], 2e-4)
        assert_close(moved(ours, before), told["param_delta"], 2e-4)
