"""What every backbone is: pixels in, a grid of patch features out."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor, nn

from offnominal.backbones.catalogue import Normalize
from offnominal.errors import BackboneError, OptionError
from offnominal.sizing import Resize

__all__ = ["Backbone", "Levels", "Normalize", "Origin", "Resize"]


class Levels(NamedTuple):
    """The feature levels of a batch, one by one.

    ``maps`` are (B, C, gh, gw) each, from the finest level to the coarsest, as ``layers`` names
    them. ``summary`` (B, C') is a vector for each image: the class token of a transformer that has
    one, normalised as the patch tokens are; otherwise the mean over the last level's positions.
    """

    maps: list[Tensor]
    summary: Tensor


class Origin(NamedTuple):
    """What a network was built from, and the digest that it had; a changed copy has another."""

    name: str
    weights: str | None
    layers: tuple[int, ...] | None
    digest: str


class Backbone(nn.Module, ABC):
    """A frozen network that turns pixels into patch features.

    A backbone has no fitted state: whatever depends on the good images belongs to the detector.

    Attributes
    ----------
    name : str
        The name it was asked for by.
    family : str
        What kind of network it is, by which methods choose defaults: ``dinov2``, ``dinov3``,
        ``dino``, ``clip``, ``mae`` or another ``vit``; ``resnet``, ``wide_resnet`` or another
        ``cnn``; ``builtin``; ``fpfh``; ``joined``.
    dim : int
        Length of a patch feature.
    stride : int
        Pixels between neighbouring patch features.
    multiple : int
        Image sides must be multiples of this many pixels.
    mean, std : tuple of three floats
        How pixels on [0, 1] are shifted and scaled before ``forward``.
    resolution : int
        Image size when the user names none, in pixels.
    resize : {"short", "crop", "square"}
        How images are sized when the user does not say.
    normalize : {"l2", "standardize", "none"}
        What a detector does to the features before it measures distances, unless told otherwise.
    mask_threshold : float or None
        Where the first principal component of the features separates object and background. None
        where no fixed value is known; Otsu's threshold is used then.
    layers : tuple of int
        Which feature levels are used, counted from 0 at the input.
    level_count : int
        How many feature levels there are to choose from.
    is_transformer : bool
        Whether its levels are blocks of tokens on one grid.
    digest : str
        Fingerprint of the weights; a saved detector refuses to load against another.
    untrained : str
        Why the weights' file says that they are not pretrained; empty if it does not say so.
    takes_points : bool
        Whether ``forward`` is given scans (B, 6, h, w): normalised colour, then x, y and z in
        metres, which are NaN where nothing was measured.
    parts : tuple of int
        Of joined networks the lengths of each one's features, in order; of others empty.
    """

    name: str
    family: str = ""
    dim: int
    stride: int
    multiple: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resolution: int = 448
    resize: Resize = "short"
    normalize: Normalize = "l2"
    mask_threshold: float | None = None
    layers: tuple[int, ...] = ()
    level_count: int = 1
    is_transformer: bool = False
    digest: str = ""
    untrained: str = ""
    takes_points: bool = False
    parts: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features (B, dim, h / stride, w / stride) of normalised images (B, 3, h, w).

        Raises
        ------
        BackboneError
            If a side is not a multiple of ``multiple``.
        """

    def levels(self, pixels: Tensor, norm: bool = True) -> Levels:
        """Feature levels of a batch (B, 3, h, w) before they are joined, and a vector of the image.

        ``norm`` says whether transformers apply the final layer norm to every level. A backbone
        without levels gives what ``forward`` does as its only one.
        """
        features = self(pixels)
        return Levels([features], features.mean((2, 3)))

    def token_levels(self, pixels: Tensor) -> list[Tensor]:
        """All tokens of each level of a batch, as blocks give them, without the final norm.

        (B, n + gh * gw, C) each: of a transformer the class token and registers, where it has them,
        come before those of the patches.
        """
        return [each.flatten(2).mT for each in self.levels(pixels, norm=False).maps]

    def at_levels(self, layers: Sequence[int]) -> Self:
        """The same network, sharing its weights, that gives other levels.

        They count from 0, or negative from the end; those that it does not have are left out. A
        backbone with one level only is itself.
        """
        if self.level_count == 1:
            return self
        count = self.level_count
        other = copy.copy(self)  # shallow: one network
        other._use(tuple(sorted({index % count for index in layers if -count <= index < count})))
        return other

    def reflected(self) -> Self:
        """A copy whose convolutions pad with reflections of a map instead of zeros.

        Raises
        ------
        BackboneError
            If there are no such convolutions.
        """
        raise BackboneError(f"{self.name} has no convolutions whose padding could be reflected")

    def _choose_layers(self, layers: Sequence[int] | None, default: Sequence[int]) -> None:
        """Use the levels that a user names, or the default."""
        chosen = default if layers is None else layers
        if not chosen:
            raise OptionError("--layers: give one level or more")
        self._use(tuple(sorted({self._checked(index) for index in chosen})))

    def _checked(self, index: int) -> int:
        """A level counted from 0."""
        count = self.level_count
        if not -count <= index < count:
            raise OptionError(
                f"--layers {index}: {self.name} has {count} levels, 0 to {count - 1} (or -1 to "
                f"-{count} from the end)"
            )
        return index % count

    def _use(self, layers: tuple[int, ...]) -> None:
        """Set ``layers`` and what follows from them."""
        self.layers = layers

    def with_original_positions(self) -> Self:
        """The same network, sharing its weights, with the position rule of the first DINOv2.

        See :mod:`~offnominal.backbones.positions`. Where a network has no choice of rules, an
        :class:`OptionError` says so.
        """
        raise OptionError(
            f"--backbone {self.name}: only DINO and DINOv2 have the original rule of positions; "
            "leave --positions out"
        )

    def scaled(self, scales: Sequence[float]) -> Self:
        """The same networks, sharing their weights, each with its features times a number.

        Of joined networks only.
        """
        raise BackboneError(f"{self.name} is a single network, which has no parts to scale")

    def trim(self) -> None:
        """Drop what lies behind the levels in use, here and in all that share the weights.

        The features stay the same; deeper levels are gone for good.
        """

    def check_size(self, pixels: Tensor) -> None:
        """Raise a :class:`BackboneError` that names the size to crop to."""
        height, width = pixels.shape[-2:]
        if height % self.multiple or width % self.multiple or not height or not width:
            step = self.multiple
            raise BackboneError(
                f"{self.name} takes images whose sides are multiples of {step} px, not "
                f"{height} x {width}: crop to {height // step * step} x {width // step * step} or "
                f"pad to {-(-height // step) * step} x {-(-width // step) * step}"
            )
