"""Agreement with CFlow-AD's released code, on real images with seeded weights."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.parity.flows import (
    check_gradients,
    copied,
    drawn,
    moved,
    parameters,
    save_seeded,
    seed_flow,
)
from tests.parity.trained import Golden, assert_close, load, total_norm
from torch import Tensor

from offnominal.detectors.flow.cflow import CFlow
from offnominal.detectors.flow.fibres import log_density, position_code
from offnominal.training.images import Images


def released(name: str) -> str:
    """The name in the released code of one of our tensors, whose names begin with the level."""
    name = re.sub(r"^(\d+)\.steps", r"decoder\1.module_list", name)
    return name.replace(".mix", ".w_perm")


@cache
def seeded_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    z = drawn(name, shape)
    return z * 0.05 if name.endswith("subnet.2.weight") else z


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared, "cflow_resnet18")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_seeded("resnet18", tmp_path_factory.mktemp("seeded"))


@pytest.fixture(scope="module")
def plain(weights: Path) -> CFlow:
    return CFlow(backbone="resnet18", weights=str(weights), padding="reflect", device="cpu")


@pytest.fixture
def detector(plain: CFlow) -> CFlow:
    plain.make_networks()
    seed_flow(plain.decoders, released, seeded_tensor)
    return plain


class AllTests(Images):
    """The images of the test, by which the released code normalises."""

    def __init__(self, pixels: Tensor) -> None:
        self.numbers, self._pixels = list(range(len(pixels))), pixels

    def uint8(self, places: Sequence[int]) -> Tensor:
        return self._pixels[places].to(torch.uint8)

    def pixels(self, places: Sequence[int]) -> Tensor:
        return self._pixels[places]


@torch.no_grad()
def check_scores(golden: Golden, when: str, detector: CFlow, pixels: Tensor, allow: float) -> None:
    """Densities tightly, maps as nearly saturated ones."""
    for number, density in enumerate(detector.densities(detector.frozen(pixels))):
        step = max(1, density.shape[1] // 16)
        theirs = golden.array(f"{when}/logprob_per_dim{number}")
        assert_close(density[:, ::step, ::step], theirs, allow)
        assert_close(density.mean((1, 2)), golden[f"{when}/logprob{number}_mean"], allow)
    detector.settle(AllTests(pixels))
    heat = torch.stack([detector.compare(one[None]).patches for one in pixels])
    assert_close(heat[:, ::8, ::8], golden.array(f"{when}/map_stride8"), 1e-3)
    assert_close(heat.amax((1, 2)), golden[f"{when}/score"], 1e-3)


@pytest.mark.slow
def test_features_latents_and_maps(golden: Golden, tiles: Path, detector: CFlow) -> None:
    code = position_code(128, 32, 32)
    assert_close(code[::8, ::4, ::4], golden.array("position_32x32_rows_0::8"))
    pixels = load(tiles, golden["test"], 256)
    with torch.no_grad():
        levels = detector.frozen(pixels)
    for number, (flow, level) in enumerate(zip(detector.decoders, levels, strict=True)):
        assert_close(level[0, ::8, ::4, ::4], golden.array(f"features{number}_first_image"))
        places = position_code(128, *level.shape[2:]).flatten(1).T
        z, log_det = flow(level[0].flatten(1).T[:4], places[:4])
        assert_close(z[:, ::4], golden.array(f"latent{number}_first_4_positions"))
        assert_close(log_det, golden.array(f"log_jac{number}_first_4_positions"))
    check_scores(golden, "before", detector, pixels, 1e-4)


@pytest.mark.slow
def test_gradients_and_a_pass(golden: Golden, tiles: Path, detector: CFlow) -> None:
    """As released: a step for each run of 64 vectors, one level after the other."""
    told = golden["train_meta_epoch"]
    ours = parameters(detector.decoders, released)
    counts = [sum(each.numel() for each in one.parameters()) for one in detector.decoders]
    assert counts == golden["decoder_parameters"]
    before = copied(ours)
    [optimiser] = detector.optimisers()
    optimiser.param_groups[0]["lr"] *= detector.rate(1 / 25)
    with torch.no_grad():
        levels = detector.frozen(load(tiles, golden["train"], 256))
    for number, (flow, level) in enumerate(zip(detector.decoders, levels, strict=True)):
        vectors = level.permute(0, 2, 3, 1).flatten(0, 2).split(64)
        places = position_code(128, *level.shape[2:]).flatten(1).T.repeat(len(level), 1).split(64)
        for run, (x, place) in enumerate(zip(vectors, places, strict=True)):
            loss = -F.logsigmoid(log_density(*flow(x, place))).mean()
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            if run == 0:
                first = golden["first_fiber"][f"layer{number}"]
                assert_close(loss, first["loss"])
                check_gradients({n: p for n, p in ours.items() if p.grad is not None}, first)
            optimiser.step()
    assert_close(moved(ours, before), told["param_delta"], 2e-4)
    assert_close(total_norm(copied(ours)), told["param_norm"])
    check_scores(golden, "after", detector, load(tiles, golden["test"], 256), 2e-4)
