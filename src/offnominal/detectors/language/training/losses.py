"""The losses of prompts and layers: a part for the whole image, others for its map.

For prompts: Zhou et al., "AnomalyCLIP", ICLR 2024 (arXiv 2310.18961), section 3.3, who call it
glocal, global and local. For layers: Chen et al., "APRIL-GAN", 2023 (arXiv 2305.17382).
Constants are those of the released codes, which share them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Batch", "Parts", "dice_loss", "focal_loss", "glocal_loss", "level_loss", "similarities"]

_SMOOTH = 1e-5  # keeps the focal loss's logarithm finite
_GAMMA = 2.0  # Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.2


class Batch(NamedTuple):
    """Features and truth of some images, on the detector's device.

    Attributes
    ----------
    whole : Tensor of shape (B, E), float32
        Unit vectors of the images.
    levels : list of Tensor of shape (B, N, D), float32
        Of the patches, one tensor a level, as the detector sees them.
    grid : (gh, gw)
        N is their product.
    labels : Tensor of shape (B,), int64
        0 good, 1 defective.
    truth : Tensor of shape (B, S, S), float32, or None
        1 where the part is defective; None: the loss does without maps.
    names : list of str
        What each part is called.
    """

    whole: Tensor
    levels: list[Tensor]
    grid: tuple[int, int]
    labels: Tensor
    truth: Tensor | None
    names: list[str]


class Parts(NamedTuple):
    """A batch's loss and what it is made of, each a scalar; local parts are summed over levels.

    A part that the loss does without is 0.
    """

    total: Tensor
    image: Tensor
    focal: Tensor
    dice_abnormal: Tensor
    dice_normal: Tensor


def focal_loss(normal: Tensor, abnormal: Tensor, truth: Tensor) -> Tensor:
    """Focal loss of a map of two probabilities: mean of ``-(1 - p)^2 log p`` over pixels.

    Lin et al., 2017, eq. 4, with p the probability of what the pixel is.

    Parameters
    ----------
    normal, abnormal : Tensor of shape (B, H, W), float32
        Probabilities, on [0, 1].
    truth : Tensor of shape (B, H, W), float32
        1 where the part is defective, 0 elsewhere.
    """
    # The released code bounds the one-hot truth and adds a little to p; both are kept.
    wrong = truth.clamp(_SMOOTH, 1 - _SMOOTH)
    right = (1 - truth).clamp(_SMOOTH, 1 - _SMOOTH)
    p = right * normal + wrong * abnormal + _SMOOTH
    return ((1 - p) ** _GAMMA * -p.log()).mean()


def dice_loss(found: Tensor, truth: Tensor) -> Tensor:
    """One less the Dice overlap of a soft map with the truth, each with 1 pixel added, over images.

    Milletari et al., "V-Net", 2016, section 3, with plain sums below the line.

    Parameters
    ----------
    found, truth : Tensor of shape (B, H, W), float32
        On [0, 1].

    Notes
    -----
    The released codes drop the batch's axis from the truth of a single image, and so take the
    overlap of rows; here one image is one image.
    """
    both = (found * truth).flatten(1).sum(1)
    either = found.flatten(1).sum(1) + truth.flatten(1).sum(1)
    return 1 - ((2 * both + 1) / (either + 1)).mean()


def similarities(
    patches: Tensor, texts: Tensor, temperature: float, grid: tuple[int, int]
) -> Tensor:
    """Cosines of both states at every patch, over the temperature.

    Parameters
    ----------
    patches : Tensor of shape (B, N, E), float32
        Unit vectors.
    texts : Tensor of shape (B, 2, E), float32
        Unit vectors of each image's texts: normal, abnormal.
    temperature : float
    grid : (gh, gw)

    Returns
    -------
    Tensor of shape (B, 2, gh, gw)
    """
    cosines = patches @ texts.transpose(1, 2)
    return (cosines / temperature).transpose(1, 2).reshape(len(patches), 2, *grid)


def glocal_loss(batch: Batch, texts: Tensor, temperature: float, local_weight: float) -> Parts:
    """Cross-entropy of the images, and focal and Dice losses of their maps.

    ``CE + w * sum over levels [focal + Dice(abnormal, truth) + Dice(normal, 1 - truth)]``. The
    softmax is taken at the patches, and its values are enlarged bilinearly, as the released code
    does.

    Parameters
    ----------
    batch : Batch
        Its levels are unit vectors.
    texts : Tensor of shape (B, 2, E), float32
        Unit vectors of each image's texts: normal, abnormal.
    temperature : float
        What cosines are divided by before a softmax.
    local_weight : float
        w; 0 leaves the maps out.
    """
    cosines = (batch.whole[:, None] @ texts.transpose(1, 2))[:, 0]
    image = F.cross_entropy(cosines / temperature, batch.labels)
    focal = dice_abnormal = dice_normal = torch.zeros_like(image)
    truth = batch.truth
    if truth is not None and local_weight:
        size = (truth.shape[1], truth.shape[2])
        for patches in batch.levels:
            coarse = similarities(patches, texts, temperature, batch.grid).softmax(1)
            normal, abnormal = F.interpolate(coarse, size, mode="bilinear").unbind(1)
            focal = focal + focal_loss(normal, abnormal, truth)
            dice_abnormal = dice_abnormal + dice_loss(abnormal, truth)
            dice_normal = dice_normal + dice_loss(normal, 1 - truth)
    total = image + local_weight * (focal + dice_abnormal + dice_normal)
    return Parts(total, image, focal, dice_abnormal, dice_normal)


def level_loss(batch: Batch, texts: Tensor, temperature: float, weight: float) -> Parts:
    """Focal and Dice losses of maps, without a part for whole images.

    ``w * sum over levels [focal + Dice(abnormal, truth)]``, with w = 1 in the released code.
    Similarities are enlarged bilinearly, corner to corner, and the softmax is taken at the pixels,
    as there. Parameters are those of :func:`glocal_loss`.
    """
    truth = batch.truth
    assert truth is not None
    focal = dice = nothing = torch.zeros((), device=truth.device)
    size = (truth.shape[1], truth.shape[2])
    for patches in batch.levels:
        coarse = similarities(patches, texts, temperature, batch.grid)
        full = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
        normal, abnormal = full.softmax(1).unbind(1)
        focal = focal + focal_loss(normal, abnormal, truth)
        dice = dice + dice_loss(abnormal, truth)
    return Parts(weight * (focal + dice), nothing, focal, dice, nothing)
