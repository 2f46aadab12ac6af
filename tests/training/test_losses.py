"""The parts of the loss, held to plain loops over the formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from offnominal.detectors.language.training.losses import (
    Batch,
    dice_loss,
    glocal_loss,
    similarities,
)
from offnominal.training.losses import focal_loss


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    abnormal = torch.rand((3, 5, 4), generator=generator)
    truth = (torch.rand((3, 5, 4), generator=generator) > 0.7).float()
    return abnormal, truth


def test_focal_loss(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    abnormal, truth = maps
    total = 0.0
    for p, t in zip(abnormal.flatten().tolist(), truth.flatten().tolist(), strict=True):
        right = p if t else 1 - p
        wrong = 1 - right
        seen = (1 - 1e-5) * right + 1e-5 * wrong + 1e-5
        total += -((1 - seen) ** 2) * math.log(seen)
    found = focal_loss(1 - abnormal, abnormal, truth).item()
    assert found == pytest.approx(total / abnormal.numel(), rel=1e-5)


def test_focal_loss_is_finite_at_certain_pixels() -> None:
    certain = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    loss = focal_loss(1 - certain, certain, torch.tensor([[[1.0, 0.0]]]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_dice_loss_takes_images_one_by_one(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    abnormal, truth = maps
    each = []
    for p, t in zip(abnormal.numpy(), truth.numpy(), strict=True):
        each.append((2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    assert dice_loss(abnormal, truth).item() == pytest.approx(1 - np.mean(each), rel=1e-5)
    assert dice_loss(abnormal[:1], truth[:1]).item() == pytest.approx(1 - each[0], rel=1e-5)
    assert dice_loss(truth, truth).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 4.0, 1.5])
def test_glocal_loss(weight: float) -> None:
    """Softmax at the patches first, then bilinear, then the losses, summed over levels."""
    generator = torch.Generator().manual_seed(5)
    whole = F.normalize(torch.randn(2, 6, generator=generator), dim=-1)
    levels = [F.normalize(torch.randn(2, 12, 6, generator=generator), dim=-1) for _ in range(3)]
    texts = F.normalize(torch.randn(2, 2, 6, generator=generator), dim=-1)
    labels = torch.tensor([0, 1])
    truth = torch.zeros(2, 9, 12)
    truth[1, 2:5, 3:9] = 1
    batch = Batch(whole, levels, (3, 4), labels, truth, ["nut", "nut"])
    parts = glocal_loss(batch, texts, 0.07, weight)

    logits = [[float(w @ t) / 0.07 for t in pair] for w, pair in zip(whole, texts, strict=True)]
    image = -sum(
        row[label] - math.log(sum(map(math.exp, row)))
        for row, label in zip(logits, (0, 1), strict=True)
    )
    assert parts["image"].item() == pytest.approx(image / 2, rel=1e-4)
    if not weight:
        assert parts["total"].item() == parts["image"].item()
        return
    wanted = dict.fromkeys(("focal", "dice_abnormal", "dice_normal"), 0.0)
    for level in levels:
        states = []
        for patches, pair in zip(level, texts, strict=True):
            cosines = np.array([[float(p @ t) / 0.07 for t in pair] for p in patches])
            p = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
            states.append(p.T.reshape(2, 3, 4))
        coarse = torch.tensor(np.stack(states), dtype=torch.float32)
        full = F.interpolate(coarse, (9, 12), mode="bilinear", align_corners=False)
        found = similarities(level, texts, 0.07, (3, 4)).softmax(1)
        torch.testing.assert_close(found, coarse)
        wanted["focal"] += focal_loss(full[:, 0], full[:, 1], truth).item()
        wanted["dice_abnormal"] += dice_loss(full[:, 1], truth).item()
        wanted["dice_normal"] += dice_loss(full[:, 0], 1 - truth).item()
    for name, value in wanted.items():
        assert parts[name].item() == pytest.approx(value, rel=1e-4)
    total = image / 2 + weight * sum(wanted.values())
    assert parts["total"].item() == pytest.approx(total, rel=1e-4)
