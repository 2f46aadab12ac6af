"""Defects painted by a small diffusion model that has seen nothing but a few real ones.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020; the cosine
schedule of Nichol and Dhariwal, ICML 2021; the target v of Salimans and Ho, ICLR 2022; steps of
Song, Meng and Ermon, "Denoising Diffusion Implicit Models", ICLR 2021. The known surroundings are
handed to the network beside the noise, and put back at every step (Lugmayr et al., "RePaint", CVPR
2022, without going back and forth).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offnominal.synthesis.exact import exact
from offnominal.synthesis.seeds import Seed, blended, place_seed
from offnominal.synthesis.unet import UNet

__all__ = ["Crop", "Painter", "crop_of"]

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_SIDE = 64  # pixels of a crop, as the network sees it
_DRAWN = 30  # steps of drawing
_OUTSIDE = 0.1  # what the surroundings, which are known, weigh in the loss


class Crop(NamedTuple):
    """A window as the network sees it, and what leads back to grey levels."""

    pixels: Tensor  # (C, 64, 64), 0 at the level of the surroundings
    hole: Tensor  # (1, 64, 64), 1 within the defect
    level: Tensor  # (C, 1, 1)
    unit: Tensor  # (C, 1, 1), grey levels


class Painter(nn.Module):
    """Paints defects like those it was shown, in places like theirs.

    Parameters
    ----------
    seeds : sequence of Seed
        The defects; they are saved with the network, for their outlines and surroundings.
    width : int
        Channels of the network.

    Attributes
    ----------
    steps : int
        That it was trained for.
    digest : str
        Of the file that it was written to.
    """

    def __init__(self, seeds: Sequence[Seed], width: int = 48) -> None:
        super().__init__()
        self.seeds, self.width = list(seeds), width
        self.steps, self.digest = 0, ""
        # Of grey pictures one channel is looked at, a third of what there would be to learn.
        self.channels = 1 if all((np.ptp(each.image, -1) == 0).all() for each in self.seeds) else 3
        self.net = UNet(2 * self.channels + 1, self.channels, width)

    def loss(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Of crops (B, C, 64, 64) and holes (B, 1, 64, 64): the squared error of v."""
        pixels, hole = batch
        level = torch.rand(len(pixels))
        noise = torch.randn_like(pixels)
        alpha, sigma = _schedule(level[:, None, None, None])
        found = self._told(alpha * pixels + sigma * noise, pixels, hole, level)
        error = (found - (alpha * noise - sigma * pixels)).square()
        weight = hole + _OUTSIDE * (1 - hole)
        return {"total": (weight * error.mean(1, True)).sum() / weight.sum()}

    def _told(self, noisy: Tensor, known: Tensor, hole: Tensor, level: Tensor) -> Tensor:
        found: Tensor = self.net(torch.cat([noisy, known * (1 - hole), hole], 1), level)
        return found

    @torch.inference_mode()
    def paint(self, known: Tensor, hole: Tensor, rng: np.random.Generator) -> Tensor:
        """Draw what may be in holes (B, 1, 64, 64) of crops (B, C, 64, 64)."""
        noise = torch.from_numpy(rng.standard_normal(known.shape, np.float32))
        x, times = noise, torch.linspace(1, 0, _DRAWN + 1)
        for now, then in pairwise(times):
            alpha, sigma = _schedule(now)
            x = hole * x + (1 - hole) * (alpha * known + sigma * noise)
            v = self._told(x, known, hole, now.expand(len(x)))
            clean, rest = alpha * x - sigma * v, sigma * x + alpha * v
            alpha, sigma = _schedule(then)
            x = alpha * clean + sigma * rest
        return hole * x + (1 - hole) * known

    def __call__(
        self, image: Image, rng: np.random.Generator, on: Mask | None = None
    ) -> tuple[Image, Mask]:
        """Paint a defect into a good image, uint8 (H, W, 3), on the object, bool (H, W).

        Outline and place are those of a real defect, changed and chosen as
        :func:`~offnominal.synthesis.seeds.seed_defect` does. Returns the image and the exact mask,
        which is empty where there was no place.
        """
        found = place_seed(image, self.seeds, rng, on)
        if found is None:
            return image, np.zeros(image.shape[:2], np.bool_)
        there = image[found.window].astype(np.float32)
        crop = crop_of(there[..., : self.channels], found.hole)
        painted = self.paint(crop.pixels[None], crop.hole[None], rng)[0]
        placed = _uncropped(painted * crop.unit + crop.level, there.shape)
        # What of the grain is lost in a crop that is smaller than its window stays as it is.
        grain = there - _uncropped(crop.pixels * crop.unit + crop.level, there.shape)
        made = image.copy()
        made[found.window] = blended(there, placed + grain, found.hole)
        return exact(image, made, on)


def _schedule(level: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the picture and of the noise there is: their squares sum up to 1."""
    return torch.cos(level * math.pi / 2), torch.sin(level * math.pi / 2)


def crop_of(window: NDArray[np.float32], hole: Mask) -> Crop:
    """A window (h, w, C) as a square, what is missing mirrored, in units of its own brightness."""
    height, width = hole.shape
    side = max(height, width)
    pad = [(0, side - height), (0, side - width)]
    square = np.pad(window, [*pad, (0, 0)], "symmetric")
    outer = np.pad(hole, pad).astype(np.float32)
    how = cv2.INTER_AREA if side > _SIDE else cv2.INTER_LINEAR
    sized = cv2.resize(square, (_SIDE, _SIDE), interpolation=how)
    pixels = torch.from_numpy(sized.reshape(_SIDE, _SIDE, -1)).permute(2, 0, 1)
    small = torch.from_numpy(cv2.resize(outer, (_SIDE, _SIDE), interpolation=how) > 0.3)
    values = window[~hole] if (~hole).any() else window.reshape(-1, window.shape[2])
    level = torch.from_numpy(values.mean(0))[:, None, None].float()
    unit = 0.1 * level + 4
    return Crop((pixels - level) / unit, small[None].float(), level, unit)


def _uncropped(pixels: Tensor, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Grey levels (C, 64, 64) at the size of the window that they are a crop of, (h, w, C)."""
    side = max(shape[:2])
    square = pixels.permute(1, 2, 0).contiguous().numpy()
    how = cv2.INTER_CUBIC if side > _SIDE else cv2.INTER_AREA
    large = cv2.resize(square, (side, side), interpolation=how)
    return np.asarray(large.reshape(side, side, -1)[: shape[0], : shape[1]], np.float32)
