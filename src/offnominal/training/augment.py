"""What may happen to a good part and leaves it good: augmentation by torchvision's transforms."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.tv_tensors import Mask

__all__ = ["AUGMENTATIONS", "augmented", "augmented_alike"]

AUGMENTATIONS: dict[str, list[v2.Transform]] = {
    "flips": [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()],
    "turns": [
        v2.RandomChoice([v2.RandomRotation((a, a)) for a in (0, 90, 180, 270)]),
    ],
    "rotations": [v2.RandomRotation(180, InterpolationMode.BILINEAR)],
    "tilts": [v2.RandomRotation(5, InterpolationMode.BILINEAR)],
    "shifts": [v2.RandomAffine(0, translate=(0.05, 0.05))],
    "light": [v2.ColorJitter(brightness=0.1, contrast=0.1)],
    "colour": [v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1)],
}
"""By name. Corners that a rotation or a shift leaves open are black, as in the released codes."""


def augmented(images: Tensor, names: list[str]) -> Tensor:
    """Images (B, 3, h, w), uint8, each changed in its own way; torch's generator draws."""
    if not names:
        return images
    change = v2.Compose([step for name in names for step in AUGMENTATIONS[name]])
    return torch.stack([change(image) for image in images])


def augmented_alike(images: Tensor, masks: Tensor, names: list[str]) -> tuple[Tensor, Tensor]:
    """The same, and of each image its masks (B, M, h, w), uint8, moved as it is.

    Corners that are left open are 0 in both.
    """
    if not names:
        return images, masks
    change = v2.Compose([step for name in names for step in AUGMENTATIONS[name]])
    moved = [change(image, Mask(own)) for image, own in zip(images, masks, strict=True)]
    return torch.stack([image for image, _ in moved]), torch.stack([own for _, own in moved])
