"""Saliency: a U-Net learns what stands out, most carefully along its edges.

The loss is that of Wei, Wang and Huang, "F3Net: Fusion, Feedback and Focus for Salient Object
Detection", AAAI 2020 (arXiv 1911.11445); maps at every level of the decoder that are joined to one
are those of Qin et al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object
Detection", Pattern Recognition 106, 2020 (arXiv 2005.09007).
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.supervised.finetuned import FineTuned
from offnominal.detectors.supervised.unets import defect_scores, smp_model
from offnominal.extras import check_there
from offnominal.labels.labelled import UNKNOWN
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch

__all__ = ["Saliency", "edge_aware"]

Form = Literal["unet", "u2net"]

_NEAR = 31 / 352  # side of the neighbourhood, of the image's: 31 pixels of the paper's 352
_WEIGHT = 5.0  # of pixels along edges, beside 1 of all


class Saliency(FineTuned):
    """A U-Net that marks whatever is defective, whatever its class, with sharp edges.

    Parameters
    ----------
    form : {"unet", "u2net"}
        ``unet``: one map. ``u2net``: a map at each level of the decoder as well, each held to the
        mask, and one that joins them.
    width : float
        Factor on the channels of the decoder, 256 to 16.
    **options
        See :class:`~offnominal.detectors.supervised.finetuned.FineTuned`.

    Notes
    -----
    Of U2-Net it has the maps of all levels and how they are joined; encoder and decoder are those
    of segmentation_models_pytorch, not its nested blocks.

    Scores are those of :class:`~offnominal.detectors.supervised.segmentation.Segmentation`.
    """

    method: ClassVar[str] = "saliency"
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=300, paper_epochs=32)
    use_of_marks: ClassVar[Literal["ignored", "used", "needed"]] = "needed"
    finest: ClassVar[int] = 128

    def __init__(self, form: Form = "u2net", width: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        check_choice("form", form, Form)
        check_range("width", width, above=0, most=4)
        check_there("segmentation_models_pytorch", f"the method {self.method}")
        self.form: Form = form
        self.width = width

    def build(self) -> None:
        """The U-Net, and what makes a map of each level."""
        unet = smp_model("unet", self.timm_name, self.arguments, self.width)
        self.net = _Sides(unet) if self.form == "u2net" else nn.Sequential(unet)

    def encoder(self) -> nn.Module:
        """The network of timm's."""
        unet: Any = self.net[0]
        found: nn.Module = unet.encoder.model
        return found

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The edge-aware loss of all maps."""
        assert batch.targets is not None
        whole, *sides = self.net(batch.pixels).unbind(1)
        parts = {"map": edge_aware(whole, batch.targets)}
        if sides:
            each = [edge_aware(side, batch.targets) for side in sides]
            parts["sides"] = torch.stack(each).mean()
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def compare(self, pixels: Tensor) -> ViewScores:
        """Scores of the pixels."""
        return ViewScores(*defect_scores(self.net(pixels)[0, 0]))


class _Sides(nn.Sequential):
    """A U-Net of segmentation_models_pytorch with a map at each level of its decoder."""

    def __init__(self, unet: Any) -> None:
        channels = [block.conv2[0].out_channels for block in unet.decoder.blocks]
        sides = nn.ModuleList(nn.Conv2d(each, 1, 3, padding=1) for each in channels)
        super().__init__(unet, sides, nn.Conv2d(len(channels), 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Log odds (B, 1 + levels, h, w) of images (B, 3, h, w): the joined map's come first."""
        parts: list[Any] = list(self)
        unet, sides, joined = parts
        features = unet.encoder(pixels)
        *skips, found = features[1:]
        found = unet.decoder.center(found)
        maps = []
        for block, side in zip(unet.decoder.blocks, sides, strict=True):
            size = (skips[-1] if skips else pixels).shape[-2:]
            found = block(found, *size, skips.pop() if skips else None)
            maps.append(F.interpolate(side(found), pixels.shape[-2:], mode="bilinear"))
        levels = torch.cat(maps, 1)
        return torch.cat([joined(levels), levels], 1)


def edge_aware(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy and intersection over union, weighted by how near an edge of the mask is.

    A pixel weighs 1 plus five times the difference between it and the mean of its neighbourhood
    (Wei et al., 2020, equations 6 to 8), and nothing where its target is not known.

    Parameters
    ----------
    logits : Tensor of shape (B, h, w), floating
    targets : Tensor of shape (B, h, w), uint8
        0 good, 1 defective, 255 not known.

    Returns
    -------
    Tensor of shape ()
    """
    logits, known, truth = logits.float(), targets != UNKNOWN, (targets == 1).float()
    reach = max(1, round(_NEAR * max(truth.shape[-2:]) / 2))
    around = F.avg_pool2d(truth[:, None], 2 * reach + 1, 1, reach, count_include_pad=False)[:, 0]
    weight = (1 + _WEIGHT * (around - truth).abs()) * known
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    total = weight.sum((1, 2)).clamp(min=1e-6)
    entropy = (each * weight).sum((1, 2)) / total
    chance = logits.sigmoid()
    both = (chance * truth * weight).sum((1, 2))
    either = ((chance + truth) * weight).sum((1, 2)) - both
    return (entropy + 1 - (both + 1) / (either + 1)).mean()
