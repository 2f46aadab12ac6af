"""Agreement with a reproduction of FastFlow, on real images with seeded weights."""

import re
from pathlib import Path

import pytest
import torch
from tests.parity.flows import (
    check_gradients,
    copied,
    moved,
    parameters,
    save_seeded,
    seed_flow,
)
from tests.parity.trained import Golden, assert_close, batch_of, load, total_norm

from offnominal.detectors.flow.coupling import Clamping
from offnominal.detectors.flow.fastflow import FastFlow, anomaly_map, nll


def released(name: str) -> str:
    """The name in the released code of one of our tensors, whose names begin with the level."""
    name = re.sub(r"^(\d+)\.norm", r"norms.\1", name)
    name = re.sub(r"^(\d+)\.flow\.steps", r"nf_flows.\1.module_list", name)
    return name.replace(".mix", ".w_perm")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seeded("resnet18", tmp_path_factory.mktemp("seeded"))


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared, "fastflow_resnet18")


def seeded(weights: Path, clamping: Clamping = "plain") -> FastFlow:
    made = FastFlow(
        backbone="resnet18", weights=str(weights), resolution=128, clamping=clamping, device="cpu"
    )
    made.make_networks()
    seed_flow(made.flows, released)
    return made


@torch.no_grad()
def test_latents_likelihoods_and_map(golden: Golden, tiles: Path, weights: Path) -> None:
    detector = seeded(weights)
    pixels = load(tiles, golden["test"], 128)
    levels = detector.frozen(pixels)
    found = [flow(level) for flow, level in zip(detector.flows, levels, strict=True)]
    for number, (z, log_det) in enumerate(found, start=1):
        told, some = golden[f"level{number}"], slice(None, None, z.shape[1] // 16)
        assert_close(log_det, told["log_jac"])
        assert_close(0.5 * z.square().flatten(1).sum(1), told["half_sq"])
        assert_close(z[0, some, ::4, ::4], golden.array(f"latent{number}_first_image"))
        normed = detector.flows[number - 1].norm(levels[number - 1])
        assert_close(normed[0, some, ::4, ::4], golden.array(f"normed{number}_first_image"))
    assert_close(sum(nll(*one).mean() for one in found), golden["eval_loss"])
    heat = torch.stack([detector.compare(one[None]).patches for one in pixels]) - 1
    assert_close(heat[:, ::4, ::4], golden.array("map_stride4"))
    assert_close(heat.mean((1, 2)), golden["map_mean"])
    assert_close(heat.amax((1, 2)), golden["map_max"])


@torch.no_grad()
def test_the_newer_clamping(golden: Golden, tiles: Path, weights: Path) -> None:
    """The same weights, and a loss of 80,240 instead of 200,209."""
    detector, told = seeded(weights, "scaled"), golden["newer_FrEIA_soft_clamp"]
    pixels = load(tiles, golden["test"], 128)
    assert_close(detector.loss(batch_of(pixels))["total"], told["eval_loss"])
    latents = [flow(x)[0] for flow, x in zip(detector.flows, detector.frozen(pixels), strict=True)]
    assert_close((anomaly_map(latents, (128, 128)) - 1).mean((1, 2)), told["map_mean"])


@pytest.mark.slow
def test_gradients_and_steps(golden: Golden, tiles: Path, weights: Path) -> None:
    detector = seeded(weights)
    ours = parameters(detector.flows, released)
    assert sum(one.numel() for one in ours.values()) == golden["trainable_parameters"]
    before, batch = copied(ours), batch_of(load(tiles, golden["train"], 128))
    [optimiser] = detector.optimisers()
    for number, told in enumerate(golden["steps"]):
        loss = detector.loss(batch)["total"]
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        if number == 0:
            check_gradients(ours, golden.told)
        optimiser.step()
        assert_close(loss, told["loss"], 2e-4)
        assert_close(moved(ours, before), told["param_delta"], 2e-4)
        assert_close(total_norm(copied(ours)), told["param_norm"])
