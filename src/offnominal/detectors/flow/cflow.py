"""CFlow-AD: the likelihood of each feature vector, given its place in the image.

Gudovskiy, Ishizaka and Kozuka, "CFLOW-AD: Real-Time Unsupervised Anomaly Detection with
Localization via Conditional Normalizing Flows", WACV 2022 (arXiv 2107.12571).
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.backbones.base import Backbone
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.flow.coupling import Clamping
from offnominal.detectors.flow.fibres import (
    decoder,
    log_density,
    position_code,
    summed,
    warm_cosine,
)
from offnominal.detectors.learned_state import must
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.sizing import Resample
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images

__all__ = ["CFlow", "Objective", "Padding"]

Objective = Literal["log-sigmoid", "likelihood"]
Padding = Literal["zeros", "reflect"]

_PLACE = 128  # length of the code of a place


class CFlow(TrainedFeatureDetector):
    """Normalising flows of single feature vectors, given where in the image they lie.

    At each level a flow learns the density of the frozen network's vectors of good parts, under the
    condition of a code of their place (section 4); how unlikely a vector is is its score.

    Parameters
    ----------
    couplings : int
        Steps of a flow, 8 in the paper.
    width : float
        Factor on the width of the subnets, in the paper twice what they see. Below 1 it trains
        faster and learns less.
    fibres : int
        Vectors of each level in a step.
    objective : {"log-sigmoid", "likelihood"}
        What is minimised, of a vector's log-likelihood l per dimension: ``-log sigmoid(l)``, as in
        the released code, which leaves alone what is likely already, or the paper's -l.
    clamping : {"plain", "scaled"}
        Of the couplings; see :class:`~offnominal.detectors.flow.coupling.Coupling`. ``plain`` is
        that of the figures.
    padding : {"zeros", "reflect"}
        Of the network's convolutions. The released code reflects, though the weights were learned
        with zeros; the paper does not speak of it.
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`. Levels are those of strides 8, 16
        and 32. The paper's networks are WideResNet-50-2 and MobileNetV3-L, the default: its figures
        are as good, and its flows are a fifth of the other's 82 million values. The released code
        turns images by up to 5 degrees in training: ``augment="tilts"``; then nothing is cached.

    Notes
    -----
    The released code makes a step for every run of 256 vectors of one level, one level after the
    other. The flows share no weights and Adam treats each by itself, so here a step takes a run of
    every level, drawn from all vectors of its images, which is the same but for the order, and for
    the coarse levels, which then get as many steps as the fine one. The paper's 200 rounds are 200
    times as many steps as it takes to see all vectors of the finest level.

    Likelihoods of levels are brought to one scale by the largest ones of the images trained on. The
    released code takes those of all test images, by which every score depends on the others.
    """

    method: ClassVar[str] = "cflow"
    default_backbone: ClassVar[str] = "mobilenetv3_large"
    default_layers: ClassVar[tuple[int, ...] | None] = (-3, -2, -1)
    resample: ClassVar[Resample] = "lanczos"
    # 200 rounds, each of the 32 steps that see the 1,024 vectors of 8 images' finest level.
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=4000, paper_epochs=200 * 32)

    peaks_: Tensor

    def __init__(
        self,
        couplings: int = 8,
        width: float = 1.0,
        fibres: int = 256,
        objective: Objective = "log-sigmoid",
        clamping: Clamping = "plain",
        padding: Padding = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("couplings", couplings, least=1, most=64, whole=True)
        check_range("width", width, above=0, most=16)
        check_range("fibres", fibres, least=1, most=2**20, whole=True)
        check_choice("objective", objective, Objective)
        check_choice("clamping", clamping, Clamping)
        check_choice("padding", padding, Padding)
        self.couplings, self.width, self.fibres = couplings, width, fibres
        self.objective: Objective = objective
        self.clamping: Clamping = clamping
        self.padding: Padding = padding

    def use_network(self, network: Backbone, shared: bool = True) -> None:
        """Adopt a backbone, or a copy that pads in the way that is asked for."""
        reflect = self.padding == "reflect"
        super().use_network(network.reflected() if reflect else network, shared and not reflect)

    def build(self) -> None:
        """A flow for each level."""
        blank = torch.zeros(1, 3, self.side, self.side)
        told = (self.couplings, 2 * self.width, _PLACE, self.clamping)
        self.decoders = nn.ModuleList(decoder(x.shape[1], *told) for x in self.frozen(blank))
        self.peaks_, self.top_ = torch.zeros(len(self.decoders)), 0.0

    def optimisers(self) -> list[Optimizer]:
        """Adam over all flows (section 5.1)."""
        return [Adam(self.decoders.parameters(), lr=2e-4)]

    def rate(self, done: float) -> float:
        """A cosine after a short warm-up."""
        return warm_cosine(done)

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The levels (B, C, h, w)."""
        return tuple(self.levels(pixels).maps)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of a random run of vectors of each level, summed over the levels (eq. 7)."""
        each = {}
        for number, (flow, level) in enumerate(
            zip(self.decoders, self.frozen_of(batch), strict=True)
        ):
            at = level.shape[2] * level.shape[3]
            drawn = batch.rng.permutation(len(level) * at)[: self.fibres]
            chosen = torch.from_numpy(drawn).to(level.device)
            vectors = level.flatten(2)[chosen // at, :, chosen % at]
            places = position_code(_PLACE, *level.shape[2:]).flatten(1).T.to(level.device)
            found = log_density(*flow(vectors, places[chosen % at]))
            likely = F.logsigmoid(found) if self.objective == "log-sigmoid" else found
            each[f"level {number + 1}"] = -likely.mean()
        return {"total": torch.stack(list(each.values())).sum(), **each}

    def densities(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Log-likelihoods per dimension (B, h, w) of levels (B, C, h, w)."""
        found = []
        for flow, level in zip(self.decoders, levels, strict=True):
            count, _, *grid = level.shape
            places = position_code(_PLACE, *grid).flatten(1).T.to(level.device)
            vectors = level.flatten(2).mT.flatten(0, 1)
            found.append(log_density(*flow(vectors, places.repeat(count, 1))).view(count, *grid))
        return found

    def settle(self, images: Images) -> None:
        """What is most likely of good parts: at each level, and of the sum of the levels."""
        every = [self.densities(levels) for levels in self.frozen_of_all(images)]
        peaks = [
            torch.stack([one.max() for one in level]).max() for level in zip(*every, strict=True)
        ]
        self.peaks_ = torch.stack(peaks)
        sums = (summed(one, self.peaks_, (self.side, self.side)) for one in every)
        self.top_ = float(torch.stack([one.max() for one in sums]).max())

    def compare(self, pixels: Tensor) -> ViewScores:
        """How much the likelihood falls short of the largest; its maximum is the image score."""
        total = summed(self.densities(self.frozen(pixels)), self.peaks_, (self.side, self.side))
        return ViewScores((self.top_ - total[0]).float())

    def check_learned(self) -> None:
        """A largest likelihood for each level."""
        super().check_learned()
        must(self.peaks_.shape == (len(self.decoders),), "peaks_ are not one for each level")
