"""Dinomaly on a tiny transformer and without one: any encoder will do, what it finds is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tests.seeded import UNTRAINED

from offnominal import load
from offnominal.detectors.reconstruction.dinomaly import Dinomaly, blocks_of
from offnominal.detectors.reconstruction.dinomaly_blocks import loose_loss
from offnominal.errors import OptionError
from offnominal.images import read_image

SMALL: dict[str, Any] = {"resolution": 64, "steps": 3, "batch": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Six blocks of 64 channels, patches of 16 pixels."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    path = tmp_path_factory.mktemp("tiny") / "vit.safetensors"
    save_file(model.state_dict(), path, metadata=UNTRAINED)
    return {"backbone": "test_vit", "weights": str(path)}


def good(parts: Path) -> list[Path]:
    return sorted((parts / "part" / "train" / "good").iterdir())


def test_blocks_are_the_papers() -> None:
    assert blocks_of(12) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert blocks_of(24) == [4, 6, 8, 10, 12, 14, 16, 18]
    assert blocks_of(6) == [1, 2, 3, 4]
    assert blocks_of(1) == [0]


@pytest.mark.slow
def test_a_transformer(parts: Path, transformer: dict[str, Any], tmp_path: Path) -> None:
    detector = Dinomaly(**transformer, **SMALL).fit(good(parts))
    assert detector.load_network().layers == (1, 2, 3, 4)
    picture = detector.sized(read_image(good(parts)[0]))
    pixels = detector.images(picture[None], [0]).pixels([0])
    tokens, *groups = detector.frozen(pixels)
    assert tokens.shape == (1, 1 + 16, 64), "the class token goes through the decoder"
    assert [each.shape for each in groups] == [(1, 64, 4, 4)] * 2
    blocks = torch.stack(detector.load_network().token_levels(pixels))
    torch.testing.assert_close(groups[1][0].flatten(1).T, blocks[2:].mean(0)[0, 1:])
    detector.save(tmp_path / "part.offn")
    again = load(tmp_path / "part.offn")
    [before], [after] = (one.predict(good(parts)[0]) for one in (detector, again))
    assert (before.score, before.threshold) == (after.score, after.threshold)
    assert "bottleneck.0.fc1.weight" in detector.arrays()
    assert not any(name.startswith("network") for name in detector.arrays())


def test_any_other_network_is_one_group(parts: Path) -> None:
    """Standardised over the images that are trained on."""
    detector = Dinomaly(backbone="builtin", **SMALL).fit(good(parts))
    images = [n for n in range(6) if n not in detector.held_back_]
    assert len(images) == 3
    sized = [detector.sized(read_image(good(parts)[n])) for n in images]
    stored = np.stack(sized)
    tokens, features = detector.frozen(detector.images(stored, [0, 1, 2]).pixels([0, 1, 2]))
    torch.testing.assert_close(features.mean((0, 2, 3)), torch.zeros(59), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens, features.flatten(2).mT)
    assert len(detector.answer(tokens, (8, 8), 1)) == 1


def test_easy_positions_keep_a_tenth_of_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    theirs, ours = (torch.randn(1, 8, 4, 5, generator=generator) for _ in range(2))
    grads = []
    for easy in (0.0, 0.75):
        answer = ours.clone().requires_grad_()
        loss = loose_loss([theirs], [answer], easy)
        torch.autograd.backward(loss)
        grads.append(answer.grad)
    whole, damped = grads
    assert whole is not None
    assert damped is not None
    ratio = (damped / whole).mean(1)[0]
    apart = 1 - torch.cosine_similarity(theirs, ours, dim=1)[0]
    hardest = apart >= apart.flatten().topk(5).values[-1]
    torch.testing.assert_close(ratio, torch.where(hardest, 1.0, 0.1))


def test_it_says_what_does_not_fit(parts: Path, transformer: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="--resolution 70: test_vit takes multiples of 16"):
        Dinomaly(**transformer, **(SMALL | {"resolution": 70})).fit(good(parts))
    with pytest.raises(OptionError, match="only DINO and DINOv2 have the original rule"):
        Dinomaly(positions="released", **transformer, **SMALL).fit(good(parts))
    with pytest.raises(OptionError, match="--dropout 1"):
        Dinomaly(dropout=1)
