"""Detectors that have a backbone: which one, its weights, and a model file that names it."""

import operator
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from offnominal.backbones import (
    AUTO,
    DEFAULT,
    JOIN,
    backbone_name,
    load_backbone,
    takes_points,
)
from offnominal.backbones.auto import choose_backbone
from offnominal.detectors.deployed import EXPORTED, Deployed
from offnominal.detectors.learned_state import must, must_fit
from offnominal.detectors.on_device import OnDevice
from offnominal.engines.network import is_exported
from offnominal.errors import ImageError, ModelFileError, OptionError
from offnominal.images import Picture
from offnominal.scans.scan import CHANNELS, Modality, is_scan

if TYPE_CHECKING:  # a detector whose network was exported runs without torch
    from torch import Tensor

    from offnominal.backbones.base import Backbone, Levels

__all__ = ["BackboneDetector", "whole_numbers"]

_UNLIKE = (
    "is {}, and the detector has learned from {}: features of the two do not compare; give scans "
    "as it was fitted on"
)
_COMPARED = 256  # patches between which distances are taken


class BackboneDetector(OnDevice):
    """A detector with a frozen backbone, which its model file names and does not hold.

    Parameters
    ----------
    backbone : str or None
        Short name (see ``offnominal backbones``), any timm name, or ``open_clip:NAME``; ``auto`` or
        None: what the weights file says of itself, otherwise the method's own. Where that cannot be
        had and the method takes any network, the best that is on this machine.
    weights : path or None
        Local weights, safetensors or a ``.pth`` state dict, in timm's naming or the original; None:
        from the hub's cache, or fetched from the hub.
    layers : sequence of int or None
        Feature levels of the backbone, as ``2,3`` or ``-1``; None: the method's, or the backbone's.
    **options
        See :class:`~offnominal.detectors.on_device.OnDevice`; ``precision`` is the backbone's.
    """

    default_backbone: ClassVar[str] = DEFAULT
    takes_scans: ClassVar[bool] = True
    # How the names of the backbones that it can use begin.
    backbone_family: ClassVar[str | None] = ""
    # Levels where ``layers`` names none, counted from the end; None: the backbone's own.
    default_layers: ClassVar[tuple[int, ...] | None] = None

    def __init__(
        self,
        backbone: str | None = AUTO,
        weights: str | None = None,
        layers: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.backbone = None if backbone == AUTO else backbone
        self.backbone_note = ""
        self.weights = str(weights) if weights is not None else None
        self.layers = whole_numbers("layers", layers) if layers is not None else None
        # Or a graph of it in its place, which says the same of itself.
        self.network: Backbone | None = None
        self.deployed: Deployed | None = None  # what an exported file brought
        if (self.seen_as == "scan") != takes_points(self._named):
            raise OptionError(
                f"--modality {self.modality}: --backbone {self._named} looks at "
                + (
                    "points; leave the modality out"
                    if self.modality != "scan"
                    else "pictures; give one of points, as fpfh or wide_resnet50_2+fpfh"
                )
            )
        self._forget_scales()

    @property
    def _named(self) -> str:
        return self.backbone or self.default_backbone

    @property
    def seen_as(self) -> Modality:
        """What is seen of a scan: colour and points where the backbone takes those."""
        if self.modality == "auto" and takes_points(self._named):
            return "scan"
        return super().seen_as

    def _forget_references(self) -> None:
        super()._forget_references()
        if hasattr(self, "backbone"):
            self._forget_scales()

    def _forget_scales(self) -> None:
        if JOIN in self._named:
            self.part_scales_ = np.zeros(0, np.float32)
        if takes_points(self._named):
            self.voxel_ = 0.0

    def taken(self, picture: Picture, name: str) -> Picture:
        """A cloud without a grid, (1, N, 6), brought to the density of the first good one.

        Its pixels are then the means of the points in small cubes, (1, V, 6).

        Raises
        ------
        ImageError
            If what was learned from has a grid and this has none, or the other way round; if a
            network looks at colour and there is none; or if its points lie too far apart.
        """
        if not is_scan(picture.pixels):
            return picture
        cloud = picture.pixels.shape[0] == 1
        pictured = [part for part in self._named.split(JOIN) if not takes_points(part)]
        if pictured and (cloud or np.isnan(picture.pixels[0, 0, 0])):
            lacks = "is a cloud without a grid" if cloud else "has no colour"
            remedy = "" if cloud else ", or put colour pictures where the layout has them"
            raise ImageError(
                name,
                f"{lacks}, and {' and '.join(pictured)} of --backbone {self._named} looks at "
                f"colour pictures; leave that out{remedy}",
            )
        if not cloud:
            if self.voxel_:
                raise ImageError(name, _UNLIKE.format("a scan on a grid", "clouds without one"))
            return picture
        from offnominal.scans.voxels import default_voxel, voxels

        points = picture.pixels[0, :, 3:]
        if not (self.voxel_ or self.fitted or self.references):
            self.voxel_ = default_voxel(points)
        if not self.voxel_:
            raise ImageError(name, _UNLIKE.format("a cloud without a grid", "scans that have one"))
        try:
            centres, owners = voxels(points, self.voxel_)
        except OptionError as error:
            raise ImageError(name, str(error)) from error
        found = np.full((1, len(centres), CHANNELS), np.nan, np.float32)
        found[0, :, 3:] = centres
        return picture._replace(pixels=found, owners=owners)

    def match_parts(self, pixels: NDArray[np.float32]) -> None:
        """Bring the features of joined networks to one scale, once, by a good view (C, h, w).

        Each is divided by the median distance between its own patches, so that none counts for
        more because its numbers are larger.
        """
        if JOIN not in self._named or len(self.part_scales_):
            return
        network = self.load_network()
        from torch import from_numpy

        same = network.scaled([1.0] * len(network.parts))
        features = same(from_numpy(pixels[None]).to(self._device))[0].float().flatten(1).T.cpu()
        some = features[:: max(1, len(features) // _COMPARED)]
        scales = []
        for part in some.split(list(same.parts), dim=1):
            between = (part[:, None] - part[None]).norm(dim=2)
            median = float(between[between > 0].median()) if (between > 0).any() else 1.0
            scales.append(1 / median)
        self.part_scales_ = np.array(scales, np.float32)
        self.network = network.scaled(scales)

    def choose_levels(self, network: "Backbone") -> "Backbone":
        """The network at the levels that this method uses where ``layers`` names none."""
        if self.layers is not None or self.default_layers is None:
            return network
        return network.at_levels(self.default_layers)

    def load_network(self) -> "Backbone":
        """Build the backbone on first use and move everything to the device."""
        if self.network is None:
            self.use_network(self.build_network(), shared=False)
        assert self.network is not None
        return self.network

    def torch_network(self) -> "Backbone":
        """The backbone as torch's, built even where a graph of it is at hand.

        Raises
        ------
        OptionError
            Of an exported model, which has none, or if what the options name is another network by
            now.
        """
        if is_exported(graph := self.load_network()):
            if self.deployed is not None:
                raise OptionError(
                    "an exported model has no network of torch's: use the fitted model that it "
                    "was exported from"
                )
            made = self.build_network()
            if made.digest != graph.digest:
                raise OptionError(f"--weights: those of {made.name} changed since it was loaded")
            self.use_network(made, shared=False)
        return self.load_network()

    def build_network(self) -> "Backbone":
        """The backbone that the options name, or the best that can be had where they name none."""
        if self.backbone is None and self.weights is None:
            chosen = choose_backbone(self.default_backbone, self.backbone_family)
            name, self.backbone_note = chosen
        else:
            name = backbone_name(self.backbone, self.weights, self.default_backbone)
        return load_backbone(name, self.weights, self.layers)

    def use_network(self, network: "Backbone", shared: bool = True) -> None:
        """Adopt a backbone; of one that nobody else uses, only the levels that are needed."""
        self.network = self.choose_levels(network)
        if not shared:
            self.network.trim()
        self.use_device()

    def features(self, pixels: "Tensor") -> "Tensor":
        """Patch features (B, D, gh, gw) in float32 of pixels (B, 3, h, w) on any device."""
        with self._autocast():
            maps: Tensor = self.torch_network()(pixels.to(self._device))
        return maps.float()

    def levels(self, pixels: "Tensor", norm: bool = True) -> "Levels":
        """Feature levels and a vector for each image in float32, of pixels on any device."""
        from offnominal.backbones.base import Levels

        with self._autocast():
            maps, summary = self.torch_network().levels(pixels.to(self._device), norm)
        return Levels([each.float() for each in maps], summary.float())

    def _autocast(self) -> AbstractContextManager[Any]:
        self.torch_network()  # which settles the device
        return super()._autocast()

    # -- files --------------------------------------------------------------------------------

    def twin(self, changes: Mapping[str, Any]) -> Self:
        """Another with the same options, but for some, on the same network."""
        other = type(self)(**(self.options() | dict(changes)), device=self.device)
        other._device, other.network = self._device, self.load_network()
        other.backbone_note, other.deployed = self.backbone_note, self.deployed
        other.move(self._device)
        return other

    def header(self) -> dict[str, Any]:
        """All that is no array; the backbone by its name, settled at the fit, and digest."""
        net = self.load_network()
        found = super().header()
        found["options"] |= {"backbone": net.name}
        about = {"name": net.name, "digest": net.digest, "note": self.backbone_note}
        section = {"export": self.deployed.section()} if self.deployed else {}
        return found | {"backbone": about} | section

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Learned arrays and calibration scores; and the network, of an exported model."""
        graph = {EXPORTED: self.deployed.array()} if self.deployed else {}
        return super().arrays() | graph

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was learned, if the backbone is the one that it was learned with."""
        net, known = self.load_network(), header.get("backbone")
        told = [known.get("digest"), known.get("note", "")] if isinstance(known, dict) else [None]
        if known is None or not all(isinstance(one, str) for one in told):
            raise ModelFileError("its header does not say which backbone it was fitted with")
        if net.digest != known["digest"]:
            raise ModelFileError(
                f"fitted with other weights of {net.name} than "
                f"{self.weights or 'those on this machine'} (digest {known['digest'][:12]}, not "
                f"{net.digest[:12]}); give the right file with --weights, or fit anew"
            )
        rest = {name: array for name, array in arrays.items() if name != EXPORTED}
        super().restore(header, rest)
        if not getattr(self, "voxel_", 0.0) >= 0:
            raise ModelFileError("its voxel_ is below 0")
        if len(getattr(self, "part_scales_", ())):
            with must_fit():
                must(len(self.part_scales_) == len(net.parts), "part_scales_ of other networks")
                must((self.part_scales_ > 0).all(), "part_scales_ are not above 0")
            self.network = net.scaled(self.part_scales_.tolist())
        self.backbone_note = known.get("note", "")


def whole_numbers(option: str, values: Sequence[int]) -> tuple[int, ...]:
    """A sequence of whole numbers as a tuple, or an :class:`OptionError` that names the option."""
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError as error:
        raise OptionError(f"--{option} {values!r}: give whole numbers, as 2,3") from error
