"""Agreement with Dinomaly's released code, with weights made from seeds."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.parity.trained import Golden, assert_close, batch_of, load, seed
from tests.seeded import UNTRAINED, dinov2_vits14
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from offnominal.detectors.reconstruction.dinomaly import Dinomaly
from offnominal.detectors.reconstruction.dinomaly_blocks import loose_loss, score_map
from offnominal.training.images import FrozenCache
from offnominal.training.losses import cosine_distance

TOP = 655  # pixels of 256 x 256 that the image score is the mean of


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared, "dinomaly_small")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Dinomaly:
    z = np.random.default_rng(zlib.crc32(b"register_tokens")).standard_normal((1, 4, 384))
    tensors = dinov2_vits14() | {"register_tokens": torch.from_numpy((0.1 * z).astype(np.float32))}
    path = tmp_path_factory.mktemp("seeded") / "dinov2_vits14_reg.safetensors"
    save_file(tensors, path, metadata=UNTRAINED)
    detector = Dinomaly(
        dropout=0, positions="released", weights=str(path), backbone="dinov2_vits14_reg",
        resolution=224, device="cpu",
    )  # fmt: skip
    detector.make_networks()
    seed(detector.bottleneck, "linear", "bottleneck.")
    seed(detector.decoder, "linear", "decoder.")
    return detector


def compared(detector: Dinomaly, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    tokens, *theirs = detector.frozen(pixels)
    return theirs, detector.answer(tokens, (16, 16), 2)


@pytest.mark.slow
def test_schedule(golden: Golden, detector: Dinomaly) -> None:
    at, rates = golden["schedule"]["at"], golden["schedule"]["lr"]
    ours = [2e-3 * detector.rate(step / 10_000) for step in at]
    assert ours[1:] == pytest.approx(rates[1:], rel=1e-9)
    assert ours[0] == ours[1], "the released first step learns nothing"


def test_tokens(golden: Golden, detector: Dinomaly, tiles: Path) -> None:
    """What enters the first block: DINOv2's other position rule."""
    model: Any = detector.load_network().model
    [first] = load(tiles, golden["test"][:1], 256, crop=224)
    patches = model.patch_embed(first[None])
    tokens = model._pos_embed(patches)[0]
    assert_close(tokens[::29, ::8], golden.array("tokens_in_first_image_rows_0::29"))


@pytest.mark.slow
def test_agrees_with_the_released_code(golden: Golden, detector: Dinomaly, tiles: Path) -> None:
    test, train = (load(tiles, golden[part], 256, crop=224) for part in ("test", "train"))
    learned = [*detector.bottleneck.parameters(), *detector.decoder.parameters()]
    assert sum(each.numel() for each in learned) == golden["trainable_parameters"]
    for when in ("before", "after"):
        detector.eval()
        allow = 1e-4 if when == "before" else 2e-4
        with torch.inference_mode():
            theirs, ours = compared(detector, test)
            apart = [cosine_distance(*pair) for pair in zip(theirs, ours, strict=True)]
            heat = score_map(apart, (224, 224))
            found = detector.compare(test[1:2]) if when == "before" else None
        for group, each in enumerate(apart):
            assert_close(each, golden.array(f"{when}/patch_distance_group{group}"), allow)
        assert_close(heat[:, ::4, ::4], golden.array(f"{when}/map_stride4"), allow)
        scores = heat.flatten(1).topk(TOP).values.mean(1)
        assert_close(scores, golden[f"{when}/score"], allow)
        if found is None:
            return
        assert found.image is not None
        assert float(found.image) == pytest.approx(float(scores[1]), rel=1e-5)
        for group, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            for name, each in (("encoder", one), ("decoder", other)):
                wanted = golden.array(f"{name}_group{group}_first_image")
                assert_close(each[0][::24, ::2, ::2], wanted)
        descend(golden, detector, train)


def descend(golden: Golden, detector: Dinomaly, train: Tensor) -> None:
    """Gradients at three shares of easy positions, and four steps."""
    detector.train()
    named = {n: p for n, p in detector.named_parameters() if p.requires_grad}
    learned = list(named.values())
    start = [each.detach().clone() for each in learned]
    [optimiser] = detector.optimisers()
    detector._cache = FrozenCache(len(train))
    batch = batch_of(train)
    for number, told in enumerate(golden["steps"]):
        if number == 0:
            tokens, *theirs = detector.frozen_of(batch)
            ours = detector.answer(tokens, (16, 16), 2)
            for easy, expected in golden["grad_at"].items():
                loss = loose_loss(theirs, ours, float(easy))
                grads = torch.autograd.grad(loss, learned, retain_graph=True)
                whole = float(get_total_norm(grads))
                assert whole == pytest.approx(expected["grad_total_norm"], rel=1e-3)
                check(dict(zip(named, grads, strict=True)), expected["grad"])
            detector.rate(0.05)  # halfway up to the share of 0.9
        total = detector.loss(batch)["total"]
        assert total.item() == pytest.approx(told["loss"], rel=2e-4)
        optimiser.zero_grad()
        torch.autograd.backward(total)
        norm = clip_grad_norm_(learned, detector.schedule.clip or 0)
        assert float(norm) == pytest.approx(told["norm_before_clip"], rel=1e-3)
        optimiser.param_groups[0]["lr"] = told["lr"]
        optimiser.step()
        norm = get_total_norm([each.detach() for each in learned])
        assert float(norm) == pytest.approx(told["param_norm"], rel=1e-5)
        apart = get_total_norm([(a - b).detach() for a, b in zip(learned, start, strict=True)])
        assert float(apart) == pytest.approx(told["param_delta"], rel=2e-4)


def check(grads: dict[str, Tensor], expected: dict[str, Any]) -> None:
    for name, told in expected.items():
        assert float(grads[name].norm()) == pytest.approx(told["norm"], rel=1e-3)
        off = grads[name].flatten()[:8].numpy() - np.array(told["first8"])
        assert np.abs(off).max() <= 1e-3 * told["norm"], name
