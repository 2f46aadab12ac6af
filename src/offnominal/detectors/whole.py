"""What DN2, SPADE and PaDiM share: they look at an image as a whole, at several levels."""

from typing import ClassVar, Unpack

from offnominal.backbones.base import Backbone
from offnominal.detectors.base import Detector
from offnominal.detectors.common import CommonOptions
from offnominal.errors import OptionError

__all__ = ["LevelsDetector"]

_RESNET_RESOLUTION = 224


class LevelsDetector(Detector):
    """A detector that takes the levels of a network that its paper names.

    Any other backbone serves as well. Levels are counted from the end, so that the same default
    fits residual networks (their last stages) and transformers (their last blocks).

    Parameters
    ----------
    **common
        See :class:`~offnominal.detectors.base.Detector`. ``backbone`` None: what the weights file
        says of itself, otherwise the paper's. ``layers`` None: the paper's, counted from the end;
        a backbone without levels gives its only one. ``resolution`` None: 224 for residual
        networks, otherwise the backbone's own. ``tile`` is refused: these methods look at images as
        a whole.
    """

    default_layers: ClassVar[tuple[int, ...]]

    def __init__(self, **common: Unpack[CommonOptions]) -> None:
        super().__init__(**common)
        if self.tile:
            raise OptionError(
                f"--tile {self.tile}: {self.method} looks at images as a whole; leave it out, or "
                "choose a method that judges patches, such as anomalydino"
            )

    def choose_levels(self, network: Backbone) -> Backbone:
        """The network at this method's levels, unless ``layers`` names others."""
        return network if self.layers is not None else network.at_levels(self.default_layers)

    def _default_resolution(self, net: Backbone) -> int:
        # The three papers scale to 256 and look at the middle 224 pixels. A fault may lie at the
        # rim, so here the whole image is scaled to 224, which gives grids of the papers' sizes.
        return _RESNET_RESOLUTION if "resnet" in net.name else net.resolution
