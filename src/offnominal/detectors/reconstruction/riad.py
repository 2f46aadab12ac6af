"""RIAD: hidden parts of an image are painted in, and a defect is what was not foreseen.

Zavrtanik, Kristan and Skocaj, "Reconstruction by inpainting for visual anomaly detection",
Pattern Recognition 112, 2021.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.checks import check_range
from offnominal.detectors.backboned import whole_numbers
from offnominal.detectors.features import ViewScores
from offnominal.detectors.reconstruction.networks import UNet
from offnominal.detectors.trained import TrainedDetector
from offnominal.errors import OptionError
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Triple
from offnominal.training.losses import msgms, ssim

__all__ = ["RIAD", "disjoint_masks", "inpainted", "msgms_map"]


class RIAD(TrainedDetector):
    """In-painting of disjoint random squares by a U-Net.

    The image is cut into squares of k pixels, which are dealt into disjoint sets at random. One set
    after the other is hidden and painted in from the rest, and an image is put together from what
    was painted only. The map compares gradient magnitudes at several scales, averaged over all k.

    Parameters
    ----------
    squares : sequence of int
        Sides k in pixels; 2, 4, 8 and 16 in the paper. Each must divide the resolution.
    parts : int
        Disjoint sets, 3 in the paper. An image takes as many passes for each k.
    width : int
        Channels of the U-Net's first block.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`.

    Notes
    -----
    The authors published no code. Where the paper is silent or was not at hand: the network is the
    second one of DRAEM, by the same authors; each image of a step has its own k; the three parts of
    the loss weigh the same; 4 images a step. The squares of a new image are always dealt the same
    way.
    """

    method: ClassVar[str] = "riad"
    schedule: ClassVar[Schedule] = Schedule(batch=4, steps=300, paper_epochs=300)
    side_multiple: ClassVar[int] = UNet.stride
    mean: ClassVar[Triple] = (0.0, 0.0, 0.0)
    std: ClassVar[Triple] = (1.0, 1.0, 1.0)
    finest: ClassVar[int] = 128

    def __init__(
        self,
        squares: Sequence[int] = (2, 4, 8, 16),
        parts: int = 3,
        width: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.squares = whole_numbers("squares", squares)
        check_range("parts", parts, least=2, most=64, whole=True)
        check_range("width", width, least=1, most=1024, whole=True)
        if not self.squares or any(k < 1 or self.side % k for k in self.squares):
            raise OptionError(
                f"--squares {','.join(map(str, squares))}: give numbers that divide the resolution "
                f"of {self.side}, as 2,4,8,16"
            )
        self.parts, self.width = parts, width

    def build(self) -> None:
        """A U-Net from image to image."""
        self.painter = UNet(3, 3, self.width)

    def optimisers(self) -> list[Optimizer]:
        """Adam, with steps in proportion to 1 / width, as in DRAEM; 1e-4 at a width of 64."""
        return [Adam(self.painter.parameters(), lr=1e-4 * 64 / self.width)]

    def rate(self, done: float) -> float:
        """A tenth for the last 50 of 300 epochs."""
        return 0.1 if done >= 250 / 300 else 1.0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Squared error, SSIM and gradient magnitude similarity of what was painted in."""
        drawn = batch.rng.choice(self.squares, len(batch.pixels))
        masks = torch.stack([disjoint_masks(self.side, k, self.parts, batch.rng) for k in drawn])
        painted = inpainted(self.painter, batch.pixels, masks.to(batch.pixels.device))
        found = [1 - one.mean() for one in msgms(batch.pixels, painted)]
        parts = {
            "l2": F.mse_loss(painted, batch.pixels),
            "ssim": 1 - ssim(batch.pixels, painted).mean(),
            "gms": torch.stack(found).mean(),
        }
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def maps(self, pixels: Tensor) -> Tensor:
        """Anomaly maps (B, h, w) of pixels (B, 3, h, w)."""
        rng = np.random.default_rng(self.seed)
        total = torch.zeros_like(pixels[:, 0])
        for k in self.squares:
            masks = disjoint_masks(self.side, k, self.parts, rng).to(pixels.device)
            total += msgms_map(pixels, inpainted(self.painter, pixels, masks[None]))
        return total / len(self.squares)

    def compare(self, pixels: Tensor) -> ViewScores:
        """The map, and its maximum as the image score."""
        return ViewScores(self.maps(pixels)[0])


def disjoint_masks(side: int, k: int, parts: int, rng: np.random.Generator) -> Tensor:
    """Masks (parts, 1, side, side), float32, 1 where hidden: each pixel in one of them.

    Squares of `k` pixels are dealt at random, as many to each mask as can be.
    """
    cells = side // k
    dealt = rng.permutation(cells * cells).reshape(cells, cells) % parts
    grids = torch.from_numpy(dealt == np.arange(parts)[:, None, None]).float()
    return F.interpolate(grids[:, None], scale_factor=k)


def inpainted(painter: nn.Module, pixels: Tensor, masks: Tensor) -> Tensor:
    """Images (B, 3, h, w) put together from what is painted where each mask hides them.

    Masks are (B or 1, parts, 1, h, w); what is hidden is black.
    """
    hidden = (pixels[:, None] * (1 - masks)).flatten(0, 1)
    painted: Tensor = painter(hidden).float().unflatten(0, (len(pixels), -1))
    return (painted * masks).sum(1)


def msgms_map(pixels: Tensor, painted: Tensor) -> Tensor:
    """Dissimilarity (B, h, w): mean over scales, then over 21 x 21 pixels."""
    side = pixels.shape[-2:]
    scales = [F.interpolate(one, side, mode="bilinear") for one in msgms(pixels, painted)]
    unlike = 1 - torch.stack(scales).mean(0)
    # What lies outside has no part in the mean, so that a rim is not scored lower.
    return F.avg_pool2d(unlike, 21, stride=1, padding=10, count_include_pad=False)[:, 0]
