"""STFPM: a student network that imitates a teacher's feature pyramid on good images.

Wang, Han, Ding and Li, "Student-Teacher Feature Pyramid Matching for Anomaly Detection", BMVC 2021
(arXiv 2103.04257), and the authors' code.
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Optimizer

from offnominal.backbones.timm import TimmBackbone
from offnominal.checks import check_choice
from offnominal.detectors.features import ViewScores
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.errors import BackboneError
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch

__all__ = ["STFPM"]

Form = Literal["released", "paper"]


class STFPM(TrainedFeatureDetector):
    """Student-teacher feature pyramid matching.

    The student has the teacher's architecture and begins at random. What it learned to say of good
    parts it says of nothing else, and where it differs from the teacher is a defect.

    Parameters
    ----------
    form : {"released", "paper"}
        ``released``: the loss is the squared distance of normalised features, twice the paper's,
        for which the learning rate of 0.4 was chosen; the levels' maps are multiplied at a quarter
        of the images' side. ``paper``: half of that, and maps multiplied at full size (eq. 1-4).
    backbone : str or None
        The teacher, and the student's architecture; ``resnet18`` in the paper.
    layers : sequence of int or None
        None: the levels of strides 4, 8 and 16.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`, whose ``choose`` is another thing
        than the authors' choice of the epoch with the smallest map on good images.
    """

    method: ClassVar[str] = "stfpm"
    default_backbone: ClassVar[str] = "resnet18"
    default_layers: ClassVar[tuple[int, ...] | None] = (-4, -3, -2)
    schedule: ClassVar[Schedule] = Schedule(batch=32, steps=600, paper_epochs=100)

    def __init__(self, form: Form = "released", **options: Any) -> None:
        super().__init__(**options)
        check_choice("form", form, Form)
        self.form: Form = form

    def build(self) -> None:
        """A student of the teacher's kind."""
        teacher = self.load_network()
        if not isinstance(teacher, TimmBackbone):
            raise BackboneError(f"--backbone {teacher.name}: {self.method} needs a timm network")
        self.student = teacher.fresh()

    def optimisers(self) -> list[Optimizer]:
        """SGD (section 4.1)."""
        return [SGD(self.student.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-4)]

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The teacher's levels (B, C, h, w), normalised over their channels."""
        return tuple(normalised(self.levels(pixels).maps))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Squared distances, averaged over positions and images, summed over levels (eq. 1-3)."""
        found = self.distances(self.frozen_of(batch), batch.pixels)
        half = 0.5 if self.form == "paper" else 1.0
        each = {f"level {n}": half * one.mean() for n, one in enumerate(found, start=1)}
        return {"total": torch.stack(list(each.values())).sum(), **each}

    def distances(self, teacher: tuple[Tensor, ...], pixels: Tensor) -> list[Tensor]:
        """Squared distances (B, h, w) at each level between student and teacher, on [0, 4]."""
        student = normalised(self.student.levels(pixels).maps)
        return [(t - s).square().sum(1) for t, s in zip(teacher, student, strict=True)]

    def maps(self, pixels: Tensor) -> Tensor:
        """Anomaly maps (B, side, side), the product of the levels' (eq. 4)."""
        found = self.distances(self.frozen(pixels), pixels)
        side = self.side if self.form == "paper" else self.side // 4
        product = torch.ones((), device=pixels.device)
        for each in found:
            product = product * upsampled(each if self.form == "released" else each / 2, side)
        return upsampled(product, self.side)

    def compare(self, pixels: Tensor) -> ViewScores:
        """The map, and its maximum as the image score."""
        return ViewScores(self.maps(pixels)[0])


def normalised(levels: list[Tensor]) -> list[Tensor]:
    """Levels (B, C, h, w) with vectors of length 1 over the channels."""
    return [F.normalize(each, dim=1) for each in levels]


def upsampled(maps: Tensor, side: int) -> Tensor:
    """Maps (B, h, w) at (B, side, side), bilinearly."""
    return F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
