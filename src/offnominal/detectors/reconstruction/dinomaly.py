"""Dinomaly: a decoder that restores a frozen transformer's features, of one category or of many.

Guo, Lu, Zhang, Chen, Wang, Ding and Zhang, "Dinomaly: The Less Is More Philosophy in Multi-Class
Unsupervised Anomaly Detection", CVPR 2025 (arXiv 2405.14325).
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from offnominal.backbones.base import Backbone
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.reconstruction.dinomaly_blocks import (
    DecoderBlock,
    NoisyBottleneck,
    group_maps,
    loose_loss,
    score_map,
)
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images
from offnominal.training.losses import cosine_distance
from offnominal.training.stable_adamw import StableAdamW

__all__ = ["Dinomaly", "Positions", "blocks_of"]

Positions = Literal["own", "released"]

_BLOCKS = 8  # of the encoder that are answered, and of the decoder
_WARM_UP = 0.01  # of the schedule: 100 of 10,000 steps
_LAST_RATE = 0.1  # of the highest one
_RAMP, _EASY = 0.1, 0.9  # share of the schedule until all of the easy positions are damped
_TOP = 0.01  # of the map's pixels give the image score


class Dinomaly(TrainedFeatureDetector):
    """A noisy bottleneck and a decoder learn to restore what a frozen transformer sees.

    The mean of eight middle blocks of the encoder goes through a perceptron with dropout and eight
    decoder blocks with linear attention. Two groups of four encoder blocks are compared with two of
    the decoder, the last decoder blocks with the early encoder blocks (loose reconstruction); what
    cannot be restored is anomalous. One model serves many categories.

    Parameters
    ----------
    dropout : float
        Of the bottleneck, on [0, 1): 0.2 in the paper, 0.4 for Real-IAD, whose images vary more.
    positions : {"own", "released"}
        How DINOv2's positions are brought to another grid. ``own``: as the network was trained.
        ``released``: networks with registers by the rule of those without, as in the released code.
    resolution : int or None
        Side of the square that images are resized to, a multiple of the patch size. The paper's is
        448, of which the middle 392 are looked at (``crop``).
    **options
        See :class:`~offnominal.detectors.trained_features.TrainedFeatureDetector`. The backbone is
        DINOv2 S with registers; the paper's main one is ``dinov2_vitb14_reg``. ``layers`` are the
        blocks that are answered: 2 to 9 of twelve, 4, 6, ... 18 of twenty-four.

    Notes
    -----
    The schedule is the paper's, all lengths in proportion: the rate rises over 1 % of it and falls
    by a cosine to a tenth; easy positions are damped more and more over its first 10 %. The
    released code's first step has rate 0, ours that of its second.

    A convolutional network has no blocks to answer. Its joined levels, each channel standardised
    over the images that are trained on, stand for one group, answered by all decoder blocks. This
    is ours, not the paper's.

    Examples
    --------
    >>> from offnominal import Dinomaly
    >>> detector = Dinomaly(budget="20m").fit({"nut": ["nut/0.png"], "bolt": ["bolt/0.png"]})
    >>> [prediction] = detector.for_category("nut").predict("next.png")
    """

    method: ClassVar[str] = "dinomaly"
    default_backbone: ClassVar[str] = "dinov2_vits14_reg"
    schedule: ClassVar[Schedule] = Schedule(batch=16, steps=400, paper_steps=10_000, clip=0.1)
    paper_crop: ClassVar[float] = 448 / 392

    def __init__(self, dropout: float = 0.2, positions: Positions = "own", **options: Any) -> None:
        super().__init__(**options)
        check_range("dropout", dropout, least=0, below=1)
        check_choice("positions", positions, Positions)
        self.dropout = dropout
        self.positions: Positions = positions
        self._easy = 0.0

    # -- the encoder --------------------------------------------------------------------------

    def choose_levels(self, network: Backbone) -> Backbone:
        """A transformer's middle blocks; of a convolutional network its own levels."""
        if self.positions == "released":
            network = network.with_original_positions()
        if self.layers is not None or not network.is_transformer:
            return network
        return network.at_levels(blocks_of(network.level_count))

    def prepare(self, images: Images) -> None:
        """Mean and deviation of a convolutional network's features."""
        if self.load_network().is_transformer:
            return
        sums = []
        for pixels in images.batches():
            features = self.features(pixels).double()
            means = [each.mean((0, 2, 3)) for each in (features, features.square())]
            sums.append(len(pixels) * torch.stack(means))
        mean, square = torch.stack(sums).sum(0) / len(images)
        self.mean_ = mean.float()
        self.deviation_ = (square - mean**2).clamp(min=1e-12).sqrt().float()

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Tokens (B, N, D) that go into the bottleneck, and the maps of the encoder's groups."""
        network = self.load_network()
        if not network.is_transformer:
            features = self.features(pixels) - self.mean_[:, None, None]
            features = features / self.deviation_[:, None, None]
            return features.flatten(2).mT, features
        with self._autocast():
            levels = network.token_levels(pixels.to(self._device))
        tokens = torch.stack(levels).float()
        height, width = (length // network.stride for length in pixels.shape[-2:])
        return tokens.mean(0), *group_maps(list(tokens), (height, width), 2)

    # -- what is learned ----------------------------------------------------------------------

    def build(self) -> None:
        """Bottleneck and decoder, as wide as the encoder."""
        network = self.load_network()
        dim = network.dim // (len(network.layers) if network.is_transformer else 1)
        self.bottleneck = NoisyBottleneck(dim, self.dropout)
        self.decoder = nn.ModuleList([DecoderBlock(dim) for _ in range(_BLOCKS)])
        self.mean_, self.deviation_ = torch.zeros(dim), torch.ones(dim)

    def optimisers(self) -> list[Optimizer]:
        """StableAdamW, whose gradients are cut to a norm of 0.1."""
        learned = [*self.bottleneck.parameters(), *self.decoder.parameters()]
        return [StableAdamW(learned, lr=2e-3, weight_decay=1e-4)]

    def rate(self, done: float) -> float:
        """A linear rise, then a cosine; sets what share of the positions is easy as well."""
        self._easy = _EASY * min(1.0, done / _RAMP)
        if done < _WARM_UP:
            # The released linspace(0, 1, 100) but for its first value, which would learn nothing.
            return max(done / _WARM_UP * 100, 1) / 99
        share = (done - _WARM_UP) / (1 - _WARM_UP)
        return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share))

    def answer(self, tokens: Tensor, grid: Sequence[int], groups: int) -> list[Tensor]:
        """Maps (B, D, gh, gw) of the decoder's groups, those that answer early blocks first."""
        tokens, found = self.bottleneck(tokens), []
        for block in self.decoder:
            tokens = block(tokens)
            found.append(tokens)
        return group_maps(found[::-1], grid, groups)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """How far the decoder is from the encoder."""
        tokens, *theirs = self.frozen_of(batch)
        ours = self.answer(tokens, theirs[0].shape[-2:], len(theirs))
        return {"total": loose_loss(theirs, ours, self._easy)}

    def compare(self, pixels: Tensor) -> ViewScores:
        """Mean distance of the groups at each patch; the mean of the map's top 1 %."""
        tokens, *theirs = self.frozen(pixels)
        ours = self.answer(tokens, theirs[0].shape[-2:], len(theirs))
        apart = [cosine_distance(*pair) for pair in zip(theirs, ours, strict=True)]
        heat = score_map(apart, pixels.shape[-2:]).flatten()
        top = heat.topk(int(_TOP * heat.numel())).values.mean()
        return ViewScores(torch.stack(apart).mean(0)[0], top)


def blocks_of(count: int) -> list[int]:
    """The blocks that are answered, of so many: 2 to 9 of 12; 4, 6, ... 18 of 24."""
    return sorted({(2 + number) * count // 12 for number in range(_BLOCKS)})
