"""Agreement with DifferNet's released code, on real images with seeded weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.parity.flows import check_gradients, copied, moved, parameters, seed_flow
from tests.parity.trained import Golden, assert_close, draw, load
from tests.seeded import UNTRAINED
from torch import Tensor
from torchvision.models import alexnet

from offnominal.detectors.flow.differnet import DifferNet, nll


def released(name: str) -> str:
    """The name in the released code of one of our tensors."""
    found = re.match(r"steps\.(\d+)\.(\w+)(?:\.(\d))?(.*)", name)
    assert found
    number, net, place, rest = found.groups()
    layer = {None: "", "0": ".fc1", "2": ".fc2", "4": ".fc2b", "6": ".fc3"}[place]
    return f"nf.module_list.{2 * int(number) + 2}.{net}{layer}{rest}"


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
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's convolutions by torchvision's names."""
    with torch.device("meta"):
        shapes = alexnet().features.state_dict()
    state = {
        f"features.{name}": draw(f"alexnet.features.{name}", tensor.shape, "cnn")
        for name, tensor in shapes.items()
    }
    path = tmp_path_factory.mktemp("seeded") / "alexnet.safetensors"
    save_file(state, path, metadata=UNTRAINED)
    return path


@pytest.mark.slow
def test_agrees_with_the_released_code(golden: Golden, tiles: Path, weights: Path) -> None:
    detector = DifferNet(
        backbone="alexnet", weights=str(weights), resolution=256, width=64 / 2048, device="cpu"
    )
    detector.make_networks()
    seed_flow(detector.flow, released, drawn)

    def turned(which: str, quarters: tuple[int, ...]) -> Tensor:
        images = load(tiles, golden[which], 256)
        with torch.no_grad():
            copies = [detector.vectors(images.rot90(k, (2, 3))) for k in quarters]
        return torch.stack(copies, dim=1).flatten(0, 1)

    vectors = turned("test", (0, 1, 2, 3))
    assert_close(vectors[::4], golden.array("features"))
    z, log_det = detector.flow(vectors)
    assert_close(z[:, ::4], golden.array("latent"))
    assert_close(log_det, golden["log_jac"])
    assert_close(nll(z, log_det).mean(), golden["eval_loss"])
    assert_close(z.square().view(3, -1).mean(1), golden["score"])

    ours = parameters(detector.flow, released)
    # The released networks declare a batch norm each, of 384 features, that nothing uses.
    assert sum(one.numel() for one in ours.values()) + 16 * 2 * 384 == golden["parameters"]
    before, vectors = copied(ours), turned("train", (0, 2))
    [optimiser] = detector.optimisers()
    for number, told in enumerate(golden["steps"]):
        loss = nll(*detector.flow(vectors)).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        if number == 0:
            check_gradients(ours, golden.told)
        optimiser.step()
        assert_close(loss, told["loss"], 2e-4)
        assert_close(moved(ours, before), told["param_delta"], 2e-4)
