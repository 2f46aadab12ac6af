"""Features of a transformer's middle blocks, fused into one grid.

The blocks half way up tell defects apart better than the last one, whose tokens are about what the
object is. Which blocks, and that their tokens are averaged without the final layer norm, is each
method's own finding; what is shared is here.
"""

from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.detectors.base import Detector
from offnominal.detectors.common import check_choice
from offnominal.errors import OptionError

__all__ = ["Fusion", "MiddleLayers", "fuse_levels"]

Fusion = Literal["mean", "concat"]


class MiddleLayers(Detector):
    """A detector that fuses several levels of its backbone.

    A method names its blocks in :meth:`default_blocks`; they are used where ``layers`` is None and
    the backbone is a transformer. Other backbones give what they always give.
    """

    fusion: Fusion | None

    @staticmethod
    @abstractmethod
    def default_blocks(count: int) -> tuple[int, ...]:
        """The blocks, counted from 0, that the method uses of a transformer with ``count``."""

    @staticmethod
    def check_fusion(fusion: Fusion | None) -> None:
        """Raise an :class:`OptionError` if there is no such way to fuse."""
        if fusion is not None:
            check_choice("fusion", fusion, get_args(Fusion))

    def choose_levels(self, network: Backbone) -> Backbone:
        """The network at this method's blocks, unless it is no transformer."""
        # The levels of a pyramid have strides of their own; there the backbone's default is kept.
        if (
            self.layers is not None
            or network.level_count == 1
            or network.multiple != network.stride
        ):
            return network
        return network.at_levels(self.default_blocks(network.level_count))

    def fused(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Fused features and a vector for each image, in float32.

        Parameters
        ----------
        pixels : Tensor of shape (B, 3, h, w), float32, on any device

        Returns
        -------
        features : Tensor of shape (B, D, gh, gw)
        summary : Tensor of shape (B, D')
            The class token behind the last block that is used, or the mean over the positions.
        """
        with self._autocast():
            net = self.load_network()
            features, summary = fuse_levels(net, pixels.to(self._device), self.fusion)
        return features.float(), summary.float()

    def features(self, pixels: Tensor) -> Tensor:
        """Fused features (B, D, gh, gw) in float32 of pixels (B, 3, h, w) on any device."""
        return self.fused(pixels)[0]


def fuse_levels(
    net: Backbone, pixels: Tensor, fusion: Fusion | None = None
) -> tuple[Tensor, Tensor]:
    """One grid of features from several levels, and a vector for each image.

    Parameters
    ----------
    net : Backbone
    pixels : Tensor of shape (B, 3, h, w), float32
    fusion : {"mean", "concat"} or None
        None: the mean where the levels have one shape, otherwise what the backbone's ``forward``
        makes of them, which is a concatenation.

    Returns
    -------
    features : Tensor of shape (B, D, gh, gw)
        Of the blocks' raw output, without a final layer norm.
    summary : Tensor of shape (B, D')

    Raises
    ------
    OptionError
        If levels of several shapes are to be averaged.
    """
    if net.multiple != net.stride:  # a pyramid, whose levels have grids of their own
        if fusion == "mean":
            raise _no_mean(net)
        features = net(pixels)
        return features, features.mean((2, 3))
    maps, summary = net.levels(pixels, norm=False)
    if fusion == "mean" and len({m.shape[1] for m in maps}) > 1:
        raise _no_mean(net)
    if fusion == "concat" or len({m.shape[1] for m in maps}) > 1:
        return torch.cat(maps, dim=1), summary
    return torch.stack(maps).mean(0), summary


def _no_mean(net: Backbone) -> OptionError:
    return OptionError(
        f"--fusion mean: the levels of {net.name} have several shapes; use --fusion concat"
    )
