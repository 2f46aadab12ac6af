"""Agreement with a reproduction of FastFlow, on real images with seeded weights."""

import re
from pathlib import Path

import pytest
import timm
import torch
from tests.parity.flows import check_gradients, copied, moved, parameters, seed_flow
from tests.parity.trained import Golden, assert_close, load, seed, total_norm
from torch import Tensor, nn

from offnominal.detectors.flow.coupling import Clamping
from offnominal.detectors.flow.fastflow import LevelFlow, anomaly_map, nll

SHAPES = ((64, 32, 32), (128, 16, 16), (256, 8, 8))


def released(name: str) -> str:
    """The name in the released code of one of our tensors, whose names begin with the level."""
    name = re.sub(r"^(\d+)\.norm", r"norms.\1", name)
    name = re.sub(r"^(\d+)\.flow\.steps", r"nf_flows.\1.module_list", name)
    return name.replace(".mix", ".w_perm")


def seeded(clamping: Clamping = "plain") -> nn.ModuleList:
    made = nn.ModuleList(LevelFlow(one, 8, 1.0, "3", clamping, norm=True) for one in SHAPES)
    seed_flow(made, released)
    return made


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared, "fastflow_resnet18")


@pytest.fixture(scope="module")
def features(golden: Golden, tiles: Path) -> dict[str, list[Tensor]]:
    """What the frozen network gives of the images learned from and of the others."""
    network = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3)).eval()
    seed(network, "cnn")
    with torch.no_grad():
        return {which: network(load(tiles, golden[which], 128)) for which in ("train", "test")}


@torch.no_grad()
def test_latents_likelihoods_and_map(golden: Golden, features: dict[str, list[Tensor]]) -> None:
    flows = seeded()
    found = [flow(level) for flow, level in zip(flows, features["test"], strict=True)]
    for number, (z, log_det) in enumerate(found, start=1):
        told, some = golden[f"level{number}"], slice(None, None, z.shape[1] // 16)
        assert_close(log_det, told["log_jac"])
        assert_close(0.5 * z.square().flatten(1).sum(1), told["half_sq"])
        assert_close(z[0, some, ::4, ::4], golden.array(f"latent{number}_first_image"))
        normed = flows[number - 1].norm(features["test"][number - 1])
        assert_close(normed[0, some, ::4, ::4], golden.array(f"normed{number}_first_image"))
    assert_close(sum(nll(*one).mean() for one in found), golden["eval_loss"])
    heat = anomaly_map([z for z, _ in found], (128, 128)) - 1
    assert_close(heat[:, ::4, ::4], golden.array("map_stride4"))
    assert_close(heat.mean((1, 2)), golden["map_mean"])
    assert_close(heat.amax((1, 2)), golden["map_max"])


@torch.no_grad()
def test_the_newer_clamping(golden: Golden, features: dict[str, list[Tensor]]) -> None:
    """The same weights, and a loss of 80,240 instead of 200,209."""
    flows = seeded("scaled")
    found = [flow(level) for flow, level in zip(flows, features["test"], strict=True)]
    told = golden["newer_FrEIA_soft_clamp"]
    assert_close(sum(nll(*one).mean() for one in found), told["eval_loss"])
    assert_close(
        (anomaly_map([z for z, _ in found], (128, 128)) - 1).mean((1, 2)), told["map_mean"]
    )


def test_gradients_and_steps(golden: Golden, features: dict[str, list[Tensor]]) -> None:
    flows = seeded()
    ours = parameters(flows, released)
    assert sum(one.numel() for one in ours.values()) == golden["trainable_parameters"]
    before = copied(ours)
    optimiser = torch.optim.Adam(flows.parameters(), lr=1e-3, weight_decay=1e-5)
    for number, told in enumerate(golden["steps"]):
        found = [flow(level) for flow, level in zip(flows, features["train"], strict=True)]
        loss = sum(nll(*one).mean() for one in found)
        optimiser.zero_grad()
        loss.backward()
        if number == 0:
            check_gradients(ours, golden.told)
        optimiser.step()
        assert_close(loss, told["loss"], 2e-4)
        assert_close(moved(ours, before), told["param_delta"], 2e-4)
        assert_close(total_norm(copied(ours)), told["param_norm"])
