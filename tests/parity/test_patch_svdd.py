"""Agreement with the released code of Patch SVDD on real images, with weights from seeds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.parity.trained import Golden, assert_close, seed, total_norm
from torch import Tensor

from offnominal.detectors.one_class.patch_svdd import nearest, spread
from offnominal.detectors.one_class.patch_tasks import (
    Pairs,
    PatchEncoder,
    PositionClassifier,
    pair_losses,
)


@pytest.fixture(scope="module")
def case(shared: Path) -> Golden:
    return Golden(shared, "patchsvdd")


def images(tiles: Path, names: list[str]) -> Tensor:
    """Bicubically resized, (B, 3, 96, 96), on [0, 255]."""
    found = [Image.open(tiles / n).convert("RGB").resize((96, 96), Image.Resampling.BICUBIC)
             for n in names]  # fmt: skip
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).float() for i in found])


def encoder() -> PatchEncoder:
    made = PatchEncoder()

    def renamed(name: str) -> str:
        part, *number, what = name.split(".")
        if part == "inner":
            return f"enc.conv{int(number[0]) // 2 + 1}.{what}"
        return f"conv{1 if part == 'joining' else 2}.{what}"

    seed(made, "cnn", "encoder.", renamed)
    return made


def classifier(side: int) -> PositionClassifier:
    made = PositionClassifier("fixed")
    places = {"body.0": "fc1", "body.2": "fc2", "last": "fc3"}

    def renamed(name: str) -> str:
        part, _, what = name.rpartition(".")
        return f"{places[part]}.{what}"

    seed(made, "cnn", f"position{side}.", renamed)
    return made


@torch.no_grad()
def test_embeddings_and_map(case: Golden, tiles: Path) -> None:
    learned, looked_at = images(tiles, case["train"]), images(tiles, case["test"])
    mean, net, strides = learned.mean(0), encoder(), (16, 8)
    bank = net.grids((learned - mean) / 255, strides)
    found = net.grids((looked_at - mean) / 255, strides)
    maps = []
    for side, stride, rows, grid in zip((64, 32), strides, bank, found, strict=True):
        assert_close(grid.movedim(1, -1)[:, ::2, ::2], case.array(f"test_embedding_K{side}"))
        rows = rows.movedim(1, -1).flatten(0, 2)
        distances = nearest(grid.movedim(1, -1).flatten(0, 2), rows).reshape(3, *grid.shape[2:])
        assert_close(distances, case.array(f"distance_K{side}"))
        maps.append(torch.stack([spread(one, side, stride) for one in distances]))
    product = maps[0] * maps[1]
    assert_close(product[:, ::4, ::4], case.array("map_stride4"))
    assert_close(product.amax((1, 2)), case["score_mult"])
    assert_close((maps[0] + maps[1]).amax((1, 2)), case["score_sum"])


def test_steps(case: Golden, tiles: Path) -> None:
    learned = images(tiles, case["train"])
    pixels = (learned - learned.mean(0)) / 255
    net, heads = encoder(), {side: classifier(side) for side in (64, 32)}
    trained = [*net.parameters(), *(p for side in heads for p in heads[side].parameters())]
    before = [p.detach().clone() for p in trained]
    optimiser = torch.optim.Adam([p for p in trained if p.requires_grad], lr=1e-4)
    for number, wanted in enumerate(case["steps"]):
        total = torch.zeros(())
        for side, head in heads.items():
            around = np.array(case["patches"][f"pos{side}"])
            close = np.array(case["patches"][f"svdd{side}"])
            position, embedding = pair_losses(
                net, head, pixels, side,
                Pairs(close[:, 1:3], close[:, 3:5]),
                Pairs(around[:, 1:3], around[:, 3:5], around[:, 5]),
                noise=0,
            )  # fmt: skip
            assert_close(position, wanted[f"pos{side}"])
            assert_close(embedding, wanted[f"svdd{side}"])
            total = total + position + case["patches"]["lambda"] * embedding
        optimiser.zero_grad()
        torch.autograd.backward(total)
        if number == 0:
            norm = total_norm([p.grad for p in trained])
            assert norm == pytest.approx(case["grad_total_norm"], rel=1e-4)
            first = dict(net.named_parameters())["inner.0.weight"].grad
            assert first is not None
            assert_close(first.norm(), case["grad"]["encoder.enc.conv1.weight"]["norm"])
            assert heads[64].last.weight.grad is None
        optimiser.step()
        moved = total_norm([(p - q).detach() for p, q in zip(trained, before, strict=True)])
        assert moved == pytest.approx(wanted["param_delta"], rel=2e-4)
