"""The networks that Dinomaly learns, its loss, and its map."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.training.losses import cosine_distance, whole_map_cosine_distance

__all__ = ["DecoderBlock", "LinearAttention", "NoisyBottleneck"]
__all__ += ["group_maps", "loose_loss", "score_map"]

_WIDER = 4  # of the hidden layer of a perceptron
_HEAD = 64  # channels of an attention head, as in the encoders
_MAP = 256  # side of the map that an image's score is taken from
_DAMPED = 0.1  # what is left of the gradient at positions that are answered well


class Perceptron(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, _WIDER * dim)
        self.fc2 = nn.Linear(_WIDER * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to as many."""
        result: Tensor = self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))
        return result


class NoisyBottleneck(nn.Sequential):
    """A perceptron with dropout before, between and after its layers (section 3.3).

    What it drops stands for anomalies: the decoder learns to restore the whole from a part.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(Perceptron(dim, dropout))
        self.dropout = nn.Dropout(dropout)
        self.apply(_begin_small)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to as many; no residual path, or the input would pass as it is."""
        result: Tensor = self[0](self.dropout(x))
        return result


class LinearAttention(nn.Module):
    """Attention without softmax, which cannot narrow to one token (section 3.4).

    Katharopoulos, Vyas, Pappas and Fleuret, "Transformers are RNNs", ICML 2020, eq. 5 and 7: with
    phi(x) = elu(x) + 1 the result is ``phi(q) (phi(k)' v) / (phi(q) . sum phi(k))``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The encoders' heads; of other widths as near to them as divides.
        wanted = max(1, dim // _HEAD)
        self.heads = max(count for count in range(1, wanted + 1) if dim % count == 0)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to as many."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        # The released code has no epsilon here, and loses trainings to it now and then.
        weight = q @ k.sum(2)[..., None] + 1e-6
        mixed: Tensor = self.proj((q @ (k.mT @ v) / weight).transpose(1, 2).flatten(2))
        return mixed


class DecoderBlock(nn.Module):
    """A transformer's block with norms first and linear attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-8)
        self.attn = LinearAttention(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-8)
        self.mlp = Perceptron(dim)
        self.apply(_begin_small)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to as many."""
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


def loose_loss(theirs: list[Tensor], ours: list[Tensor], easy: float) -> Tensor:
    """How far the decoder's group maps are from the encoder's, a scalar (section 3.5).

    1 - cosine of an image's whole map, all positions and channels together, averaged over images
    and groups. The value does not depend on `easy`; the gradient at so large a share of the
    positions, the best answered ones of the batch, is a tenth of what it would be.

    Parameters
    ----------
    theirs, ours : list of Tensor, each (B, D, gh, gw)
        Of the encoder and of the decoder, a group each.
    easy : float
        On [0, 1).
    """
    losses = []
    for known, answer in zip(theirs, ours, strict=True):
        apart = cosine_distance(known, answer).detach()
        count = max(1, int(apart.numel() * (1 - easy)))
        least = apart.flatten().topk(count).values[-1]
        weight = torch.where(apart < least, _DAMPED, 1.0)[:, None]
        fixed = answer.detach()
        damped = fixed + weight * (answer - fixed)  # the same numbers, a weighted gradient
        losses.append(whole_map_cosine_distance(known, damped).mean())
    return torch.stack(losses).mean()


def group_maps(levels: Sequence[Tensor], grid: Sequence[int], count: int) -> list[Tensor]:
    """Means of equal parts of levels (B, N, D), as maps (B, D, gh, gw); other tokens come first."""
    height, width = grid
    bounds = [round(number * len(levels) / count) for number in range(count + 1)]
    means = [
        torch.stack(list(levels[start:stop])).mean(0)
        for start, stop in pairwise(bounds)
        if stop > start
    ]
    return [each[:, -height * width :].mT.reshape(*each[:, 0].shape, *grid) for each in means]


def score_map(apart: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The map (B, 256, 256) that an image's score is taken from.

    Parameters
    ----------
    apart : sequence of Tensor, each (B, gh, gw)
        Distances of each group.
    size : (h, w)
        Of the images, in pixels.
    """
    each = [
        F.interpolate(one[:, None], size=tuple(size), mode="bilinear", align_corners=True)
        for one in apart
    ]
    heat = F.interpolate(torch.stack(each).mean(0), size=(_MAP, _MAP), mode="bilinear")
    place = torch.arange(-2, 3, dtype=heat.dtype, device=heat.device)
    row = torch.exp(-place.square() / 32)  # a Gaussian of 4 pixels, cut off after 2
    row = (row / row.sum()).view(1, 1, 1, -1)
    return F.conv2d(F.conv2d(heat, row, padding=(0, 2)), row.mT, padding=(2, 0))[:, 0]


def _begin_small(module: nn.Module) -> None:
    """First values of the released code: small, so that a block begins as the identity."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
        nn.init.zeros_(module.bias)
