"""Losses for few defects among many good parts, exchangeable by name.

Each takes scores, which rise with what is wrong, and what is true of them: images or pixels, in any
shape. What is not known (255) does not count.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.checks import check_choice

__all__ = [
    "LOSSES",
    "Imbalance",
    "auc_margin",
    "bce",
    "deviation",
    "dice",
    "focal",
    "imbalance_loss",
]

Imbalance = Literal["bce", "focal", "deviation", "dice", "auc-margin"]

_GAMMA = 2.0  # Lin et al., 2017, section 3.2
_MARGIN = 5.0  # standard deviations of the prior (Pang et al., 2019)
_DRAWS = 5000  # of the prior, as in the released code
_AUC_MARGIN = 1.0  # Yuan et al., 2021


def bce(scores: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of scores as logits.

    Parameters
    ----------
    scores : Tensor of any shape, floating
    truth : Tensor of the same shape
        0 good, 1 defective, 255 not known; values between 0 and 1 are shares.
    weight : Tensor of the same shape, or None
        Of each; None: all the same.

    Returns
    -------
    Tensor
        A scalar, 0 where nothing is known. So do the others.
    """
    return _mean(*_known(scores, truth, weight), _cross_entropy)


def focal(scores: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of ``-(1 - p)^2 log p``, with p the probability of what is true, of logits.

    Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", 2017, equation 4:
    what is already known well hardly counts.
    """

    def each(scores: Tensor, truth: Tensor) -> Tensor:
        right = torch.sigmoid(scores)
        p = right * truth + (1 - right) * (1 - truth)
        return (1 - p) ** _GAMMA * _cross_entropy(scores, truth)

    return _mean(*_known(scores, truth, weight), each)


def deviation(
    scores: Tensor,
    truth: Tensor,
    weight: Tensor | None = None,
    margin: float = _MARGIN,
    prior: Tensor | None = None,
) -> Tensor:
    """How far good ones are from a prior's mean, and defective ones from 5 deviations above it.

    Pang, Shen and van den Hengel, "Deep Anomaly Detection with Deviation Networks", 2019. The
    prior are 5,000 draws of the standard normal distribution, made anew by torch's generator;
    or what is given, (n,).
    """
    drawn = torch.randn(_DRAWS, device=scores.device) if prior is None else prior

    def each(scores: Tensor, truth: Tensor) -> Tensor:
        apart = (scores - drawn.mean()) / drawn.std()
        return (1 - truth) * apart.abs() + truth * (margin - apart).clamp(min=0)

    return _mean(*_known(scores, truth, weight), each)


def dice(scores: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """One less the overlap of probabilities, of logits, with what is defective.

    Milletari, Navab and Ahmadi, "V-Net", 2016, section 3, over all that is given at once, with 1
    added above and below so that nothing defective, and nothing found, is no loss.
    """
    scores, truth, weight = _known(scores, truth, weight)
    found = torch.sigmoid(scores)
    common = 2 * (weight * found * truth).sum() + 1
    return 1 - common / ((weight * (found.square() + truth.square())).sum() + 1)


def auc_margin(scores: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Spread of both sides, and how much their means are less than 1 apart, of probabilities.

    The AUC margin loss of Yuan, Yan, Sonka and Yang, "Large-scale Robust Deep AUC Maximization",
    2021, whose inner variables take their best values in each batch. A batch of one
    side only has its spread.
    """
    scores, truth, weight = _known(scores, truth, weight)
    found = torch.sigmoid(scores)
    sides = [weight * (1 - truth), weight * truth]
    means = [(side * found).sum() / side.sum().clamp(min=1e-12) for side in sides]
    spread = found.new_zeros(())
    for side, mean in zip(sides, means, strict=True):
        spread = spread + (side * (found - mean).square()).sum() / side.sum().clamp(min=1e-12)
    if not all(bool(side.sum() > 0) for side in sides):
        return spread
    return spread + (_AUC_MARGIN - means[1] + means[0]).clamp(min=0).square()


Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

LOSSES: dict[str, Loss] = {
    "bce": bce,
    "focal": focal,
    "deviation": deviation,
    "dice": dice,
    "auc-margin": auc_margin,
}
"""By the name that ``--criterion`` takes."""


def imbalance_loss(name: str) -> Loss:
    """The loss of a name.

    Raises
    ------
    OptionError
        If there is none.
    """
    check_choice("criterion", name, Imbalance)
    return LOSSES[name]


def _cross_entropy(scores: Tensor, truth: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, truth, reduction="none")


def _known(scores: Tensor, truth: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, truth and weights as vectors, with weights of 0 where nothing is known."""
    known = truth <= 1
    weighted = known.float() if weight is None else known * weight.float()
    return scores.float().flatten(), (truth * known).float().flatten(), weighted.flatten()


def _mean(
    scores: Tensor, truth: Tensor, weight: Tensor, each: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    # By how many are known, not by their weights: those say what counts more than others.
    return (each(scores, truth) * weight).sum() / (weight > 0).sum().clamp(min=1)
