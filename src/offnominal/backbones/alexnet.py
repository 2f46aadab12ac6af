"""AlexNet, which timm does not have: torchvision's, with its weights from a local file."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from offnominal.backbones import weights as files
from offnominal.backbones.base import Backbone
from offnominal.backbones.catalogue import ALEXNET, on_no_hub
from offnominal.errors import BackboneError, OptionError, WeightsError

__all__ = ["AlexNet"]


_LEAST = 63  # pixels of a side: less is gone before the last pooling


class AlexNet(Backbone):
    """The convolutions of AlexNet, as DifferNet uses them: one level of 256 channels.

    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014. Its grid is
    not padded, so it has fewer positions than a 32nd of the pixels: 6 x 6 of 224 x 224.

    Parameters
    ----------
    weights : path
        torchvision's ``alexnet-owt-7be5be79.pth``, or another state dict in its naming.

    Raises
    ------
    WeightsError
        If none is given: they are on no hub. If it does not fit.
    OptionError
        If ``layers`` are named.
    """

    name = ALEXNET
    family = "cnn"
    dim = 256
    stride = 32
    multiple = 1
    resolution = 224
    layers = (0,)

    def __init__(self, weights: str | Path | None, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        if weights is None:
            raise WeightsError(on_no_hub(ALEXNET))
        if layers is not None:
            raise OptionError(f"--layers: {ALEXNET} has one level; leave it out")
        with torch.device("meta"):
            self.model = nn.ModuleDict({"features": alexnet().features})
        files.fit_to(self.model, files.read_weights(Path(weights)), str(weights), ALEXNET)
        self.digest = files.digest(self.model)
        self.untrained = files.untrained_reason(files.read_metadata(Path(weights)))
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, 256, gh, gw); see :class:`Backbone`."""
        if min(pixels.shape[-2:]) < _LEAST:
            height, width = pixels.shape[-2:]
            raise BackboneError(f"{ALEXNET} takes {_LEAST} px or more, not {height} x {width}")
        found: Tensor = self.model["features"](pixels)
        return found
