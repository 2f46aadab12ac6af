"""Linear layers that bring patch tokens to where CLIP's texts are (APRIL-GAN).

Chen, Han and Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method
for CVPR 2023 VAND Workshop Challenge", 2023 (arXiv 2305.17382).
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.errors import OptionError

__all__ = ["Projections"]


class Projections(nn.Module):
    """One linear layer for each level of the image tower (section 2.1).

    Parameters
    ----------
    width : int
        Length of a patch token.
    embed_dim : int
        Length of a text feature.
    levels : int
        How many levels.
    generator : torch.Generator or None
        Draws the first values, uniformly within ``1 / sqrt(width)`` as torch's own layers have it.
    """

    method: ClassVar[str] = "april-gan"

    def __init__(
        self,
        width: int,
        embed_dim: int,
        levels: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(width, embed_dim, levels) < 1:
            raise OptionError(
                f"projections of {levels} levels from {width} to {embed_dim}: give 1 or more"
            )
        self.width, self.embed_dim = width, embed_dim
        self.layers = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(levels))
        bound = 1 / math.sqrt(width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, plain values that a file keeps."""
        return {"width": self.width, "embed_dim": self.embed_dim, "levels": len(self.layers)}

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Unit vectors (B, N, embed_dim) of the patch tokens (B, N, width) of each level."""
        return [
            F.normalize(layer(each), dim=-1)
            for layer, each in zip(self.layers, tokens, strict=True)
        ]
