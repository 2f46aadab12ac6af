"""Several levels of a backbone as one grid of features."""

from typing import TYPE_CHECKING, Literal

from offnominal.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from offnominal.backbones.base import Backbone

__all__ = ["Fusion", "fuse_levels", "is_plain_transformer"]

Fusion = Literal["mean", "concat"]


def is_plain_transformer(net: "Backbone") -> bool:
    """Whether its levels are blocks of one grid; those of a pyramid have strides of their own."""
    return net.level_count > 1 and net.multiple == net.stride


def fuse_levels(
    net: "Backbone", pixels: "Tensor", fusion: Fusion | None = None
) -> tuple["Tensor", "Tensor"]:
    """One grid of features from several levels, and a vector for each image.

    The blocks half way up a transformer tell defects apart better than the last one, whose tokens
    are about what the object is.

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
        The class token behind the last block that is used, or the mean over the positions.

    Raises
    ------
    OptionError
        If levels of several shapes are to be averaged.
    """
    import torch

    maps: list[Tensor] = []
    if net.multiple == net.stride:
        maps, summary = net.levels(pixels, norm=False)
    alike = len({int(m.shape[1]) for m in maps}) == 1  # numbers, where a graph is traced, too
    if fusion == "mean" and not alike:
        raise OptionError(
            f"--fusion mean: the levels of {net.name} have several shapes; use --fusion concat"
        )
    if not maps:
        features = net(pixels)
        return features, features.mean((2, 3))
    if fusion == "concat" or not alike:
        return torch.cat(maps, dim=1), summary
    return torch.stack(maps).mean(0), summary
