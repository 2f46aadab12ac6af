"""What may happen to a good part and leaves it good: augmentation by torchvision's transforms."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from offnominal.errors import OptionError

__all__ = ["AUGMENTATIONS", "augmented", "check_augment"]

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


def check_augment(names: str) -> list[str]:
    """The names in ``none`` or a list such as ``flips,light``.

    Raises
    ------
    OptionError
        If one is unknown.
    """
    found = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    for name in found:
        if name not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise OptionError(f"--augment {name}: choose none, or some of {known}")
    return found


def augmented(images: Tensor, names: list[str]) -> Tensor:
    """Images (B, 3, h, w), uint8, each changed in its own way; torch's generator draws."""
    if not names:
        return images
    change = v2.Compose([step for name in names for step in AUGMENTATIONS[name]])
    return torch.stack([change(image) for image in images])
