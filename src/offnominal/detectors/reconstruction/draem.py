"""DRAEM: a network that paints defects over, and one that sees where it did.

Zavrtanik, Kristan and Skocaj, "DRAEM - A discriminatively trained reconstruction embedding for
surface anomaly detection", ICCV 2021 (arXiv 2108.07610), and the authors' code.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.reconstruction.networks import EncoderDecoder, UNet
from offnominal.detectors.trained import TrainedDetector
from offnominal.synthesis.perlin import perlin_defect
from offnominal.synthesis.textures import Textures
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images, Triple
from offnominal.training.losses import focal_loss, ssim

__all__ = ["DRAEM", "draem_losses", "draem_map", "draem_score", "observed_range"]

SsimRange = Literal["fixed", "batch"]

_PAPERS_WIDTH = 128
_GOOD = 0.5  # share of the images that stay as they are


class DRAEM(TrainedDetector):
    """Reconstruction and segmentation of synthetic defects, trained together, from nothing.

    Half of the images get a Perlin defect. The first network paints the image without it; the
    second sees the image and what was painted, and marks the defect.

    Parameters
    ----------
    width : int
        Channels of the first network's first block, even; the second has half as many. 128 in the
        paper, which is 97 million parameters and needs a GPU.
    textures : path or None
        A folder of images to fill defects with, such as the paper's Describable Textures; None:
        procedural ones.
    ssim_range : {"fixed", "batch"}
        Range of values in SSIM: 1, or what the released code reads off the first network's output,
        which is 2 as long as that has values under -0.5.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`.

    Notes
    -----
    The released code also turns 30 % of the good images by up to 90 degrees, with black corners;
    here ``augment="rotations"`` turns them, where a part may lie in any direction.
    """

    method: ClassVar[str] = "draem"
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=400, paper_epochs=700)
    side_multiple: ClassVar[int] = UNet.stride
    mean: ClassVar[Triple] = (0.0, 0.0, 0.0)
    std: ClassVar[Triple] = (1.0, 1.0, 1.0)
    finest: ClassVar[int] = 128
    learns_from: ClassVar[tuple[str, ...]] = ("textures",)

    def __init__(
        self,
        width: int = 16,
        textures: str | None = None,
        ssim_range: SsimRange = "fixed",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("width", width, least=2, most=1024, whole=True)
        check_choice("ssim_range", ssim_range, SsimRange)
        self.width = width
        self.textures = str(textures) if textures is not None else None
        self.ssim_range: SsimRange = ssim_range

    def build(self) -> None:
        """Both networks, drawn as in the released code."""
        self.painter = EncoderDecoder(self.width).apply(_draw)
        self.finder = UNet(6, 2, self.width // 2).apply(_draw)

    def prepare(self, images: Images) -> None:
        """Find the textures."""
        self._textures = Textures(self.textures)

    def optimisers(self) -> list[Optimizer]:
        """Adam (section 4.1), with steps that grow as the networks get narrower.

        At the paper's rate the last layers of a narrow network hardly move in the time there is; in
        proportion to 1 / width they change what comes out as fast as in a wide one (Yang and Hu,
        "Feature Learning in Infinite-Width Neural Networks", 2021).
        """
        rate = 1e-4 * _PAPERS_WIDTH / self.width
        return [Adam([*self.painter.parameters(), *self.finder.parameters()], lr=rate)]

    def rate(self, done: float) -> float:
        """A fifth after 80 % of the schedule, and again after 90 %."""
        return 0.2 ** ((done >= 0.8) + (done >= 0.9))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of images, half of which get a defect (equation 6)."""
        images, masks = [], []
        for image in batch.images.permute(0, 2, 3, 1).numpy():
            mask = np.zeros(image.shape[:2], bool)
            if batch.rng.random() >= _GOOD:
                image, mask = perlin_defect(image, batch.rng, self._textures)
            images.append(image)
            masks.append(mask)
        device = batch.pixels.device
        made = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255
        truth = torch.from_numpy(np.stack(masks)).to(device).float()
        painted = self.painter(made)
        logits = self.finder(torch.cat([painted, made], 1))
        span = 1.0 if self.ssim_range == "fixed" else observed_range(painted)
        return draem_losses(painted, logits, batch.pixels, truth, span)

    def compare(self, pixels: Tensor) -> ViewScores:
        """Probabilities of a defect, and the largest mean over 21 x 21 of them."""
        maps = draem_map(self.painter, self.finder, pixels)
        return ViewScores(maps[0], draem_score(maps)[0])


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)
        nn.init.zeros_(module.bias)


def observed_range(painted: Tensor) -> float:
    """The range of values that the released code reads off what was painted: 1, 2, 255 or 256."""
    highest = 255 if painted.max() > 128 else 1
    lowest = -1 if painted.min() < -0.5 else 0
    return float(highest - lowest)


def draem_losses(
    painted: Tensor, logits: Tensor, good: Tensor, truth: Tensor, span: float = 1.0
) -> dict[str, Tensor]:
    """Squared error, SSIM and focal loss, and their sum (equations 1, 2 and 6).

    Parameters
    ----------
    painted, good : Tensor of shape (B, 3, h, w), float32
        What the first network made, and the image before its defect was.
    logits : Tensor of shape (B, 2, h, w), float32
        Of the second network: good, defective.
    truth : Tensor of shape (B, h, w), float32
        1 where the defect was made.
    span : float
        Range of values in SSIM.
    """
    normal, abnormal = logits.float().softmax(1).unbind(1)
    parts = {
        "l2": F.mse_loss(painted.float(), good),
        "ssim": 1 - ssim(painted, good, "gaussian", "zeros", span=span).mean(),
        "focal": focal_loss(normal, abnormal, truth),
    }
    return {"total": torch.stack(list(parts.values())).sum(), **parts}


def draem_map(painter: nn.Module, finder: nn.Module, pixels: Tensor) -> Tensor:
    """Probability (B, h, w) of a defect at each pixel of images (B, 3, h, w) (section 3.4)."""
    logits: Tensor = finder(torch.cat([painter(pixels), pixels], 1))
    return logits.float().softmax(1)[:, 1]


def draem_score(maps: Tensor, window: int = 21) -> Tensor:
    """Largest mean (B,) over a window of maps (B, h, w), with zeros around them (equation 7)."""
    smooth = F.avg_pool2d(maps[:, None], window, stride=1, padding=window // 2)
    return smooth.flatten(1).amax(1)
