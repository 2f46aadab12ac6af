"""Networks of segmentation_models_pytorch, and what is made of the maps that they give."""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from offnominal.errors import OptionError
from offnominal.extras import needs
from offnominal.labels.labelled import UNKNOWN

__all__ = ["WIDTHS", "Decoder", "defect_scores", "dice", "smp_model"]

Decoder = Literal[
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet",
    "deeplabv3", "deeplabv3plus", "pan", "upernet", "segformer", "dpt",
]  # fmt: skip

_FIVE = {"decoder_channels": (256, 128, 64, 32, 16)}
_ONE = {"decoder_channels": 256}
WIDTHS: Mapping[str, Mapping[str, int | tuple[int, ...]]] = {
    **dict.fromkeys(("unet", "unetplusplus", "manet"), _FIVE),
    "fpn": {"decoder_pyramid_channels": 256, "decoder_segmentation_channels": 128},
    "pspnet": {"psp_out_channels": 512},
    **dict.fromkeys(("deeplabv3", "deeplabv3plus", "upernet"), _ONE),
    "pan": {"decoder_channels": 32},
    "segformer": {"decoder_segmentation_channels": 256},
    "dpt": {"decoder_fusion_channels": 256},
}
"""The library's own widths, by decoder and what they are called there."""

_PIXELS = 4  # side of the square whose mean log odds make the image score


def smp_model(
    decoder: Decoder,
    timm_name: str,
    arguments: Mapping[str, Any],
    width: float = 1.0,
    classes: int = 0,
) -> Any:
    """A network of segmentation_models_pytorch with one map, drawn by torch's generator.

    Parameters
    ----------
    decoder : str
        As the library calls its architectures.
    timm_name, arguments
        The encoder, and how it is built.
    width : float
        Factor on the library's widths of the decoder.
    classes : int
        Of the head on the encoder's last level; 0: no such head.

    Raises
    ------
    OptionError
        If the decoder does not take the encoder.
    MissingExtraError
        If the library is not installed.
    """
    smp = needs("segmentation_models_pytorch", "supervised", f"the decoder {decoder}")
    widths = {
        name: tuple(_times(one, width) for one in given)
        if isinstance(given, tuple)
        else _times(given, width)
        for name, given in WIDTHS.get(decoder, {}).items()
    }
    head = {"classes": classes, "pooling": "avg", "dropout": 0.2} if classes else None
    told = {"encoder_weights": None, "classes": 1, "aux_params": head, **widths, **arguments}
    try:
        return smp.create_model(decoder, encoder_name=f"tu-{timm_name}", **told)
    except (KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(
            f"--decoder {decoder} --backbone {timm_name}: segmentation_models_pytorch does not put "
            f"them together ({str(error).splitlines()[0][:120]}); unet takes most networks"
        ) from error


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """One less the Dice coefficient of all known pixels of a batch; 0 where none is defective.

    Milletari, Navab and Ahmadi, "V-Net", 2016, as segmentation_models_pytorch has it.
    """
    losses = needs("segmentation_models_pytorch", "supervised", "the Dice loss").losses
    found: Tensor = losses.DiceLoss("binary", ignore_index=UNKNOWN)(
        logits[:, None].float(), targets[:, None].long()
    )
    return found


def defect_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (h, w) of the pixels of one map (h, w) of log odds, and the image's.

    Minus the logarithm of the probability that a pixel is good: 0.69 is even, and unlike a
    probability it goes on rising. The image's is that of the largest mean of log odds over squares
    of 4 x 4 pixels, so that one pixel rejects no part.
    """
    logits = logits.float()
    side = min(_PIXELS, *logits.shape)
    means = F.avg_pool2d(logits[None, None], side, stride=max(1, side // 2))
    return F.softplus(logits), F.softplus(means.max())


def _times(channels: int, width: float) -> int:
    return max(4, round(channels * width))
