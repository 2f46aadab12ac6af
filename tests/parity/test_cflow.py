"""Agreement with CFlow-AD's released code, on real images with seeded weights."""

import re
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from tests.parity.flows import check_gradients, copied, drawn, moved, parameters, seed_flow
from tests.parity.trained import Golden, assert_close, load, seed, total_norm
from torch import Tensor, nn

from offnominal.detectors.flow.fibres import (
    decoder,
    log_density,
    position_code,
    summed,
    warm_cosine,
)

DIMS = (128, 256, 512)


def released(name: str) -> str:
    """The name in the released code of one of our tensors, whose names begin with the level."""
    name = re.sub(r"^(\d+)\.steps", r"decoder\1.module_list", name)
    return name.replace(".mix", ".w_perm")


@cache
def seeded_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    z = drawn(name, shape)
    return z * 0.05 if name.endswith("subnet.2.weight") else z


@pytest.fixture
def decoders() -> nn.ModuleList:
    made = nn.ModuleList(decoder(one, 8, 2.0, 128, "plain") for one in DIMS)
    seed_flow(made, released, seeded_tensor)
    return made


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared, "cflow_resnet18")


@pytest.fixture(scope="module")
def features(golden: Golden, tiles: Path) -> dict[str, list[Tensor]]:
    """What the frozen network gives of the images learned from and of the others."""
    network = timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4)).eval()
    seed(network, "cnn")
    for one in network.modules():
        if isinstance(one, nn.Conv2d):
            one.padding_mode = "reflect"
    with torch.no_grad():
        return {which: network(load(tiles, golden[which], 256)) for which in ("train", "test")}


def fibres(level: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of all positions (N, C), image by image and row by row, and their codes."""
    place = position_code(128, *level.shape[2:]).flatten(1).T
    return level.permute(0, 2, 3, 1).flatten(0, 2), place.repeat(len(level), 1)


@torch.no_grad()
def densities(decoders: nn.ModuleList, levels: list[Tensor]) -> list[Tensor]:
    found = []
    for flow, level in zip(decoders, levels, strict=True):
        density = log_density(*flow(*fibres(level)))
        found.append(density.view(len(level), *level.shape[2:]))
    return found


def check_scores(golden: Golden, when: str, found: list[Tensor], allow: float) -> None:
    """Densities tightly, maps as nearly saturated ones; their scale is that of these images."""
    for number, density in enumerate(found):
        step = max(1, density.shape[1] // 16)
        assert_close(density[:, ::step, ::step],
                     golden.array(f"{when}/logprob_per_dim{number}"), allow)  # fmt: skip
        assert_close(density.mean((1, 2)), golden[f"{when}/logprob{number}_mean"], allow)
    total = summed(found, torch.stack([one.max() for one in found]), (256, 256))
    heat = total.max() - total
    assert_close(heat[:, ::8, ::8], golden.array(f"{when}/map_stride8"), 1e-3)
    assert_close(heat.amax((1, 2)), golden[f"{when}/score"], 1e-3)


def test_features_and_places(golden: Golden, features: dict[str, list[Tensor]]) -> None:
    for number, level in enumerate(features["test"]):
        assert_close(level[0, ::8, ::4, ::4], golden.array(f"features{number}_first_image"))
    code = position_code(128, 32, 32)
    assert_close(code[::8, ::4, ::4], golden.array("position_32x32_rows_0::8"))


@torch.no_grad()
def test_latents_and_maps(
    golden: Golden, features: dict[str, list[Tensor]], decoders: nn.ModuleList
) -> None:
    for number, (flow, level) in enumerate(zip(decoders, features["test"], strict=True)):
        z, log_det = flow(*(one[:4] for one in fibres(level)))
        assert_close(z[:, ::4], golden.array(f"latent{number}_first_4_positions"))
        assert_close(log_det, golden.array(f"log_jac{number}_first_4_positions"))
    check_scores(golden, "before", densities(decoders, features["test"]), 1e-4)


def test_gradients_and_a_pass(
    golden: Golden, features: dict[str, list[Tensor]], decoders: nn.ModuleList
) -> None:
    """As released: a step for each run of 64 vectors, one level after the other."""
    told = golden["train_meta_epoch"]
    ours = parameters(decoders, released)
    assert [sum(p.numel() for p in one.parameters()) for one in decoders] == golden[
        "decoder_parameters"
    ]
    before = copied(ours)
    optimiser = torch.optim.Adam(decoders.parameters(), lr=2e-4 * warm_cosine(1 / 25))
    for number, (flow, level) in enumerate(zip(decoders, features["train"], strict=True)):
        for run, (x, place) in enumerate(zip(*(o.split(64) for o in fibres(level)), strict=True)):
            loss = -torch.nn.functional.logsigmoid(log_density(*flow(x, place))).mean()
            optimiser.zero_grad()
            loss.backward()
            if run == 0:
                first = golden["first_fiber"][f"layer{number}"]
                assert_close(loss, first["loss"])
                check_gradients({n: p for n, p in ours.items() if p.grad is not None}, first)
            optimiser.step()
    assert_close(moved(ours, before), told["param_delta"], 2e-4)
    assert_close(total_norm(copied(ours)), told["param_norm"])
    check_scores(golden, "after", densities(decoders, features["test"]), 2e-4)
