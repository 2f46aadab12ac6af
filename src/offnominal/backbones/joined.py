"""Several backbones as one: their features beside one another."""

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.backbones.base import Backbone, Levels
from offnominal.backbones.catalogue import JOIN
from offnominal.errors import BackboneError, OptionError

__all__ = ["JoinedBackbone"]


class JoinedBackbone(Backbone):
    """Features of several backbones, each brought to the finest grid among them and joined.

    Each is given what it takes: networks of pictures the first three channels, normalised as they
    were trained, and those of points all of them. Colour is normalised as the first network of
    pictures says. Where there are points, the size is theirs, a square of 224 pixels.

    Parameters
    ----------
    members : sequence of Backbone
        Two or more.

    Attributes
    ----------
    members : list of Backbone
    parts : tuple of int
        Lengths of the members' features, in order; ``dim`` is their sum.
    scales : tuple of float
        What each part is multiplied by.

    Raises
    ------
    OptionError
        If there is only one.
    """

    family = "joined"
    normalize = "none"
    layers = (0,)

    def __init__(self, members: Sequence[Backbone]) -> None:
        super().__init__()
        if len(members) < 2:
            raise OptionError("a joined backbone needs two or more")
        self.scales = (1.0,) * len(members)
        self._take(members)
        pictures = [each for each in members if not each.takes_points]
        first = (pictures or list(members))[0]
        self.mean, self.std = first.mean, first.std
        sizes = [each for each in members if each.takes_points] or [first]
        self.resolution, self.resize = sizes[0].resolution, sizes[0].resize
        self.takes_points = len(pictures) < len(members)
        self.untrained = "; ".join(dict.fromkeys(e.untrained for e in members if e.untrained))
        self.eval()

    def _take(self, members: Sequence[Backbone]) -> None:
        vars(self)["_modules"] = {"members": nn.ModuleList(members)}  # a copy shares none of it
        self.name = JOIN.join(each.name for each in members)
        self.parts = tuple(each.dim for each in members)
        self.dim = sum(self.parts)
        self.stride = min(each.stride for each in members)
        self.multiple = math.lcm(*(each.multiple for each in members))
        plain = " ".join(each.digest for each in members)
        self.digest = hashlib.sha256(plain.encode()).hexdigest()

    def scaled(self, scales: Sequence[float]) -> Self:
        """A copy, sharing all weights, with each part of the features times a number.

        They are a detector's, which learned them from good parts: the digest does not tell them.

        Raises
        ------
        OptionError
            If there are not as many as parts.
        """
        if len(scales) != len(self.parts):
            raise OptionError(f"{len(scales)} scales for {len(self.parts)} parts of {self.name}")
        other = copy.copy(self)
        other.scales = tuple(float(each) for each in scales)
        return other

    def at_levels(self, layers: Sequence[int]) -> Self:
        """The same networks, each at these levels where it has several."""
        other = copy.copy(self)
        other._take([each.at_levels(layers) for each in self._members])
        return other

    def trim(self) -> None:
        """Drop what lies behind the levels in use, of every member."""
        for each in self._members:
            each.trim()

    @property
    def _members(self) -> list[Backbone]:
        return list(self.members)  # type: ignore[arg-type]  # modules, to a container

    def given(self, pixels: Tensor) -> list[tuple[Backbone, Tensor, float]]:
        """The members, what each is given of pixels (B, C, h, w), and its scale.

        Raises
        ------
        BackboneError
            If there are no points for a member that takes some, or no colour for another.
        """
        if self.takes_points and pixels.shape[1] != 6:
            raise BackboneError(
                f"{self.name} takes scans of six channels, colour and points, not {pixels.shape[1]}"
            )
        colour = pixels[:, :3]
        found = []
        for member, scale in zip(self._members, self.scales, strict=True):
            own = pixels
            if not member.takes_points:
                own = _renormalised(colour, self, member)
                if self.takes_points and not bool(torch.isfinite(own).all()):
                    raise BackboneError(
                        f"{member.name} looks at colour, and the scan has none: leave it out of "
                        f"--backbone {self.name}"
                    )
            found.append((member, own, scale))
        return found

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, dim, gh, gw) on the finest grid; coarser ones are upsampled bilinearly."""
        self.check_size(pixels)
        maps = [member(own).float() * scale for member, own, scale in self.given(pixels)]
        grid = max((each.shape[-2:] for each in maps), key=math.prod)
        return torch.cat([_on_grid(each, grid) for each in maps], 1)

    def levels(self, pixels: Tensor, norm: bool = True) -> Levels:
        """The joined features as one level, and the members' vectors of the image, joined.

        Levels of different networks are no stages of one another, which is what a method with
        several levels expects.
        """
        each = [m.levels(own, norm).summary * scale for m, own, scale in self.given(pixels)]
        return Levels([self(pixels)], torch.cat(each, 1))


def _renormalised(colour: Tensor, by: Backbone, to: Backbone) -> Tensor:
    if (by.mean, by.std) == (to.mean, to.std):
        return colour
    mean, std, own_mean, own_std = (
        colour.new_tensor(each)[:, None, None] for each in (by.mean, by.std, to.mean, to.std)
    )
    return (colour * std + mean - own_mean) / own_std


def _on_grid(maps: Tensor, grid: torch.Size) -> Tensor:
    if maps.shape[-2:] == grid:
        return maps
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
