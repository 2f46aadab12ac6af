"""Reverse distillation (RD4AD): a decoder repaints the teacher's features from a narrow embedding.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022 (arXiv
2201.10703).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Adam, Optimizer

from offnominal.checks import check_choice
from offnominal.detectors.features import ViewScores
from offnominal.detectors.teacher_student.reverse_networks import (
    Decoder,
    OneClassBottleneck,
    plan_of,
)
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.errors import OptionError
from offnominal.scoring import Size, anomaly_map
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch
from offnominal.training.losses import cosine_distance, whole_map_cosine_distance

__all__ = ["ReverseDistillation", "Similarity", "distance_map", "distillation_loss"]

Similarity = Literal["whole", "position"]

_STRIDES = (4, 8, 16)
_DEEP_STEPS = 100  # of a teacher such as WideResNet-50-2, for whom a step is seven times the work
_SIGMA = 4.0  # pixels of what the network sees


class ReverseDistillation(TrainedFeatureDetector):
    """A teacher's features through a bottleneck, and a decoder that has to give them back.

    The teacher's levels of strides 4, 8 and 16 are fused into one embedding of half the last one's
    grid, from which the decoder, a residual network run backwards, paints them anew. Trained on
    good parts, it does not know how to paint anything else.

    Parameters
    ----------
    similarity : {"whole", "position"}
        What the loss compares. ``whole``: all numbers of a level of an image as one vector, as the
        released code does, which weighs a position by how strong its features are; all published
        figures come from it. ``position``: the vectors at each position, all positions alike, as
        equations 1 and 2 have it and as the map is made.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`. The teacher may be any
        convolutional network with levels of strides 4, 8 and 16; the paper's is WideResNet-50-2.

    Notes
    -----
    The teacher's features are computed once and kept while the images are not augmented, which the
    paper does not do. The networks are those of the released code where the teacher is a ResNet-18,
    34, 50 or WideResNet-50-2; see :func:`.reverse_networks.plan_of`.

    The map is the sum of ``1 - cosine`` over the levels, each brought to the image's size, under a
    Gaussian of 4 pixels (equation 3); the score is its maximum.
    """

    method: ClassVar[str] = "reverse-distillation"
    default_backbone: ClassVar[str] = "wide_resnet50_2"
    default_layers: ClassVar[tuple[int, ...] | None] = (-4, -3, -2)
    side_multiple: ClassVar[int] = 32
    schedule: ClassVar[Schedule] = Schedule(batch=16, steps=700, paper_epochs=200)

    def __init__(self, similarity: Similarity = "whole", **options: Any) -> None:
        super().__init__(**options)
        check_choice("similarity", similarity, Similarity)
        self.similarity: Similarity = similarity

    def build(self) -> None:
        """Bottleneck and decoder, as wide as the teacher's levels ask for."""
        side, name = self.side, self.load_network().name
        levels = self.frozen(torch.zeros(1, 3, side, side))
        strides = [side / level.shape[-1] for level in levels]
        if strides != list(_STRIDES):
            found = ", ".join(f"{stride:g}" for stride in strides)
            raise OptionError(
                f"--backbone {name}: gives levels of strides {found}, and {self.method} takes "
                "three of strides 4, 8 and 16; name others with --layers, or take a convolutional "
                "network such as resnet18 or mobilenetv2_100"
            )
        plan = plan_of(name, [level.shape[1] for level in levels])
        if plan.bottleneck:
            deep = replace(type(self).schedule, steps=_DEEP_STEPS)
            self.schedule = deep  # type: ignore[misc]  # of this one's networks
        self.bottleneck, self.decoder = OneClassBottleneck(plan), Decoder(plan)

    def optimisers(self) -> list[Optimizer]:
        """Adam at 0.005 (section 4.1)."""
        trained = [*self.bottleneck.parameters(), *self.decoder.parameters()]
        return [Adam(trained, lr=0.005, betas=(0.5, 0.999))]

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The teacher's levels (B, C, h, w), from the finest to the coarsest."""
        return tuple(self.levels(pixels).maps)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """How unlike the decoder's levels are to the teacher's."""
        teacher = self.frozen_of(batch)
        decoded = self.decoder(self.bottleneck(teacher))
        return {"total": distillation_loss(teacher, decoded, self.similarity)}

    def compare(self, pixels: Tensor) -> ViewScores:
        """The smoothed map, at the size of what the network sees."""
        teacher = self.frozen(pixels)
        size = (pixels.shape[-2], pixels.shape[-1])
        [distance] = distance_map(teacher, self.decoder(self.bottleneck(teacher)), size)
        blur = torch.from_numpy(blur_matrix(self.side)).to(distance.device)
        return ViewScores(blur @ distance.float() @ blur.T)


@lru_cache(maxsize=4)
def blur_matrix(side: int) -> NDArray[np.float32]:
    """The matrix (side, side) that smooths a map's columns, and transposed its rows."""
    units = np.eye(side, dtype=np.float32)
    columns = [anomaly_map(one[:, None], (side, 1), _SIGMA)[:, 0] for one in units]
    return np.stack(columns, axis=1)


def distillation_loss(
    teacher: Sequence[Tensor], decoded: Sequence[Tensor], similarity: Similarity
) -> Tensor:
    """Sum over the levels of one minus the cosine (equation 2, or the released code's form).

    Parameters
    ----------
    teacher, decoded : sequence of Tensor, each (B, C, h, w)
    similarity : {"whole", "position"}
        See :class:`ReverseDistillation`.
    """
    distance = whole_map_cosine_distance if similarity == "whole" else cosine_distance
    parts = [distance(*pair).mean() for pair in zip(teacher, decoded, strict=True)]
    return torch.stack(parts).sum()


def distance_map(teacher: Sequence[Tensor], decoded: Sequence[Tensor], size: Size) -> Tensor:
    """Sum over the levels of one minus the cosine at each position, (B, h, w) of the given size.

    Levels are interpolated with their corners on the image's corners, as the released code does.
    """
    maps = [
        F.interpolate(
            cosine_distance(theirs, ours)[:, None],
            size=size,
            mode="bilinear",
            align_corners=True,
        )
        for theirs, ours in zip(teacher, decoded, strict=True)
    ]
    return torch.cat(maps, dim=1).sum(1)
