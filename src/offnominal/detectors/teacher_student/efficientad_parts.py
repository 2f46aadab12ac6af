"""EfficientAD's autoencoder, its images, losses and maps, as plain functions.

Batzner, Heckler and König, WACV 2024 (arXiv 2303.14535), sections 3.2 to 3.4; what the paper leaves
open as in nelson1425's reproduction (the authors published no code).
"""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as colours

__all__ = ["Autoencoder", "Border", "error_maps", "jitter", "loss_parts", "other_image"]
__all__ += ["scaled_map"]

Border = Literal["nearest", "zero"]

_HARD = 0.999  # share of the errors that the loss leaves out (section 3.2)
_RIM = 4  # positions that a map lacks on each side, for the networks are not padded
_JITTER = (colours.adjust_brightness, colours.adjust_contrast, colours.adjust_saturation)
_GREY = 0.3


class Autoencoder(nn.Sequential):
    """An image through one vector of 64 numbers, and out of it the teacher's features.

    What it paints is coarse, so it learns what belongs where, not the detail (section 3.3).

    Parameters
    ----------
    side : int
        Of the square images, in pixels: a multiple of 32, from 64 on. The paper's is 256; for
        others the sizes between the layers follow in proportion, and the encoder always ends in one
        vector.
    dim : int
        The teacher's channels.
    width : float
        Factor on the channels in between, 32 and 64.
    """

    def __init__(self, side: int, dim: int, width: float = 1.0) -> None:
        narrow, wide = (max(1, round(channels * width)) for channels in (32, 64))
        layers: list[nn.Module] = []
        for before, after in ((3, narrow), (narrow, narrow), (narrow, wide), (wide, wide)):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
        layers += [nn.Conv2d(wide, wide, 4, 2, 1), nn.ReLU(), nn.Conv2d(wide, wide, side // 32)]
        # A convolution of 4 with 2 zeros on each side gives one more than the size told here.
        steps = (64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1)
        for size in (max(1, side // step - less) for step, less in steps):
            layers += [nn.Upsample(size, mode="bilinear"), nn.Conv2d(wide, wide, 4, 1, 2)]
            layers += [nn.ReLU(), nn.Dropout(0.2)]
        layers += [nn.Upsample(side // 4 - 8, mode="bilinear"), nn.Conv2d(wide, wide, 3, 1, 1)]
        super().__init__(*layers, nn.ReLU(), nn.Conv2d(wide, dim, 3, 1, 1))


def loss_parts(
    teacher: Tensor,
    student: Tensor,
    teacher_jittered: Tensor,
    student_jittered: Tensor,
    painted: Tensor,
    penalty: Tensor | None,
) -> dict[str, Tensor]:
    """The parts of the loss and their sum (appendix A, algorithm 1).

    Parameters
    ----------
    teacher, teacher_jittered : Tensor of shape (B, D, h, w)
        Normalised features of the images, and of the same with other colours.
    student, student_jittered : Tensor of shape (B, D, h, w)
        The student's first half for the images, its second half for those with other colours.
    painted : Tensor of shape (B, D, h, w)
        The autoencoder's of the latter.
    penalty : Tensor of shape (B, D, h, w) or None
        The student's first half for images of anything else.
    """
    errors = (teacher - student).square().flatten()
    # Those from the quantile on, interpolated linearly between ranks; found without sorting all.
    hardest = len(errors) - math.ceil(_HARD * (len(errors) - 1))
    parts = {
        "hard": errors.topk(hardest, sorted=False).values.mean(),
        "autoencoder": (teacher_jittered - painted).square().mean(),
        "student_autoencoder": (painted - student_jittered).square().mean(),
    }
    if penalty is not None:
        parts["penalty"] = penalty.square().mean()
    return {"total": torch.stack(list(parts.values())).sum()} | parts


def error_maps(teacher: Tensor, student: Tensor, painted: Tensor) -> Tensor:
    """Local and global errors, (B, 2, h, w): mean squared differences over the channels.

    Of the normalised teacher (B, D, h, w) and the student's first half, and of the autoencoder and
    the second half of the student (B, 2 D, h, w).
    """
    like_teacher, like_painted = student.chunk(2, dim=1)
    local = (teacher - like_teacher).square().mean(1)
    return torch.stack([local, (painted - like_painted).square().mean(1)], dim=1)


def scaled_map(errors: Tensor, quantiles: Tensor, border: Border) -> Tensor:
    """Local and global errors on one scale, averaged (section 3.4), and brought to the image.

    Parameters
    ----------
    errors : Tensor of shape (B, 2, h, w)
    quantiles : Tensor of shape (2, 2)
        For each kind of error the two that become 0 and 0.1.
    border : {"nearest", "zero"}
        What stands where the networks do not reach.

    Returns
    -------
    Tensor of shape (B, 1, h + 8, w + 8)
    """
    low, high = quantiles.unbind(1)
    scaled = 0.1 * (errors - low[:, None, None]) / (high - low)[:, None, None]
    mode = "replicate" if border == "nearest" else "constant"
    return F.pad(scaled.mean(1, keepdim=True), (_RIM,) * 4, mode=mode)


def jitter(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Images (B, 3, h, w), uint8, each with another brightness, contrast or saturation.

    One of the three, by a factor between 0.8 and 1.2 (appendix A).
    """
    changed = [_JITTER[rng.integers(3)](image, rng.uniform(0.8, 1.2)) for image in images]
    return torch.stack(changed)


def other_image(image: np.ndarray, side: int, rng: np.random.Generator) -> Tensor:
    """The middle of an image (H, W, 3), uint8, that does not show the part: (3, side, side).

    It is brought to twice the side first, and is grey in three of ten cases (appendix A).
    """
    picture = Image.fromarray(image).resize((2 * side, 2 * side), Image.Resampling.BILINEAR)
    if rng.random() < _GREY:
        picture = picture.convert("L").convert("RGB")
    cut = np.asarray(picture)[side // 2 : side // 2 + side, side // 2 : side // 2 + side]
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)))
