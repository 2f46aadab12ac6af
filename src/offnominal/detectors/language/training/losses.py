"""The losses of prompts and layers: a part for the whole image, others for its map.

For prompts: Zhou et al., "AnomalyCLIP", ICLR 2024 (arXiv 2310.18961), section 3.3, who call it
glocal, global and local. For layers: Chen et al., "APRIL-GAN", 2023 (arXiv 2305.17382).
Constants are those of the released codes, which share them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.training.losses import focal_loss

__all__ = ["MAPS", "Batch", "dice_loss", "glocal_loss", "level_loss", "similarities"]

MAPS = ("focal", "dice_abnormal", "dice_normal")
"""Parts of a loss that compare maps with masks."""


class Batch(NamedTuple):
    """Features and truth of some images, on the detector's device.

    ``whole`` (B, E) are unit vectors of the images, ``levels`` (B, N, D) features of the patches as
    the detector sees them, one tensor a level, N the product of the ``grid`` (gh, gw). ``labels``
    (B,), int64, are 0 for good and 1 for defective; ``truth`` (B, S, S), float32, is 1 where the
    part is defective, or None where the loss does without maps; ``names`` say what each is called.
    """

    whole: Tensor
    levels: list[Tensor]
    grid: tuple[int, int]
    labels: Tensor
    truth: Tensor | None
    names: list[str]


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
    """Cosines (B, 2, gh, gw) of both states at every patch, over the temperature.

    ``patches`` (B, N, E) and each image's ``texts`` (B, 2, E), normal and abnormal, are unit
    vectors; N is the product of the ``grid``.
    """
    cosines = patches @ texts.transpose(1, 2)
    return (cosines / temperature).transpose(1, 2).reshape(len(patches), 2, *grid)


def glocal_loss(
    batch: Batch, texts: Tensor, temperature: float, local_weight: float
) -> dict[str, Tensor]:
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

    Returns
    -------
    dict of str to scalar
        The total and its parts, those of maps summed over levels; a part that the loss does
        without is 0.
    """
    cosines = (batch.whole[:, None] @ texts.transpose(1, 2))[:, 0]
    image = F.cross_entropy(cosines / temperature, batch.labels)
    focal = dice_abnormal = dice_normal = torch.zeros_like(image)
    truth = batch.truth
    if truth is not None and local_weight:
        for patches in batch.levels:
            coarse = similarities(patches, texts, temperature, batch.grid).softmax(1)
            normal, abnormal = F.interpolate(coarse, truth.shape[1:], mode="bilinear").unbind(1)
            focal = focal + focal_loss(normal, abnormal, truth)
            dice_abnormal = dice_abnormal + dice_loss(abnormal, truth)
            dice_normal = dice_normal + dice_loss(normal, 1 - truth)
    total = image + local_weight * (focal + dice_abnormal + dice_normal)
    return _parts(total, image, focal, dice_abnormal, dice_normal)


def level_loss(batch: Batch, texts: Tensor, temperature: float, weight: float) -> dict[str, Tensor]:
    """Focal and Dice losses of maps, without a part for whole images.

    ``w * sum over levels [focal + Dice(abnormal, truth)]``, with w = 1 in the released code.
    Similarities are enlarged bilinearly, corner to corner, and the softmax is taken at the pixels,
    as there. Parameters and the result are those of :func:`glocal_loss`.
    """
    truth = batch.truth
    assert truth is not None
    focal = dice = nothing = torch.zeros((), device=truth.device)
    for patches in batch.levels:
        coarse = similarities(patches, texts, temperature, batch.grid)
        full = F.interpolate(coarse, truth.shape[1:], mode="bilinear", align_corners=True)
        normal, abnormal = full.softmax(1).unbind(1)
        focal = focal + focal_loss(normal, abnormal, truth)
        dice = dice + dice_loss(abnormal, truth)
    return _parts(weight * (focal + dice), nothing, focal, dice, nothing)


def _parts(*values: Tensor) -> dict[str, Tensor]:
    return dict(zip(("total", "image", *MAPS), values, strict=True))
