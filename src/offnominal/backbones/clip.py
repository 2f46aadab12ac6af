"""CLIP as a backbone, with all that language methods ask of it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones import clip_files
from offnominal.backbones import weights as files
from offnominal.backbones.base import Backbone, Levels
from offnominal.backbones.catalogue import CLIP_TAGS, OPEN_CLIP
from offnominal.backbones.clip_blocks import (
    Activation,
    attend_to_values,
    run_block,
    window_indices,
)
from offnominal.backbones.clip_text import ClipText
from offnominal.backbones.positions import Positions, resize_positions
from offnominal.errors import BackboneError, OptionError

__all__ = ["ClipBackbone", "Tokens", "require_clip"]


class Tokens(NamedTuple):
    """What a pass through the image tower leaves behind: raw outputs (B, 1 + gh gw, width).

    Of each the class token comes first, then the patches by rows: of the ``blocks`` that were asked
    for, of the same blocks on the value-value path (``values``; empty if there was none), and of
    the ``last`` block. ``grid`` is (gh, gw).
    """

    blocks: list[Tensor]
    values: list[Tensor]
    last: Tensor
    grid: tuple[int, int]


class ClipBackbone(Backbone):
    """A frozen CLIP model; the text tower is read only when it is asked for.

    As any backbone it gives the normalised patch tokens of its last block, or of the blocks that
    ``layers`` names. The digest is that of the image tower, so what a detector has saved of texts
    needs no text tower to be used again.

    Parameters
    ----------
    name : str
        ``open_clip:`` and one of open_clip's names, as ``open_clip:ViT-L-14-336``, with or without
        a tag of weights after a dot.
    weights : path or None
        A local file in OpenAI's naming, which is open_clip's too: safetensors, or a ``.pth`` or
        ``.bin`` state dict. None: from the hub's cache, or fetched. A safetensors file may carry
        the model's configuration in its metadata, as JSON under ``open_clip``.
    layers : sequence of int or None
        Blocks whose tokens are used, counted from 0, or from the end if negative; several are
        concatenated. None: the last one.

    Attributes
    ----------
    embed_dim, width : int
        Length of an embedding that images and texts share; length of a token.

    Raises
    ------
    BackboneError
        If open_clip does not know the name, or the model is not CLIP's pair of transformers.
    WeightsError
        If the weights cannot be had or do not fit.
    """

    family = "clip"
    is_transformer = True
    resize = "square"

    def __init__(
        self,
        name: str,
        weights: str | Path | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        local = Path(weights) if weights is not None else None
        metadata = files.read_metadata(local) if local else {}
        self._model = clip_files.describe(name, metadata, local)
        # Before anything is fetched, since half of open_clip's models are built another way.
        self.visual = clip_files.build(self._model).visual
        self._path = local or clip_files.weights_file(name)
        clip_files.fit(self.visual, self._path, name, image=True)
        self.digest = files.digest(self.visual)
        self.untrained = files.untrained_reason(metadata)
        self.mean, self.std = self._model.mean, self._model.std
        self.positions: Positions = "bicubic-antialias"
        self.activation: Activation = self._model.activation
        self.width, self.embed_dim = self.visual.proj.shape
        self.stride = self.multiple = int(self.visual.patch_size[0])
        self.resolution = int(self.visual.image_size[0])
        self.level_count = len(self.visual.transformer.resblocks)
        self._choose_layers(layers, [-1])
        self.eval().requires_grad_(False)

    def adapted(
        self, positions: Positions | None = None, activation: Activation | None = None
    ) -> Self:
        """The same model, sharing its weights, run by other rules.

        Parameters
        ----------
        positions : {"bicubic-antialias", "bicubic", "bilinear"} or None
            How position embeddings are resized to another grid. None: as it is.
        activation : {"quickgelu", "gelu"} or None
            Of both towers. None: what the weights were trained with.
        """
        other = copy.copy(self)  # shallow: one model
        other.positions = positions or self.positions
        other.activation = activation or self._model.activation
        for option, value, kind in (
            ("positions", other.positions, Positions),
            ("activation", other.activation, Activation),
        ):
            if value not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise OptionError(f"{option} {value!r}: choose one of {choices}")
        return other

    def _use(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self.dim = self.width * len(layers)

    # -- the contract of every backbone ---------------------------------------------------------

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features (B, dim, h / stride, w / stride); see :class:`Backbone`."""
        maps = self.levels(pixels).maps
        return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)

    def levels(self, pixels: Tensor, norm: bool = True) -> Levels:
        """Feature levels and the class token; see :class:`Backbone`."""
        found = self.tokens(pixels, self.layers, stop_early=True)
        each = [self.visual.ln_post(x) if norm else x for x in found.blocks]
        maps = [x[:, 1:].transpose(1, 2).unflatten(2, found.grid) for x in each]
        return Levels(maps, each[-1][:, 0])

    def token_levels(self, pixels: Tensor) -> list[Tensor]:
        """Class token and patch tokens of each level; see :class:`Backbone`."""
        return self.tokens(pixels, self.layers, stop_early=True).blocks

    # -- what language methods ask --------------------------------------------------------------

    def tokens(
        self,
        pixels: Tensor,
        layers: Sequence[int] = (),
        values_from: int | None = None,
        stop_early: bool = False,
    ) -> Tokens:
        """Raw outputs of blocks, and of a path of value-value attention beside them.

        Parameters
        ----------
        pixels : Tensor of shape (B, 3, h, w), float32
        layers : sequence of int
            Blocks, counted from 0 at the input, or from the end if negative; the papers' layer 6 is
            block 5.
        values_from : int or None
            From this block on a second stream is kept, as AnomalyCLIP does (Zhou et al., 2024,
            section 3.3, and its released code): it starts as a copy of the block's input, and each
            block adds to it the value-value attention of what the ordinary stream holds there, and
            no feed-forward part. Blocks before it are the same in both. None: no second stream.
        stop_early : bool
            Leave out the blocks that ``layers`` does not reach; ``last`` is then the last one run.
        """
        wanted = [self._checked(index) for index in layers]
        x, grid = self._embedded(pixels)
        x = self.visual.ln_pre(x)
        values = x
        outputs, beside = {}, {}
        blocks = self.visual.transformer.resblocks
        for index, block in enumerate(blocks[: max(wanted) + 1] if stop_early else blocks):
            if values_from is not None and index >= values_from:
                values = values + block.ls_1(attend_to_values(block.attn, block.ln_1(x)))
            x = run_block(block, x, self.activation)
            if values_from is None or index < values_from:
                values = x
            if index in wanted:
                outputs[index], beside[index] = x, values
        chosen = [outputs[index] for index in wanted]
        second = [beside[index] for index in wanted] if values_from is not None else []
        return Tokens(chosen, second, x, grid)

    def project(self, tokens: Tensor, norm: bool = True) -> Tensor:
        """Tokens (..., width) in the space that images and texts share, (..., embed_dim), float32.

        ``norm`` says whether the final layer norm goes first, as it does in CLIP.
        """
        # In half precision the differences between cosines with texts would be lost.
        with torch.autocast(tokens.device.type, enabled=False):
            normed = self.visual.ln_post(tokens.float()) if norm else tokens.float()
            projected: Tensor = normed @ self.visual.proj
        return projected

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, embed_dim) of images, not normalised: the projected class token."""
        return self.project(self.tokens(pixels).last[:, 0])

    def embed_windows(self, pixels: Tensor, sides: Sequence[int] = (3, 2)) -> list[Tensor]:
        """Embeddings of all square windows of patches, each seen by itself.

        A window's sequence is the class token and the window's patches, with the positions that
        they have in the image; it is gathered before the first layer norm (Jeong et al., 2023,
        section 4.2: the other patches are masked out).

        Returns a tensor (B, windows, embed_dim) for each side, which is in patches; not normalised,
        with windows as :func:`~offnominal.backbones.clip_blocks.window_indices` counts them.
        """
        x, grid = self._embedded(pixels)
        found = []
        for side in sides:
            rows = window_indices(grid, side).to(x.device) + 1  # row 0 is the class token
            rows = F.pad(rows, (1, 0))
            sequences = x[:, rows].flatten(0, 1)
            sequences = self.visual.ln_pre(sequences)
            for block in self.visual.transformer.resblocks:
                sequences = run_block(block, sequences, self.activation)
            found.append(self.project(sequences[:, 0]).reshape(len(x), len(rows), -1))
        return found

    def _embedded(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        self.check_size(pixels)
        # Under autocast too the tokens stay in float32; only what blocks add is rounded.
        patches = self.visual.conv1(pixels).float()
        grid = (patches.shape[2], patches.shape[3])
        classes = self.visual.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([classes, patches.flatten(2).transpose(1, 2)], dim=1)
        with torch.autocast(x.device.type, enabled=False):
            table = resize_positions(self.visual.positional_embedding, *grid, self.positions)
        return x + table, grid

    def load_text(self) -> ClipText:
        """The text tower, read from the weights file, on the image tower's device."""
        text = ClipText(clip_files.build(self._model), self.activation)
        clip_files.fit(text, self._path, self.name, image=False)
        text.eval().requires_grad_(False)
        return text.to(self.visual.proj.device)


def require_clip(network: Backbone, method: str) -> ClipBackbone:
    """The network, if it is a CLIP of open_clip's; otherwise a :class:`BackboneError`."""
    if isinstance(network, ClipBackbone):
        return network
    names = ", ".join(OPEN_CLIP + each for each in CLIP_TAGS)
    raise BackboneError(
        f"--method {method} compares images with texts, which {network.name} cannot: choose a "
        f"backbone such as {names}"
    )
