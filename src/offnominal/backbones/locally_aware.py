"""Locally aware patch features: feature levels in, one vector for every patch out.

Roth, Pemula, Zepeda, Schölkopf, Brox and Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022 (arXiv 2106.08265), section 3.1, eq. 1-3. How the neighbourhood is averaged is
not in the paper; it is taken from the authors' released code, which

1. cuts every level into patches of 3 x 3 positions, with zeros beyond the border,
2. interpolates the patches of the coarser levels, position by position, to the finest grid,
3. flattens every patch (channel by channel) and averages it adaptively to 1024 values,
4. joins the levels and averages adaptively again, to the final length.

Steps 1, 3 and 4 are the same linear map at every position and act on the channels and the patch;
step 2 is a linear map over the positions that is the same for every channel. So they commute: each
level is averaged on its own coarse grid first, and only the values that are left are interpolated
instead of 9 for every channel. And the average of a patch needs no patches: value j is a mean of a
few entries (channel, row, column), each of which is one shifted map. Where they lie in one channel,
as in every residual network, the averages of steps 3 and 4 are one small filter for each channel.
Nothing larger than the result is made, and it differs from the plain order by rounding only.

The lengths are those of wide networks, whose levels have 512 channels and more. Of a narrow one's
neighbourhood, 9 values for each of 32 channels, an average to 1024 averages nothing, and the second
one mixes the levels. Where the levels have fewer than 1024 channels together, each of them is
averaged over its neighbourhood as a whole, and the levels are joined as they are.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.positions import is_traced

__all__ = ["locally_aware", "pool_patches"]

_PAPERS = 1024  # length of a level's features and of the final ones


def locally_aware(
    levels: Sequence[Tensor], patch: int = 3, level_dim: int | None = None, dim: int | None = None
) -> Tensor:
    """One feature vector for every position of the finest level.

    Parameters
    ----------
    levels : sequence of Tensor, each (B, C, gh, gw), float32
        The first one gives the grid that the others are interpolated to, bilinearly
        (``align_corners=False``).
    patch : int
        Side of the neighbourhood, in positions of each level's own grid; odd.
    level_dim : int or None
        Length that each level is averaged to. None: 1024 where the levels have that many channels
        together, otherwise as many as each has.
    dim : int or None
        Length of the result. None: 1024, or what the levels come to where that is less.

    Returns
    -------
    Tensor of shape (B, dim, gh, gw), float32
    """
    grid = levels[0].shape[-2:]
    lengths = [int(level.shape[1]) for level in levels]  # numbers, where a graph is traced, too
    if level_dim is not None or sum(lengths) >= _PAPERS:
        lengths = [level_dim or _PAPERS] * len(levels)
    dim = dim or min(_PAPERS, sum(lengths))
    # Every value of the result is a mean of `joint` of the joined ones: of one level's alone, if
    # that divides their lengths, and then the last average need not wait for the others.
    joint, rest = divmod(sum(lengths), dim)
    if rest or any(length % joint for length in lengths):
        joint = 1
    pooled = [
        pool_patches(level, patch, length, joint)
        for level, length in zip(levels, lengths, strict=True)
    ]
    aligned = [
        each
        if each.shape[-2:] == grid
        else F.interpolate(each, size=grid, mode="bilinear", align_corners=False)
        for each in pooled
    ]
    joined = torch.cat(aligned, dim=1)
    return joined if int(joined.shape[1]) == dim else pool_patches(joined, 1, dim)


def pool_patches(maps: Tensor, patch: int, size: int, joint: int = 1) -> Tensor:
    """Adaptive average of every flattened patch, without cutting patches out.

    Parameters
    ----------
    maps : Tensor of shape (B, C, h, w), float32
        In any memory format; the result has the same, where an image's channels lie together.
    patch : int
        Side of a patch, odd; zeros lie beyond the border. 1: an average over channels alone.
    size : int
        Length of the average. As in adaptive average pooling, value j is the mean of the entries
        from ``floor(j L / size)`` up to ``ceil((j + 1) L / size)``, where L = C * patch ** 2
        entries are counted channel by channel, then row by row.
    joint : int
        How many neighbouring values of that are averaged again; a divisor of `size`.

    Returns
    -------
    Tensor of shape (B, size // joint, h, w)
    """
    channels = int(maps.shape[1])
    if channels % size == 0:
        # Every value is made of whole channels.
        means = F.avg_pool2d(maps, patch, stride=1, padding=patch // 2) if patch > 1 else maps
        return _join(means, channels // size * joint)
    if size % channels == 0 and size // channels % joint == 0:
        # Every value is made of a part of one channel's patch.
        filters = _filters(patch, size // channels, joint).to(maps)
        return F.conv2d(
            maps, filters.repeat(channels, 1, 1, 1), padding=patch // 2, groups=channels
        )
    return _join(_gather(maps, patch, size), joint)


def _join(maps: Tensor, count: int) -> Tensor:
    """Mean of every ``count`` neighbouring channels."""
    if count == 1:
        return maps
    total = maps[:, ::count] + maps[:, 1::count]
    for number in range(2, count):
        total += maps[:, number::count]
    return total.div_(count)


def _filters(patch: int, parts: int, joint: int) -> Tensor:
    """Weights (parts / joint, 1, patch, patch) of the averages that one channel's patch gives."""
    area = patch * patch
    weights = np.zeros((parts, area), np.float32)
    for part in range(parts):
        start, stop = part * area // parts, ((part + 1) * area + parts - 1) // parts
        weights[part, start:stop] = 1 / (stop - start)
    # In numpy up to here, so that a traced graph holds the numbers and not how they are made.
    return (
        torch.from_numpy(weights)
        .view(parts // joint, joint, area)
        .mean(1)
        .view(-1, 1, patch, patch)
    )


def _gather(maps: Tensor, patch: int, size: int) -> Tensor:
    """:func:`pool_patches` for any lengths: the entries of all values, one turn at a time."""
    area = patch * patch
    channels = int(maps.shape[1])
    length = channels * area
    number = torch.arange(size)
    first = number * length // size
    last = ((number + 1) * length + size - 1) // size - 1
    most = int((last - first).max()) + 1
    first, last = first.to(maps.device), last.to(maps.device)
    reach = patch // 2
    shifted = maps.transpose(0, 1)
    if reach:  # a view: (C, patch, patch, B, h, w) over the same memory
        padded = F.pad(maps, (reach, reach, reach, reach))
        if is_traced():  # graphs have no such view
            height, width = maps.shape[2:]
            rows = [padded[:, :, row : row + height] for row in range(patch)]
            each = [one[..., left : left + width] for one in rows for left in range(patch)]
            stacked = torch.stack(each, 2).view(-1, channels, patch, patch, height, width)
            shifted = stacked.permute(1, 2, 3, 0, 4, 5)
        else:
            shifted = padded.unfold(2, patch, 1).unfold(3, patch, 1).permute(1, 4, 5, 0, 2, 3)
    total: Tensor | None = None
    for step in range(most):
        entry = first + step
        counts = (entry <= last).view(-1, 1, 1, 1)
        entry = torch.minimum(entry, last)
        row, column = entry % area // patch, entry % patch
        place = (entry // area, row, column) if reach else entry
        part = shifted[place] * counts
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.div_((last - first + 1).view(-1, 1, 1, 1)).transpose(0, 1)
