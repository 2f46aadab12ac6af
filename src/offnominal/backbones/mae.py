"""Masked autoencoders: a transformer that paints in the patches that it was not shown.

He, Chen, Xie, Li, Dollár and Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR
2022 (arXiv 2111.06377). Tensors are named as in the released code, so its files load as they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from offnominal.backbones import weights as files
from offnominal.backbones.base import Backbone
from offnominal.backbones.catalogue import MAE_ADDRESS, MAE_FILES, on_no_hub
from offnominal.errors import BackboneError, OptionError, WeightsError

__all__ = ["SHAPES", "MaskedAutoencoder", "Shape", "draw_masks"]


class Shape(NamedTuple):
    """Sizes of an encoder and its decoder, and the word in the address of their weights."""

    patch: int
    dim: int
    depth: int
    heads: int
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    size: int = 224
    file: str = ""


SHAPES = {
    "mae_vitb16": Shape(16, 768, 12, 12, file=MAE_FILES["mae_vitb16"]),
    "mae_vitl16": Shape(16, 1024, 24, 16, file=MAE_FILES["mae_vitl16"]),
    "mae_vith14": Shape(14, 1280, 32, 16, file=MAE_FILES["mae_vith14"]),
}


class MaskedAutoencoder(Backbone):
    """Encoder and decoder; as any backbone, the encoder's normalised tokens of the whole image.

    Weights are drawn at random; :meth:`load` reads them.
    """

    family = "mae"
    is_transformer = True
    resize = "square"

    def __init__(self, name: str, shape: Shape) -> None:
        super().__init__()
        self.name = name
        self.shape = shape
        self.dim = shape.dim
        self.stride = self.multiple = shape.patch
        self.resolution = shape.size
        self.layers = (0,)
        self.side = shape.size // shape.patch

        def blocks(depth: int, dim: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(
                Block(dim, heads, mlp_ratio=4, qkv_bias=True, norm_layer=LayerNorm)
                for _ in range(depth)
            )

        def table(rows: int, dim: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(1, rows, dim))

        rows, wide = 1 + self.side**2, shape.decoder_dim
        projection = nn.Conv2d(3, shape.dim, shape.patch, shape.patch)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.cls_token = table(1, shape.dim)
        self.pos_embed = table(rows, shape.dim)
        self.blocks = blocks(shape.depth, shape.dim, shape.heads)
        self.norm = LayerNorm(shape.dim)  # timm's, whose epsilon is 1e-6
        self.decoder_embed = nn.Linear(shape.dim, wide)
        self.mask_token = table(1, wide)
        self.decoder_pos_embed = table(rows, wide)
        self.decoder_blocks = blocks(shape.decoder_depth, wide, shape.decoder_heads)
        self.decoder_norm = LayerNorm(wide)
        self.decoder_pred = nn.Linear(wide, 3 * shape.patch**2)

    @classmethod
    def load(
        cls,
        name: str,
        weights: str | Path | None = None,
        layers: Sequence[int] | None = None,
    ) -> Self:
        """Build one of the released networks, named in `SHAPES`, and read its weights.

        Raises
        ------
        BackboneError
            If there is no such network.
        OptionError
            If ``layers`` are named: it has one level.
        WeightsError
            If no file is given, it is missing, has no decoder or does not fit.
        """
        if name not in SHAPES:
            raise BackboneError(f"unknown backbone {name!r}: choose one of {', '.join(SHAPES)}")
        address = MAE_ADDRESS.format(SHAPES[name].file)
        if layers is not None:
            raise OptionError(f"--backbone {name} takes no --layers: it has one level")
        if weights is None:
            raise WeightsError(on_no_hub(name) or f"{name}: give its weights with --weights")
        with torch.device("meta"):
            network = cls(name, SHAPES[name])
        tensors = files.read_weights(Path(weights))
        if "decoder_pred.weight" not in tensors:
            raise WeightsError(
                f"{weights}: has no decoder (decoder_pred.weight is missing); {name} needs the "
                f"encoder and the decoder, as {address} has them"
            )
        files.fit_to(network, tensors, str(weights), name)
        network.digest = files.digest(network)
        network.untrained = files.untrained_reason(files.read_metadata(Path(weights)))
        return network.eval().requires_grad_(False)

    def check_size(self, pixels: Tensor) -> None:
        """Raise a :class:`BackboneError` unless the size is the one that it was trained for."""
        height, width = pixels.shape[-2:]
        side = self.resolution
        if (height, width) != (side, side):
            raise BackboneError(
                f"{self.name} takes images of {side} x {side} px, not {height} x {width}: use "
                f"--resize square --resolution {side}, or --tile {side}"
            )

    def forward(self, pixels: Tensor) -> Tensor:
        """The encoder's tokens (B, dim, h / patch, w / patch); see :class:`Backbone`."""
        tokens = self._embedded(pixels)
        found = self._encoded(tokens)[:, 1:].transpose(1, 2)
        return found.reshape(len(pixels), self.dim, self.side, self.side)

    def reconstruct(self, pixels: Tensor, kept: Tensor) -> Tensor:
        """Images as the decoder paints them from some of their patches, (B, M, 3, h, w).

        Patches that were seen are painted as well, but the network was never trained to paint
        those.

        Parameters
        ----------
        pixels : Tensor of shape (B, 3, h, w), float32
            Normalised images.
        kept : Tensor of shape (M, K), int64, or (B, M, K)
            The patches that the encoder sees, counted row by row, in M ways for each image.
        """
        tokens = self._embedded(pixels)
        batch, count, dim = tokens.shape
        kept = kept.expand(batch, *kept.shape[-2:])
        ways, seen = kept.shape[1:]
        index = kept.reshape(batch, -1, 1).expand(-1, -1, dim)
        chosen = tokens.gather(1, index).reshape(batch * ways, seen, dim)
        encoded = self.decoder_embed(self._encoded(chosen))

        wide = encoded.shape[-1]
        places = kept.reshape(batch * ways, seen, 1).expand(-1, -1, wide)
        canvas = self.mask_token.to(encoded.dtype).repeat(batch * ways, count, 1)
        canvas = canvas.scatter(1, places, encoded[:, 1:])
        x = torch.cat([encoded[:, :1], canvas], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        painted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        side, patch = self.side, self.shape.patch
        # Within a patch the released code keeps rows, columns and colours in this order.
        grid = painted.reshape(batch, ways, side, side, patch, patch, 3)
        images: Tensor = grid.permute(0, 1, 6, 2, 4, 3, 5)
        return images.reshape(batch, ways, 3, *pixels.shape[-2:])

    def _embedded(self, pixels: Tensor) -> Tensor:
        self.check_size(pixels)
        patches: Tensor = self.patch_embed["proj"](pixels)
        return patches.flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]

    def _encoded(self, tokens: Tensor) -> Tensor:
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([first.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


def draw_masks(patches: int, masks: int, ratio: float, seed: int) -> Tensor:
    """The patches that random masks leave to be seen, ascending, (masks, K) int64.

    The patches are shuffled and dealt out, so many to a mask; when too few are left, they are
    shuffled anew. So every mask is a random one, and with 3 in 4 hidden (``ratio``) each patch is
    seen once in every four masks. K is ``int(patches * (1 - ratio))``, at least 1.
    """
    seen = max(1, int(patches * (1 - ratio)))
    generator = torch.Generator().manual_seed(seed)
    rows: list[Tensor] = []
    while len(rows) < masks:
        order = torch.randperm(patches, generator=generator)
        rows += torch.split(order[: patches // seen * seen], seen)
    return torch.stack(rows[:masks]).sort(dim=1).values
