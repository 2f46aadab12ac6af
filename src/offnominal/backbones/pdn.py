"""Patch description networks: four or six convolutions that were taught what a deep network says.

Batzner, Heckler and König, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level
Latencies", WACV 2024 (arXiv 2303.14535), section 3.1 and tables of appendix A. Tensors are named as
in nelson1425's reproduction; the names of anomalib's files are understood as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.backbones import weights as files
from offnominal.backbones.base import Backbone
from offnominal.backbones.catalogue import on_no_hub
from offnominal.errors import BackboneError, OptionError, WeightsError

__all__ = ["DIM", "SIZES", "PatchDescriber", "PatchDescription"]

DIM = 384  # channels of the paper's teacher

# Channels between the convolutions, and each one's kernel; pools lie behind the first two. Last
# comes what is padded with zeros before each, convolutions and pools in turn, where the network is
# to give one feature for every 4 x 4 pixels. Between medium's last two are as many as come out.
SIZES = {
    "pdn_small": ((128, 256, 256), (4, 4, 3, 4), (3, 1, 3, 1, 1, 0)),
    "pdn_medium": ((256, 512, 512, 512), (4, 4, 1, 3, 4, 1), (3, 1, 3, 1, 0, 1, 0, 0)),
}
_FIELD = 33  # pixels on a side that a feature sees


class PatchDescription(nn.Sequential):
    """Convolutions with ReLU between them, and averages over 2 x 2 behind the first two.

    A feature sees 33 x 33 pixels, in steps of 4.

    Parameters
    ----------
    size : {"pdn_small", "pdn_medium"}
    dim : int
        Channels that come out.
    width : float
        Factor on the paper's channels between the convolutions.
    hidden : sequence of int or None
        Channels between the convolutions, where no factor tells them.
    """

    def __init__(
        self, size: str, dim: int = DIM, width: float = 1.0, hidden: Sequence[int] | None = None
    ) -> None:
        paper, kernels, padding = SIZES[size]
        scaled = (*(max(1, round(width * channels)) for channels in paper), dim)
        channels = (3, *(hidden or scaled)[: len(kernels) - 1], dim)
        layers: list[nn.Module] = []
        for number, kernel in enumerate(kernels):
            layers += [nn.Conv2d(channels[number], channels[number + 1], kernel), nn.ReLU()]
            layers += [nn.AvgPool2d(2, 2)] * (number < 2)
        super().__init__(*layers[:-1])
        self.size = size
        self.padding = padding

    def forward(
        self, pixels: Tensor, padded: bool = False, channels: slice = slice(None)
    ) -> Tensor:
        """Features of images (B, 3, h, w), whose sides are multiples of 4.

        (B, dim, h / 4 - 8, w / 4 - 8), of the places where all that they see lies in the image;
        with ``padded``, as while it is taught, (B, dim, h / 4, w / 4). Of the ``channels`` that are
        not asked for, nothing is computed.
        """
        *layers, last = self
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        rims = iter(self.padding)
        for layer in layers:
            rim = 0 if isinstance(layer, nn.ReLU) else next(rims)
            pixels = layer(F.pad(pixels, (rim,) * 4) if padded and rim else pixels)
        return F.conv2d(pixels, last.weight[channels], last.bias[channels])


class PatchDescriber(Backbone):
    """A patch description network as a backbone: EfficientAD's teacher, or any method's features.

    ``offnominal train efficientad-teacher`` makes one from any other backbone.
    """

    family = "pdn"
    stride = multiple = 4
    resolution = 256
    resize = "square"
    layers = (0,)

    def __init__(self, name: str, dim: int = DIM, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        self.name = name
        self.dim = dim
        self.model = PatchDescription(name, dim, hidden=hidden)

    @classmethod
    def load(
        cls,
        name: str,
        weights: str | Path | None = None,
        layers: Sequence[int] | None = None,
    ) -> Self:
        """Read a network from a file, of any width.

        Raises
        ------
        BackboneError
            If there is no such network.
        OptionError
            If ``layers`` are named: it has one level.
        WeightsError
            If no file is given, it is missing or does not fit.
        """
        if name not in SIZES:
            raise BackboneError(f"unknown backbone {name!r}: choose one of {', '.join(SIZES)}")
        if layers is not None:
            raise OptionError(f"--backbone {name} takes no --layers: it has one level")
        if weights is None:
            raise WeightsError(on_no_hub(name))
        tensors = files.read_weights(Path(weights))
        metadata = files.read_metadata(Path(weights))
        with torch.device("meta"):
            places = [key.removesuffix(".weight") for key in cls(name).model.state_dict()][::2]
        if "conv1.weight" in tensors:  # anomalib's names
            known = {f"conv{number}": place for number, place in enumerate(places, start=1)}
            tensors = {
                f"{known.get(layer, layer)}.{kind}": tensor
                for (layer, _, kind), tensor in ((k.partition("."), t) for k, t in tensors.items())
            }
        shapes = [
            tensors[key].shape for key in (f"{place}.weight" for place in places) if key in tensors
        ]
        if len(shapes) != len(places) or len(tensors) != 2 * len(places):
            raise WeightsError(
                f"{weights}: does not hold the {len(places)} convolutions of {name}; another size "
                f"is --backbone {' or '.join(SIZES.keys() - {name})}"
            )
        *hidden, dim = (shape[0] for shape in shapes)
        with torch.device("meta"):
            network = cls(name, dim, hidden)
        files.fit_to(network.model, tensors, str(weights), name)
        network.mean, network.std = files.normalisation(
            metadata, Path(weights), network.mean, network.std
        )
        network.digest = files.digest(network.model)
        network.untrained = files.untrained_reason(metadata)
        return network.eval().requires_grad_(False)

    def check_size(self, pixels: Tensor) -> None:
        """Raise a :class:`BackboneError` that names the size to use."""
        super().check_size(pixels)
        if min(pixels.shape[-2:]) <= _FIELD:
            raise BackboneError(
                f"{self.name} looks at {_FIELD} x {_FIELD} px at once, and the image has "
                f"{pixels.shape[-2]} x {pixels.shape[-1]}: give a larger --resolution"
            )

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, dim, h / 4, w / 4), with zeros beyond the border; see :class:`Backbone`."""
        self.check_size(pixels)
        found: Tensor = self.model(pixels, padded=True)
        return found
