"""Segmentation: a U-Net, or another decoder, learns from masks to mark defects.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015 (arXiv 1505.04597), and the other networks of segmentation_models_pytorch (Iakubovskii,
2019), each with its own paper.
"""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.supervised.finetuned import FineTuned
from offnominal.detectors.supervised.unets import (
    WIDTHS,
    Decoder,
    defect_scores,
    dice,
    smp_model,
)
from offnominal.errors import OptionError
from offnominal.extras import check_there
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch
from offnominal.training.imbalance import bce

__all__ = ["Segmentation"]

_LEAST_PAN = 128
_OF_CLASSES = 0.5  # weight of the loss of the classes


class Segmentation(FineTuned):
    """A network of segmentation_models_pytorch that marks defects, and names their class.

    Pixels whose label is not known do not count: inside of a box that is only a box, or anywhere on
    a defective image without marks. Such images teach the classes all the same.

    Parameters
    ----------
    decoder : str
        As segmentation_models_pytorch names its architectures: ``unet``, ``unetplusplus``,
        ``manet``, ``linknet``, ``fpn``, ``pspnet``, ``deeplabv3``, ``deeplabv3plus``, ``pan``,
        ``upernet``, ``segformer``, ``dpt``. Not each of them takes each encoder.
    width : float
        Factor on the library's channels of the decoder; ``linknet`` has no choice.
    **options
        See :class:`~offnominal.detectors.supervised.finetuned.FineTuned`.

    Notes
    -----
    A pixel scores minus the logarithm of the probability that it is good; 0.69 is even. The image
    score is that of the largest mean of log odds over squares of 4 x 4 pixels.

    Examples
    --------
    >>> from offnominal import Labelled, Mark, Segmentation
    >>> marked = Mark("scratch", mask=Path("masks/0.png"))
    >>> bad = [Labelled("bad/0.png", ("scratch",), (marked,))]
    >>> detector = Segmentation(budget="20m").fit("good/", defects=bad)
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "segmentation"
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=300, paper_epochs=100)
    use_of_marks: ClassVar[Literal["ignored", "used", "needed"]] = "needed"
    finest: ClassVar[int] = 128

    def __init__(self, decoder: Decoder = "unet", width: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        check_choice("decoder", decoder, Decoder)
        check_range("width", width, above=0, most=4)
        if width != 1 and decoder not in WIDTHS:
            raise OptionError(f"--width {width}: {decoder} has widths of its own; leave it out")
        if decoder == "pan" and self.side < _LEAST_PAN:
            told = f"pan halves what the network gives three times; give {_LEAST_PAN} or more"
            raise OptionError(f"--resolution {self.side}: {told}")
        check_there("segmentation_models_pytorch", f"the method {self.method}")
        self.decoder: Decoder = decoder
        self.width = width

    def build(self) -> None:
        """Encoder and decoder, with a head for the classes on the encoder's last level."""
        told = self.decoder, self.timm_name, self.arguments, self.width, len(self.kinds_)
        self.net = nn.Sequential(smp_model(*told))

    def encoder(self) -> nn.Module:
        """The network of timm's."""
        unet: Any = self.net[0]
        found: nn.Module = unet.encoder.model
        return found

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy and Dice over known pixels, and the classes' cross-entropy."""
        assert batch.targets is not None
        assert batch.kinds is not None
        marked, named = self.net(batch.pixels)
        parts = {
            "bce": bce(marked[:, 0], batch.targets),
            "dice": dice(marked[:, 0], batch.targets),
            "classes": bce(named, batch.kinds),
        }
        return {"total": parts["bce"] + parts["dice"] + _OF_CLASSES * parts["classes"], **parts}

    def compare(self, pixels: Tensor) -> ViewScores:
        """Scores of the pixels, and the probabilities of the classes."""
        marked, named = self.net(pixels)
        return ViewScores(*defect_scores(marked[0, 0]), kinds=named[0].float().sigmoid())
