"""Detectors over a backbone: pixels in, features compared with what good parts showed."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from offnominal.backbones.base import Backbone, Resize
from offnominal.detectors.backboned import BackboneDetector
from offnominal.detectors.options import check_choice, check_range
from offnominal.errors import OptionError
from offnominal.scoring import Scores, Size
from offnominal.views import View, merge, tiled_views, unseen, whole_view

__all__ = [
    "FeatureDetector",
    "ViewScores",
    "joined",
    "tokens_of",
]

_LARGEST = 2**14  # pixels of a side that a network is given


class ViewScores(NamedTuple):
    """What a method says of one view.

    Attributes
    ----------
    patches : Tensor of shape (gh, gw), float32
    image : Tensor or None
        Where the method scores the view itself, beside its patches.
    weight : Tensor or None
        Multiplies the statistic of the patches; None: 1.
    """

    patches: Tensor
    image: Tensor | None = None
    weight: Tensor | None = None


class FeatureDetector(BackboneDetector):
    """A detector whose patches are features of a backbone.

    A method writes :meth:`learn_features` and :meth:`compare`, and where it needs to
    :meth:`embed`, :meth:`finish` and :meth:`begin`. Learning, scoring, leave-one-out, tiles and
    files follow from these.

    Parameters
    ----------
    resolution : int or None
        Length of the image's smaller side in pixels (of both with ``resize="square"``); None: the
        backbone's default, which is 448 for DINOv2.
    resize : {"short", "crop", "square"} or None
        ``short`` keeps the aspect ratio but for less than half a patch: each side is rounded to
        whole patches, so that all of the image is seen; ``crop`` keeps it and cuts off what does
        not fill a patch, as the released codes do; ``square`` squashes. None: the backbone's.
    tile : int or None
        Side of overlapping tiles at full resolution, in pixels, for very large images.
    **options
        See :class:`~offnominal.detectors.backboned.BackboneDetector`.
    """

    # The paper's resolution for families of backbones; others have their own.
    default_resolutions: ClassVar[Mapping[str, int]] = {}
    takes_tiles: ClassVar[bool] = True
    # The options by which a part of the image can be left out.
    cropping: ClassVar[str] = "--resize crop"

    def __init__(
        self,
        resolution: int | None = None,
        resize: Resize | None = None,
        tile: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if resize is not None:
            check_choice("resize", resize, Resize)
        for name, pixels in (("resolution", resolution), ("tile", tile)):
            if pixels is not None:
                check_range(name, pixels, least=1, most=_LARGEST)
                if pixels != int(pixels):
                    raise OptionError(f"--{name} {pixels}: give a whole number of pixels")
        if tile and not self.takes_tiles:
            raise OptionError(
                f"--tile {tile}: {self.method} looks at images as a whole; leave it out, or "
                "choose a method that judges patches, such as anomalydino"
            )
        self.resolution = resolution
        self.resize = resize
        self.tile = tile
        self._geometry: dict[Size, list[View]] = {}

    # -- what a method writes -----------------------------------------------------------------

    def embed(self, pixels: Tensor) -> Any:
        """Features of one view (3, h, w), as the method's next two take them: (D, gh, gw) here."""
        return self.features(pixels[None])[0]

    def learn_features(self, number: int, features: Any, view: int, upright: bool) -> None:
        """Learn from a view of a reference.

        Parameters
        ----------
        number : int
            Of the reference.
        features : what :meth:`embed` gave
        view : int
            Place of the view in :meth:`reference_views`.
        upright : bool
            Whether new images are looked at so too.
        """

    @abstractmethod
    def compare(self, features: Any, without: int | None = None) -> ViewScores:
        """Score a view by its features, as if reference ``without`` had never been learned."""

    def default_resolution(self, network: Backbone) -> int:
        """Resolution where the option names none."""
        return self.default_resolutions.get(network.family, network.resolution)

    def views(self, image: np.ndarray) -> list[View]:
        """An image, uint8 (H, W, 3), sized for the backbone, or cut into tiles."""
        net = self.load_network()
        if self.tile:
            return tiled_views(image, self.tile, net.multiple, net.mean, net.std)
        resolution = self.resolution or self.default_resolution(net)
        resize = self.resize or net.resize
        return [whole_view(image, resolution, net.multiple, resize, net.mean, net.std)]

    def reference_views(self, image: np.ndarray) -> list[View]:
        """The same of a reference: those of :meth:`views` first, then turned or flipped ones."""
        return self.views(image)

    # -- what follows -------------------------------------------------------------------------

    def learn(self, number: int, image: np.ndarray) -> Any:
        """Take in one good image; features of its upright views are what is kept."""
        kept = []
        for place, view in enumerate(self.reference_views(image)):
            features = self.embed(torch.from_numpy(view.pixels))
            self.learn_features(number, features, place, view.upright)
            if view.upright:
                kept.append(features)
        return kept

    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """What the score and the map of an image are made of, as if ``without`` were not known."""
        views = self.views(image)
        each = [self.embed(torch.from_numpy(view.pixels)) for view in views]
        return joined(views, [self.compare(features, without) for features in each])

    def score_reference(self, number: int, kept: Any) -> Scores:
        """Score a reference's features as if it had never been learned."""
        views = self.views_of(self.references[number].size)
        return joined(views, [self.compare(features, without=number) for features in kept])

    def forward(self, pixels: Tensor, size: Size | None = None) -> tuple[Tensor, Tensor]:
        """Image scores and patch scores of a batch of prepared pixels.

        Parameters
        ----------
        pixels : Tensor of shape (B, 3, h, w), float32
        size : (H, W) or None
            The images' own size, which ``aggregate="map-max"`` depends on; None: (h, w).

        Returns
        -------
        scores : Tensor of shape (B,), float32
        patch_scores : Tensor of shape (B, gh, gw), float32
        """
        self.verify()
        seen: Size = (pixels.shape[-2], pixels.shape[-1])
        window = None if size is None or self.tile else self.views_of(size)[0].window
        found = [self.compare(self.embed(one)) for one in pixels]
        each = [one_view(one, seen)._replace(window=window) for one in found]
        scores = [self.image_score(one, size or seen) for one in each]
        patches = torch.stack([one.patches for one in found])
        return torch.tensor(scores, device=patches.device), patches

    def views_of(self, size: Size) -> list[View]:
        """Upright views of any image (H, W), for where they lie; their pixels mean nothing."""
        if size not in self._geometry:
            if len(self._geometry) > 16:
                self._geometry.clear()
            self._geometry[size] = self.views(np.zeros((*size, 3), np.uint8))
        return self._geometry[size]

    def not_inspected(self, size: Size) -> str | None:
        """What of an image (H, W) no view shows, in words; None: all of it is looked at."""
        told = unseen(self.views_of(size), size)
        return told and f"{told}; leave out {self.cropping} to see all of it"


def one_view(found: ViewScores, seen: Size) -> Scores:
    """Scores of an image that was looked at once, at a size (h, w)."""
    return Scores(
        found.patches.float().cpu().numpy(),
        None if found.image is None else float(found.image),
        1.0 if found.weight is None else float(found.weight),
        None,
        seen[0] // found.patches.shape[0],
    )


def joined(views: Sequence[View], found: Sequence[ViewScores]) -> Scores:
    """Scores of an image from those of its views."""
    each = [one_view(one, view.size) for one, view in zip(found, views, strict=True)]
    patches, window = merge(views, [one.patches for one in each])
    # Of several views the most anomalous one speaks for the image.
    worst = max(each, key=lambda one: float(one.patches.max()))
    return worst._replace(patches=patches, window=window)


def tokens_of(features: Tensor) -> Tensor:
    """Patch features (D, gh, gw) as rows (gh * gw, D)."""
    return features.flatten(1).T.contiguous()
