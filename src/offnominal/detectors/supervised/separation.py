"""What SuperSimpleNet learns of feature maps: noisy and defective places told from good ones."""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.labelling import label
from offnominal.labels.labelled import DEFECTIVE, UNKNOWN
from offnominal.synthesis.perlin import perlin_noise
from offnominal.training.images import Batch
from offnominal.training.imbalance import imbalance_loss

__all__ = ["Criterion", "Truth", "blotch", "separation", "twice"]

Criterion = Literal["paper", "focal", "bce", "deviation", "dice", "auc-margin"]

_MARGIN, _GAMMA = 0.5, 4
_NOTHING = 1e-4  # of entropy, whose fifth power is the loss
_FINEST = 6  # cells along a side: powers of two below 2^6
_EMPTY = 0.5  # chance that an image gets no synthetic defect


class Truth(NamedTuple):
    """What a batch of feature maps is.

    Attributes
    ----------
    defective : bool Tensor of shape (B, gh, gw)
    known : bool Tensor of shape (B, gh, gw)
        Where anything is known.
    labels : float Tensor of shape (B,)
        1 for images with a defect.
    """

    defective: Tensor
    known: Tensor
    labels: Tensor


def separation(
    found: Tensor, logits: Tensor, truth: Truth, criterion: Criterion = "paper"
) -> dict[str, Tensor]:
    """Truncated L1 loss of the map, and focal loss of map and score (section 3.3).

    Parameters
    ----------
    found : Tensor of shape (B, gh, gw), float32
        The map; above 0 for defects.
    logits : Tensor of shape (B,), float32
    truth : Truth
    criterion : str
        ``paper``: the focal loss. Another of :data:`~offnominal.training.imbalance.LOSSES` in its
        place.
    """
    bad, right = truth.defective & truth.known, ~truth.defective & truth.known
    parts = {
        "good": _mean((found + _MARGIN).clamp(min=0), right),
        "bad": _mean((_MARGIN - found).clamp(min=0), bad),
    }
    if criterion == "paper":
        parts["map"] = _mean(_focal(found, truth.defective.float()), truth.known)
        parts["score"] = _focal(logits, truth.labels).mean()
    else:
        loss = imbalance_loss(criterion)
        where = truth.defective.long().masked_fill(~truth.known, UNKNOWN)
        parts["map"], parts["score"] = loss(found, where, None), loss(logits, truth.labels, None)
    return {"total": torch.stack(list(parts.values())).sum(), **parts}


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of some values; 0 of none."""
    return (values * where).sum() / where.sum().clamp(min=1)


def _focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy times the fourth power of the probability of being wrong."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    found = (1 - torch.exp(-entropy)) ** _GAMMA * entropy
    # What is left is too small to count, and so small that a CPU takes three times as long with it.
    return torch.where(entropy > _NOTHING, found, torch.zeros_like(found))


def twice(batch: Batch, size: tuple[int, int], device: torch.device) -> Truth:
    """What the images of a batch are on a grid, two times over."""
    count = len(batch.pixels)
    if batch.labels is None or batch.targets is None:
        nowhere = torch.zeros(2 * count, *size, dtype=torch.bool, device=device)
        return Truth(nowhere, ~nowhere, torch.zeros(2 * count, device=device))
    targets = batch.targets.to(device)[:, None]
    marked, unknown = ((targets == value).float() for value in (DEFECTIVE, UNKNOWN))
    defective = _resized(marked, size, "bilinear") >= 0.5
    # A scratch that covers no place by half would teach that it is good.
    pairs = zip(defective.cpu().numpy(), _resized(marked, size, "area").cpu().numpy(), strict=True)
    defective |= torch.from_numpy(np.stack([_lost(*pair) for pair in pairs])).to(device)
    known = defective | (_resized(unknown, size, "area") == 0)
    labels = batch.labels.to(device).float()
    return Truth(*(torch.cat([each, each]) for each in (defective, known, labels)))


def _lost(defective: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Of pieces without a defective place (gh, gw) those that they cover most, bool."""
    parts, count = label(covered > 0)
    most, found = np.zeros(count + 1, np.float32), np.zeros(count + 1, np.bool_)
    np.maximum.at(most, parts, covered)
    np.logical_or.at(found, parts, defective)
    lost: np.ndarray = (parts > 0) & ~found[parts] & (covered >= most[parts] / 2)
    return lost


def blotch(size: tuple[int, int], above: float, rng: np.random.Generator) -> np.ndarray:
    """Where Perlin noise is above a value: a synthetic defect, bool (gh, gw); often nowhere."""
    rows, columns = (int(2**power) for power in rng.integers(0, _FINEST, 2))
    angles = rng.uniform(0, 2 * np.pi, (rows + 1, columns + 1))
    empty = rng.random() < _EMPTY
    return (perlin_noise(size, (rows, columns), angles) > above) & (not empty)


def _resized(maps: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(maps, size=size, mode=mode)[:, 0]
