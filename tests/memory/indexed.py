"""Banks for the tests of the index: patches of aligned pictures, alike from picture to picture."""

import torch
from torch import Tensor
from torch.nn import functional as F

from offnominal.memory import MemoryBank

DIM = 32
PATCHES = 400
OWNERS = 10


def pictures(count: int, seed: int = 0, dim: int = DIM) -> list[Tensor]:
    """Features (PATCHES, dim) of some pictures: a place's own, a drift and a little noise."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randn(PATCHES, 8, generator=torch.Generator().manual_seed(99))
    lift = torch.randn(8, dim, generator=torch.Generator().manual_seed(98))
    drifts = 0.3 * torch.randn(count, PATCHES, 8, generator=draw)
    noise = 0.05 * torch.randn(count, PATCHES, dim, generator=draw)
    return [F.normalize((places + d) @ lift + n, dim=1) for d, n in zip(drifts, noise, strict=True)]


def bank_of(features: list[Tensor], **options: str) -> MemoryBank:
    bank = MemoryBank(features[0].shape[1], **options)  # type: ignore[arg-type]
    for owner, rows in enumerate(features):
        bank.add(rows, owner)
    return bank
