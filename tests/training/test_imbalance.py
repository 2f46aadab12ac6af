"""Losses for few defects: their values by hand, and what all of them have in common."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from offnominal.errors import OptionError
from offnominal.training.imbalance import LOSSES, imbalance_loss

NAMES = list(LOSSES)


def rising(name: str) -> Tensor:
    """Scores that are right, for a loss: far below and far above its turning point."""
    return tensor([0.0, 0.0, 6.0]) if name == "deviation" else tensor([-20.0, -20.0, 20.0])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_right_costs_nothing_and_what_is_not_known_neither(name: str) -> None:
    loss, truth = LOSSES[name], tensor([0, 0, 1], dtype=torch.uint8)
    torch.manual_seed(0)
    right = float(loss(rising(name), truth, None))
    assert right == pytest.approx(0, abs=0.02)
    assert float(loss(-rising(name), truth, None)) > 0.3
    more = torch.cat([rising(name), tensor([100.0, -100.0])])
    torch.manual_seed(0)
    unknown = tensor([0, 0, 1, 255, 255], dtype=torch.uint8)
    assert float(loss(more, unknown, None)) == pytest.approx(right, abs=1e-6)
    scores = torch.zeros(2, 3, requires_grad=True)
    unknown = torch.full((2, 3), 255, dtype=torch.uint8)
    [slope] = torch.autograd.grad(loss(scores, unknown, None), scores)
    assert bool((slope == 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_each_learns_one_defect_among_ninety_nine(name: str) -> None:
    """Of half good and half defective, as a step of a training has them."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(100, 8)).astype(np.float32))
    features[-1, 0] += 4
    truth = torch.zeros(100, dtype=torch.uint8)
    truth[-1] = 1
    weight = torch.zeros(8, requires_grad=True)
    for _ in range(150):
        chosen = torch.from_numpy(np.r_[rng.integers(99, size=8), [99] * 8])
        loss = imbalance_loss(name)(features[chosen] @ weight, truth[chosen], None)
        [slope] = torch.autograd.grad(loss, weight)
        weight = (weight - 0.2 * slope).detach().requires_grad_()
    scores = features @ weight
    assert bool(scores[-1] > scores[:-1].max())


def test_values_by_hand() -> None:
    scores, truth = tensor([0.0, math.log(3)]), tensor([0, 1])  # probabilities 1/2 and 3/4
    half, quarter = math.log(2), -math.log(0.75)
    assert float(LOSSES["bce"](scores, truth, None)) == pytest.approx((half + quarter) / 2)
    found = float(LOSSES["focal"](scores, truth, None))
    assert found == pytest.approx((half / 4 + quarter / 16) / 2)
    found = float(LOSSES["dice"](scores, truth, None))
    assert found == pytest.approx(1 - 2.5 / (1 / 4 + 9 / 16 + 1 + 1))
    found = float(LOSSES["auc-margin"](scores, truth, None))
    assert found == pytest.approx((1 - 3 / 4 + 1 / 2) ** 2)
    weighted = LOSSES["bce"](scores, truth, tensor([0.0, 3.0]))
    assert float(weighted) == pytest.approx(3 * quarter)


def test_margin_of_the_auc_is_that_of_its_inner_problem() -> None:
    """Its closed form is where the published min-max problem settles."""
    torch.manual_seed(1)
    scores, truth = torch.randn(40), (torch.arange(40) < 6).long()
    found = torch.sigmoid(scores)
    pos, neg = found[truth == 1], found[truth == 0]
    a, b = pos.mean(), neg.mean()
    alpha = (1 + b - a).clamp(min=0)
    inner = (pos - a).square().mean() + (neg - b).square().mean()
    inner = inner + 2 * alpha * (1 + b - a) - alpha.square()
    assert float(LOSSES["auc-margin"](scores, truth, None)) == pytest.approx(float(inner), rel=1e-5)


def test_unknown_names_are_told() -> None:
    with pytest.raises(OptionError, match=r"criterion 'hinge'.* auc-margin"):
        imbalance_loss("hinge")
