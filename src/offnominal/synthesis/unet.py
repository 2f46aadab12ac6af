"""A small U-Net that takes noise out of pictures, told how much of it there is."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["UNet"]

_GROUPS = 8
_WAVES = 32  # of the embedding of the noise level


class UNet(nn.Module):
    """Three levels on 2 x 2 pixels each, one residual block a level and way, attention in between.

    With a width of 48, 2.1 million parameters; after Ho, Jain and Abbeel, "Denoising Diffusion
    Probabilistic Models", NeurIPS 2020, appendix B, far smaller.

    Parameters
    ----------
    into, out : int
        Channels of what comes in and of what goes out.
    width : int
        Channels of the finest level, a multiple of 8; the next have twice and three times as many.
    """

    def __init__(self, into: int, out: int, width: int = 48) -> None:
        super().__init__()
        told = 2 * width
        fine, mid, deep = width, 2 * width, 3 * width
        self.time = nn.Sequential(nn.Linear(_WAVES, told), nn.SiLU(), nn.Linear(told, told))
        self.stem = nn.Conv2d(4 * into, fine, 3, padding=1)
        self.down1, self.down2 = _Block(fine, fine, told), _Block(fine, mid, told)
        self.down3, self.middle = _Block(mid, deep, told), _Block(deep, deep, told)
        self.attention = _Attention(deep)
        self.up3, self.up2 = _Block(2 * deep, deep, told), _Block(deep + mid, mid, told)
        self.up1 = _Block(mid + fine, fine, told)
        last = nn.Conv2d(fine, 4 * out, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.head = nn.Sequential(nn.GroupNorm(_GROUPS, fine), nn.SiLU(), last)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Of pictures (B, into, h, w) with sides of multiples of 8 and levels (B,): (B, out, h, w).

        ``level`` is on [0, 1].
        """
        waves = level[:, None] * torch.exp(torch.linspace(0, math.log(1000), _WAVES // 2))
        told = self.time(torch.cat([waves.sin(), waves.cos()], 1))
        one = self.down1(self.stem(F.pixel_unshuffle(x, 2)), told)
        two = self.down2(F.avg_pool2d(one, 2), told)
        three = self.down3(F.avg_pool2d(two, 2), told)
        deep = self.attention(self.middle(three, told))
        deep = self.up3(torch.cat([deep, three], 1), told)
        deep = self.up2(torch.cat([F.interpolate(deep, scale_factor=2.0), two], 1), told)
        deep = self.up1(torch.cat([F.interpolate(deep, scale_factor=2.0), one], 1), told)
        return F.pixel_shuffle(self.head(deep), 2)


class _Block(nn.Module):
    """Two convolutions beside a skip; the level scales and shifts what the second one sees."""

    def __init__(self, into: int, out: int, told: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_GROUPS, into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(_GROUPS, out), nn.Conv2d(out, out, 3, padding=1)
        self.film = nn.Linear(told, 2 * out)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told)[..., None, None].chunk(2, 1)
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        found: Tensor = self.skip(x) + self.conv2(F.silu(hidden))
        return found


class _Attention(nn.Module):
    """Self-attention over the positions of the coarsest level, four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.mix, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mix(self.norm(x)).flatten(2).unflatten(1, (3, 4, -1)).transpose(-1, -2)
        query, key, value = parts.unbind(1)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(-1, -2)
        found: Tensor = self.out(seen.reshape(x.shape))
        return x + found
