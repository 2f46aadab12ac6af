"""Autoencoder, RIAD, DRAEM and TrustMAE: small ones, and the parts that are their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import offnominal
from offnominal.detectors.reconstruction.autoencoder import make_decoder, make_encoder
from offnominal.detectors.reconstruction.networks import EncoderDecoder, UNet
from offnominal.detectors.reconstruction.riad import disjoint_masks, inpainted, msgms_map
from offnominal.detectors.reconstruction.trustmae import Memory
from offnominal.detectors.registry import detector_class
from offnominal.errors import OptionError

SMALL: dict[str, dict[str, Any]] = {
    "autoencoder": {"latent": 8, "resolution": 32, "compared": "l2"},
    "riad": {"width": 2, "resolution": 32, "squares": (4, 8), "parts": 2},
    "draem": {"width": 2, "resolution": 32},
    "trustmae": {"width": 4, "resolution": 32, "prototypes": 8, "backbone": "builtin"},
}


@pytest.fixture(scope="module")
def good() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    stripes = np.sin(np.arange(40) / 3)[:, None, None] * 40 + 120
    return [
        (stripes + rng.normal(0, 4, (40, 48, 3))).clip(0, 255).astype(np.uint8) for _ in range(12)
    ]


@pytest.mark.parametrize("method", SMALL)
def test_learns_and_comes_back_from_its_file(
    method: str, good: list[np.ndarray], tmp_path: Path
) -> None:
    kind = detector_class(method)
    detector = kind(steps=3, batch=4, device="cpu", **SMALL[method])
    detector.fit(good, synthetic=False)
    detector.save(tmp_path / "it.offn")
    again = offnominal.load(tmp_path / "it.offn", device="cpu")
    bad = good[0].copy()
    bad[5:25, 5:25] = np.random.default_rng(1).integers(0, 256, (20, 20, 3))
    one, other = detector.predict([good[0], bad])
    assert [p.score for p in again.predict([good[0], bad])] == [one.score, other.score]
    if method != "draem":  # which needs more than three steps
        assert other.score > one.score


def test_full_size() -> None:
    """The paper's parameters, counted without making them."""
    with torch.device("meta"):
        networks = EncoderDecoder(128), UNet(6, 2, 64)
        assert [sum(p.numel() for p in n.parameters()) for n in networks] == [69048579, 28374146]
        inner = make_encoder(100, 8)
        assert inner(torch.empty(2, 3, 128, 128)).shape == (2, 100, 1, 1)
        assert make_decoder(100, 8)(torch.empty(2, 100, 1, 1)).shape == (2, 3, 128, 128)


def test_squares_hide_each_pixel_once_and_what_is_hidden_is_not_seen() -> None:
    masks = disjoint_masks(32, 8, 3, np.random.default_rng(0))
    assert masks.shape == (3, 1, 32, 32)
    assert (masks.sum(0) == 1).all()
    assert masks.mean((1, 2, 3)).tolist() == pytest.approx([6 / 16, 5 / 16, 5 / 16])
    pixels = torch.rand(2, 3, 32, 32)
    assert not inpainted(nn.Identity(), pixels, masks[None]).any()
    black = inpainted(lambda hidden: (hidden == 0).float(), pixels, masks[None])  # type: ignore[arg-type]
    assert (black == 1).all()
    np.testing.assert_allclose(msgms_map(pixels, pixels), 0, atol=1e-6)
    with pytest.raises(OptionError, match="--squares 3"):
        detector_class("riad")(squares=(3,))


def test_prototypes_follow_what_is_near_and_flee_what_is_not() -> None:
    memory = Memory(2, 3)
    memory.prototypes.data = torch.tensor([[2.0, 0, 0], [0, 3.0, 0]])
    near, far = torch.tensor([1.0, 0.1, 0]), torch.tensor([0.8, 0, 0.6])
    maps = torch.stack([near, near, near, far], 1)[None, :, None]
    mixed, trust = memory(maps, trust=0.7, reach=10.0)
    assert mixed.shape == maps.shape
    assert mixed[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0])  # the weight of the other is cut
    mixed[..., 3].sum().backward(retain_graph=True)
    assert memory.prototypes.grad is None or not memory.prototypes.grad.any()
    trust.backward()
    before = [torch.cosine_similarity(each, memory.prototypes[0], 0).item() for each in (near, far)]
    assert memory.prototypes.grad is not None
    memory.prototypes.data -= memory.prototypes.grad
    after = [torch.cosine_similarity(each, memory.prototypes[0], 0).item() for each in (near, far)]
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert memory(maps, trust=1.0, reach=1.0).trust > trust
