"""Mutual scoring of unlabelled images, as tensor programs without a network.

Li, Huang, Xue and Zhou, "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with
Mutual Scoring of the Unlabeled Images", ICLR 2024 (arXiv 2401.16753).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["mutual_scores", "neighbour_count", "rescored_by_neighbours"]

_COPIES = 3  # arrays of a block's size that are held at once
_CPU_BLOCK = 2**21  # entries; larger blocks only leave the cache


def neighbour_count(images: int, share: float) -> int:
    """How many of the other images a patch's score is averaged over; see :func:`mutual_scores`."""
    return int(share * (images - 1))


def mutual_scores(
    features: Sequence[Tensor],
    owners: Sequence[int],
    neighbourhoods: Sequence[int] = (1, 3, 5),
    share: float = 0.3,
    memory: int = 512 * 2**20,
    progress: Callable[[float], None] | None = None,
) -> list[Tensor]:
    """How far every patch lies from the patches of the other images.

    Each patch is described by the mean over its r x r neighbourhood, brought to unit length
    (LNAMD). Its distance to another image is the Euclidean one to the nearest of that image's
    patches; its score is the mean of the ``share`` smallest of these (section 3.2 and 3.3).

    Parameters
    ----------
    features : sequence of Tensor of shape (gh, gw, C), float32
        One level's features of every view; grids may differ.
    owners : sequence of int
        The image that each view is of, from 0.
    neighbourhoods : sequence of int
        Every r, odd. Beyond the border there are zeros, as in the released code.
    share : float
        With N images, ``int(share * (N - 1))`` distances are averaged; it must be 1 or more.
    memory : int
        Bound in bytes on the working memory beside the distances, as far as one row of patches
        against one view allows.
    progress : callable or None
        Called with the share of the work that is done.

    Returns
    -------
    list of Tensor of shape (R, gh, gw), float32
        Scores on [0, 2], one grid for each r.

    Notes
    -----
    A neighbourhood's mean is linear, so the inner products of the means over r x r patches are
    those of the patches themselves, averaged over both neighbourhoods: one matrix product serves
    every r, and both directions of a pair of images. The nearest distances that are kept take
    4 R N bytes a patch.
    """
    images = max(owners) + 1
    kept = neighbour_count(images, share)
    inverse = [_inverse_norms(each, neighbourhoods) for each in features]
    nearest = [
        torch.full((*norms.shape, images), -torch.inf, device=norms.device) for norms in inverse
    ]
    left, total = _pairs(owners), max(1, _pairs(owners))
    for one in range(len(features)):
        for others in _runs(features, owners, one, memory):
            _compare(one, others, features, owners, neighbourhoods, inverse, nearest, memory)
            left -= len(others)
        if progress:
            progress(1 - left / total)
    scores = []
    for cosines, each in zip(nearest, features, strict=True):
        closest = cosines.topk(kept, dim=-1).values
        distances = (2 - 2 * closest).clamp_(min=0).sqrt_()
        scores.append(distances.mean(-1).reshape(len(neighbourhoods), *each.shape[:2]))
    return scores


def _pairs(owners: Sequence[int]) -> int:
    return sum(owner != other for i, owner in enumerate(owners) for other in owners[i + 1 :])


def _runs(
    features: Sequence[Tensor], owners: Sequence[int], one: int, memory: int
) -> Iterator[list[int]]:
    """Later views of other images, in runs of one grid that one matrix product takes."""
    run: list[int] = []
    for other in range(one + 1, len(features)):
        if owners[other] == owners[one]:
            continue
        same = run and features[other].shape == features[run[0]].shape
        if run and (not same or len(run) >= _most(features[one], features[other], memory)):
            yield run
            run = []
        run.append(other)
    if run:
        yield run


def _entries(like: Tensor, memory: int) -> int:
    entries = memory // (4 * _COPIES)
    return min(entries, _CPU_BLOCK) if like.device.type == "cpu" else entries


def _most(one: Tensor, other: Tensor, memory: int) -> int:
    """How many views like `other` fit into a product with all patches of `one`."""
    patches = one.shape[0] * one.shape[1] * other.shape[0] * other.shape[1]
    return max(1, _entries(one, memory) // patches)


def _inverse_norms(features: Tensor, neighbourhoods: Sequence[int]) -> Tensor:
    """Of the sums over each neighbourhood, (R, gh * gw); their means have the same direction."""
    norms = [
        torch.linalg.vector_norm(_box(_box(features, 0, r), 1, r), dim=-1) for r in neighbourhoods
    ]
    return 1 / torch.stack(norms).flatten(1).clamp_(min=1e-12)


def _compare(
    one: int,
    others: list[int],
    features: Sequence[Tensor],
    owners: Sequence[int],
    neighbourhoods: Sequence[int],
    inverse: Sequence[Tensor],
    nearest: Sequence[Tensor],
    memory: int,
) -> None:
    """Note the largest cosines between one view and some others of one grid, both ways."""
    queries = features[one]
    rows, columns, channels = queries.shape
    gallery = torch.stack([features[other] for other in others]).flatten(0, 2)
    count, (high, wide) = len(others), features[others[0]].shape[:2]
    reach = max(neighbourhoods) // 2
    # Where one pair of views is too large, a few rows of patches at a time, and those around them.
    step = max(1, _entries(queries, memory) // (columns * len(gallery)) - 2 * reach)
    for top in range(0, rows, step):
        bottom = min(top + step, rows)
        low, above = max(0, top - reach), min(rows, bottom + reach)
        products = queries[low:above].reshape(-1, channels) @ gallery.T
        products = products.reshape(above - low, columns, count, high, wide)
        # Memory that has been touched before is much faster than new one.
        spare = torch.empty_like(products), torch.empty_like(products)
        span = slice(top * columns, bottom * columns)
        for index, r in enumerate(neighbourhoods):
            sums = products
            for turn, axis in enumerate((0, 1, 3, 4)):
                sums = _box(sums, axis, r, spare[turn % 2])
            inner = sums[top - low : bottom - low].reshape(-1, count, high * wide)
            scale = torch.stack([inverse[other][index] for other in others])
            cosines = spare[0][top - low : bottom - low].reshape(inner.shape)
            torch.mul(inner, scale, out=cosines).mul_(inverse[one][index, span, None, None])
            towards, back = cosines.amax(2), cosines.amax(0)
            for place, other in enumerate(others):
                _keep(nearest[one][index, span, owners[other]], towards[:, place])
                _keep(nearest[other][index, :, owners[one]], back[place])


def _keep(best: Tensor, found: Tensor) -> None:
    torch.maximum(best, found, out=best)


def _box(values: Tensor, axis: int, side: int, out: Tensor | None = None) -> Tensor:
    """Sums over `side` neighbours along an axis, in `out`; beyond the border there are zeros."""
    if side == 1:
        return values
    total = torch.empty_like(values) if out is None else out
    total.copy_(values)
    length = values.shape[axis]
    for shift in range(1, min(side // 2, length - 1) + 1):
        rest = length - shift
        total.narrow(axis, 0, rest).add_(values.narrow(axis, shift, rest))
        total.narrow(axis, shift, rest).add_(values.narrow(axis, 0, rest))
    return total


def rescored_by_neighbours(scores: Tensor, tokens: Tensor, sizes: Sequence[int]) -> Tensor:
    """Image scores smoothed over images that look alike (RsCIN, section 3.4).

    Parameters
    ----------
    scores : Tensor of shape (N,)
        Brought to [0, 1] over the batch first.
    tokens : Tensor of shape (N, D)
        A vector for each image; two are alike by their inner product.
    sizes : sequence of int
        In how many images each neighbourhood lies, the image itself among them; at most N. The
        result is the mean over the sizes.

    Returns
    -------
    Tensor of shape (N,), float64, on [0, 1]
    """
    scores, tokens = scores.double(), tokens.double()
    spread = scores.max() - scores.min()
    relative = (scores - scores.min()) / spread if spread > 0 else torch.zeros_like(scores)
    # Vectors that point apart are not alike at all: a negative weight would take away.
    alike = (tokens @ tokens.T).clamp_(min=0)
    found = []
    for size in sizes:
        weights, who = alike.topk(size, dim=1)
        total = weights.sum(1)
        mean = (weights * relative[who]).sum(1) / total
        found.append(torch.where(total > 0, mean, relative))
    return torch.stack(found).mean(0)
