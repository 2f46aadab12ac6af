"""An image as the backbone sees it: one view of the whole, or overlapping tiles."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from offnominal.backbones.base import Backbone, Resize
from offnominal.errors import OptionError
from offnominal.sizing import Tile, blend_tiles, pad_image, resize_image, tile_grid, to_pixels

__all__ = ["Views", "tiled_views", "whole_view"]


@dataclass(frozen=True)
class Views:
    """What is to be scored of one image.

    Attributes
    ----------
    pixels : list of Tensor of shape (3, h, w), float32
    tiles : list of Tile
        Where the views lie; empty for a single view of the whole image.
    cover : (H, W) or None
        The padded size that the tiles cover.
    stride : int
        Pixels between patch features.
    """

    pixels: list[Tensor]
    tiles: list[Tile]
    cover: tuple[int, int] | None
    stride: int

    def merge(self, patch_scores: list[Tensor]) -> Tensor:
        """One grid of patch scores for the image, from those of its views."""
        if self.cover is None:
            return patch_scores[0]
        return blend_tiles(patch_scores, self.tiles, self.cover, self.stride)

    def layout(self) -> "Views":
        """The same without the pixels."""
        return Views([], self.tiles, self.cover, self.stride)


def whole_view(image: np.ndarray, net: Backbone, resolution: int, resize: Resize) -> Views:
    """The whole image, uint8 (H, W, 3), at a resolution."""
    sized = resize_image(image, resolution, net.multiple, resize)
    return Views([to_pixels(sized, net.mean, net.std)], [], None, net.stride)


def tiled_views(image: np.ndarray, net: Backbone, tile: int) -> Views:
    """Overlapping tiles of an image, uint8 (H, W, 3), at its own resolution.

    Raises
    ------
    OptionError
        If the tile is smaller than the backbone takes.
    """
    if tile < net.multiple:
        raise OptionError(f"--tile {tile}: give at least {net.multiple} px")
    cover, tiles = tile_grid(image.shape[0], image.shape[1], tile, net.multiple)
    padded = pad_image(image, *cover)
    cuts = [padded[t.top : t.top + t.height, t.left : t.left + t.width] for t in tiles]
    return Views([to_pixels(cut, net.mean, net.std) for cut in cuts], tiles, cover, net.stride)
