"""The rules by which prompts become two vectors."""

import pytest
import torch
import torch.nn.functional as F
from tests.seeded import CLIP_TINY, save_clip

from offnominal.backbones.clip import ClipBackbone
from offnominal.backbones.clip_text import ClipText
from offnominal.detectors.language.clip import CLIPDetector
from offnominal.language.prompts import PromptEnsemble

TWO = (("{}", "perfect {}"), ("broken {}",), ("a photo of {}.", "a very dark photo of {}."))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ClipText:
    path = save_clip(tmp_path_factory.mktemp("clip"), CLIP_TINY, "tiny")
    return ClipBackbone("open_clip:tiny", path).load_text()


@pytest.mark.parametrize("each", [False, True])
def test_means(text: ClipText, each: bool) -> None:
    found = PromptEnsemble(*TWO, normalise_each=each).features(text, "bolt")
    prompts = [
        "a photo of bolt.",
        "a very dark photo of bolt.",
        "a photo of perfect bolt.",
        "a very dark photo of perfect bolt.",
    ]
    # One at a time: neither the batch nor its longest prompt changes an embedding.
    rows = torch.cat([text.encode([prompt]) for prompt in prompts])
    mean = (F.normalize(rows, dim=1) if each else rows).mean(0)
    torch.testing.assert_close(found[0], mean / mean.norm(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_batches_do_not_matter(text: ClipText) -> None:
    texts = [f"a photo of {'very ' * (number % 5)}good bolt {number}" for number in range(9)]
    torch.testing.assert_close(text.encode(texts, batch=2), text.encode(texts), rtol=0, atol=1e-5)


def test_abnormality() -> None:
    detector = CLIPDetector(temperature=0.5)
    detector.text_features_ = torch.eye(2)
    found = detector.abnormality(torch.tensor([[3.0, 3.0], [0.0, 0.2]]))
    assert found[0].item() == pytest.approx(0.5)
    assert found[1].item() == pytest.approx(1 / (1 + torch.tensor(-2.0).exp().item()))
