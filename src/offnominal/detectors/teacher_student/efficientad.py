"""EfficientAD: a student imitates a small teacher, and an autoencoder tells what belongs where.

Batzner, Heckler and König, WACV 2024 (arXiv 2303.14535). The authors published no code; what the
paper leaves open follows nelson1425's reproduction.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam, Optimizer

from offnominal.backbones import PDN
from offnominal.backbones.pdn import PatchDescriber, PatchDescription
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.teacher_student.efficientad_parts import (
    Autoencoder,
    Border,
    error_maps,
    jitter,
    loss_parts,
    other_image,
    scaled_map,
)
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.errors import BackboneError, ImageError, OptionError
from offnominal.paths import find_images
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images

__all__ = ["EfficientAD"]

_LOW, _HIGH = 0.9, 0.995  # quantiles of good parts' errors that become 0 and 0.1 (section 3.4)
_TRIES = 16


class EfficientAD(TrainedFeatureDetector):
    """A student that imitates the teacher on good parts only, beside an autoencoder.

    The teacher is a patch description network, ``pdn_small`` or ``pdn_medium``, from a file. Where
    the student's first half differs from it, something local is amiss; where its second half
    differs from the autoencoder, which sees the image as a whole and cannot paint detail, something
    is in the wrong place. Both maps are scaled by what good parts show and averaged.

    Parameters
    ----------
    width : float
        Factor on the channels between the layers of the student and the autoencoder. Their output
        is as wide as the teacher's, whatever this says, and a teacher has the width that its file
        has.
    penalty : str or None
        Folder of any images that do not show the part, such as photographs: the student is kept
        from imitating the teacher on one of them in each step (section 3.2, where they are
        ImageNet's). None: it is not, which costs accuracy, most of all on defects that look like
        something in the world.
    border : {"nearest", "zero"}
        What stands in the outer 4 of 64 positions of the map, which the networks do not reach.
        ``nearest``: the value next to it. ``zero``: 0, as in the reproduction: since good parts are
        mostly below it, no image then scores below 0, and all that do share that score.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`.

    Notes
    -----
    Steps have one image, and the teacher's features of it are computed once. The student computes
    only the half that a part of the loss looks at, and the hardest errors are found without sorting
    all, which comes to the same. Colours are jittered after the image was resized, in the
    reproduction before. Quantiles are those of the images held back.
    """

    method: ClassVar[str] = "efficientad"
    default_backbone: ClassVar[str] = "pdn_small"
    backbone_family: ClassVar[str | None] = PDN
    side_multiple: ClassVar[int] = 32
    learns_from: ClassVar[tuple[str, ...]] = ("penalty",)
    schedule: ClassVar[Schedule] = Schedule(batch=1, steps=1000, paper_steps=70_000)

    _others: Sequence[Path] = ()

    def __init__(
        self,
        width: float = 1.0,
        penalty: str | None = None,
        border: Border = "nearest",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("width", width, above=0, most=4)
        check_choice("border", border, Border)
        if self.resolution is not None and self.resolution < 64:
            raise OptionError(f"--resolution {self.resolution}: {self.method} takes 64 or more")
        self.width, self.penalty = width, penalty
        self.border: Border = border

    @property
    def teacher(self) -> PatchDescription:
        """The frozen network."""
        network = self.load_network()
        if not isinstance(network, PatchDescriber):
            raise BackboneError(
                f"--backbone {network.name}: {self.method} takes a patch description network, "
                "pdn_small or pdn_medium; `offnominal train efficientad-teacher` makes one from "
                "any other"
            )
        return network.model

    def build(self) -> None:
        """Student and autoencoder, and what is known of the teacher's features and of errors."""
        teacher, dim = self.teacher, self.load_network().dim
        self.student = PatchDescription(teacher.size, 2 * dim, self.width)
        self.autoencoder = Autoencoder(self.side, dim, self.width)
        self.mean_, self.std_ = torch.zeros(dim, 1, 1), torch.ones(dim, 1, 1)
        self.quantiles_ = torch.tensor([[0.0, 1.0], [0.0, 1.0]])  # of local and global errors

    def optimisers(self) -> list[Optimizer]:
        """Adam at 1e-4 with an L2 penalty."""
        trained = [*self.student.parameters(), *self.autoencoder.parameters()]
        return [Adam(trained, lr=1e-4, weight_decay=1e-5)]

    def rate(self, done: float) -> float:
        """A tenth in the last twentieth."""
        return 1.0 if done < 0.95 else 0.1

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The teacher's features (B, D, h / 4 - 8, w / 4 - 8)."""
        return (self.teacher(pixels),)

    def known_by(self, pixels: Tensor) -> Sequence[Tensor]:
        """The teacher's features, repeated at the border that they do not reach."""
        return [F.pad(self.teacher(pixels), (4, 4, 4, 4), mode="replicate")]

    def prepare(self, images: Images) -> None:
        """Mean and deviation of each of the teacher's channels (algorithm 1)."""
        self._others = find_images(self.penalty) if self.penalty else []
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for [found] in self.frozen_of_all(images):
            features = found.double()
            count += features[:, 0].numel()
            total = total.to(features) + features.sum((0, 2, 3))
            squares = squares.to(features) + features.square().sum((0, 2, 3))
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        self.mean_, self.std_ = mean.float()[:, None, None], std.float()[:, None, None]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Hardest errors, the autoencoder's, the student's of it, and the penalty."""
        dim = len(self.mean_)
        first, second = slice(0, dim), slice(dim, 2 * dim)
        [teacher] = self.frozen_of(batch)
        jittered = self._normalised(jitter(batch.images, batch.rng))
        with torch.no_grad():
            [teacher_jittered] = self.frozen(jittered)
        return loss_parts(
            (teacher - self.mean_) / self.std_,
            self.student(batch.pixels, channels=first),
            (teacher_jittered - self.mean_) / self.std_,
            self.student(jittered, channels=second),
            self.autoencoder(jittered),
            self.student(self._penalty_images(batch), channels=first) if self.penalty else None,
        )

    def settle(self, images: Images) -> None:
        """Quantiles of both errors over the images held back, or over all where there are none."""
        maps = [self._errors(pixels) for pixels in (self.held_back or images).batches()]
        values = torch.cat(maps).transpose(0, 1).flatten(1).cpu().numpy()
        found = np.quantile(values, (_LOW, _HIGH), axis=1).T
        found[:, 1] = np.maximum(found[:, 1], found[:, 0] + 1e-6)  # where all errors are the same
        self.quantiles_ = torch.from_numpy(found).to(self.mean_)

    def compare(self, pixels: Tensor) -> ViewScores:
        """The scaled and averaged map, and its maximum at the size of what the network sees."""
        scaled = scaled_map(self._errors(pixels), self.quantiles_, self.border)
        full = F.interpolate(scaled, pixels.shape[-2:], mode="bilinear")
        return ViewScores(scaled[0, 0], full.max())

    def _errors(self, pixels: Tensor) -> Tensor:
        teacher = (self.frozen(pixels)[0] - self.mean_) / self.std_
        return error_maps(teacher, self.student(pixels), self.autoencoder(pixels)).float()

    def _penalty_images(self, batch: Batch) -> Tensor:
        """As many images of anything else as the batch has."""
        drawn = [self._drawn(batch.rng) for _ in range(len(batch.images))]
        return self._normalised(torch.stack(drawn))

    def _normalised(self, images: Tensor) -> Tensor:
        every = range(len(images))
        return self.images(images.numpy(), every).pixels(every)

    def _drawn(self, rng: np.random.Generator) -> Tensor:
        error: ImageError | None = None
        for _ in range(_TRIES):  # one that cannot be read makes room for another
            source = self._others[int(rng.integers(len(self._others)))]
            try:
                return other_image(self.image_of(source), self.side, rng)
            except ImageError as found:
                error = found
        raise OptionError(f"--penalty {self.penalty}: its images cannot be read, such as {error}")
