"""SimpleNet: features of good parts told from the same features with noise.

Liu, Zhou, Xu and Wang, "SimpleNet: A Simple Network for Image Anomaly Detection and Localization",
CVPR 2023 (arXiv 2303.15140).
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from offnominal.backbones.base import Backbone
from offnominal.backbones.locally_aware import locally_aware
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.errors import OptionError
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images
from offnominal.training.norms import after_ones

__all__ = ["SimpleNet", "hinge"]

Statistics = Literal["kept", "released"]

_PAPERS_DIM, _PAPERS_NOISE = 1536, 0.015
_SHARE = 0.3  # of the deviation of other networks' features


class SimpleNet(TrainedFeatureDetector):
    """A linear adaptor and a small discriminator on PatchCore's locally aware features.

    The discriminator learns to be above ``margin`` for adapted features of good patches and below
    ``-margin`` for the same with Gaussian noise added (eq. 3 to 5). A patch scores minus its value.

    Parameters
    ----------
    noise : float or None
        Standard deviation of the noise that is added to adapted features. None: the paper's 0.015
        with residual networks, whose features it was chosen for; with others 0.3 of the deviation
        of their features.
    margin : float
        0.5 in the paper (its thresholds); above 0.
    dim : int or None
        Length of the features. None: the paper's 1536 where the levels have that many channels
        together; of narrower networks as many as the levels have.
    hidden : int
        Width of the discriminator's hidden layer; 1024 in the paper.
    patch : int
        Side of the neighbourhood that makes features locally aware, odd.
    statistics : {"kept", "released"}
        Of the backbone's batch norms. ``released``: moved by an image of ones, which goes through
        the backbone in training mode in the released code.
    resolution : int or None
        Side of the square that images are resized to. The paper resizes the shorter side to 329 and
        looks at the middle 288 pixels (``crop``).
    smoothing : float
        Standard deviation of the map's Gaussian: 4, as in the paper.
    aggregate : str
        ``max``: the largest patch score, before any smoothing, as in the paper.
    **options
        See :class:`~offnominal.detectors.trained_features.TrainedFeatureDetector`. The backbone is
        WideResNet-50-2, ``layers`` those of stride 8 and 16.

    Notes
    -----
    The released code keeps the epoch that did best on the test set; here the last step counts.

    Weight decay is the released code's, 0.01 for the adaptor and 1e-5 for the discriminator; the
    paper has 1e-5 for both.

    Examples
    --------
    >>> from offnominal import SimpleNet
    >>> detector = SimpleNet(budget="20m").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "simplenet"
    default_backbone: ClassVar[str] = "wide_resnet50_2"
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=1000, paper_epochs=160)
    paper_crop: ClassVar[float] = 329 / 288

    def __init__(
        self,
        noise: float | None = None,
        margin: float = 0.5,
        dim: int | None = None,
        hidden: int = 1024,
        patch: int = 3,
        statistics: Statistics = "kept",
        smoothing: float = 4.0,
        aggregate: str = "max",
        **options: Any,
    ) -> None:
        super().__init__(smoothing=smoothing, aggregate=aggregate, **options)
        if noise is not None:
            check_range("noise", noise, above=0)
        check_range("margin", margin, above=0)
        if dim is not None:
            check_range("dim", dim, whole=True, least=1, most=65_536)
        check_range("hidden", hidden, whole=True, least=1, most=65_536)
        check_range("patch", patch, whole=True, least=1, most=99)
        if patch % 2 == 0:
            raise OptionError(f"--patch {patch}: give an odd number")
        check_choice("statistics", statistics, Statistics)
        self.statistics: Statistics = statistics
        self.noise, self.margin = noise, margin
        self.dim, self.hidden, self.patch = dim, hidden, patch

    def use_network(self, network: Backbone, shared: bool = True) -> None:
        """Adopt a backbone, or a copy of it with the released code's statistics."""
        super().use_network(network, shared)
        if self.statistics == "released" and self.network is not None:
            self.network = after_ones(self.network, self.side)

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Locally aware features (B, D, gh, gw)."""
        maps = self.levels(pixels).maps
        wide = sum(each.shape[1] for each in maps) >= _PAPERS_DIM
        dim = self.dim or (_PAPERS_DIM if wide else None)
        return (locally_aware(maps, self.patch, dim, dim),)

    def build(self) -> None:
        """Adaptor and discriminator."""
        side = self.load_network().multiple * 2
        dim = self.frozen(torch.zeros(1, 3, side, side))[0].shape[1]
        self.adaptor = nn.Linear(dim, dim)
        self.discriminator = nn.Sequential(
            nn.Linear(dim, self.hidden),
            nn.BatchNorm1d(self.hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(self.hidden, 1, bias=False),
        )
        self.noise_ = self.noise or _PAPERS_NOISE
        for layer in (self.adaptor, *self.discriminator):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)

    def optimisers(self) -> list[Optimizer]:
        """AdamW for the adaptor, Adam for the discriminator; constant rates."""
        return [
            AdamW(self.adaptor.parameters(), lr=1e-4, weight_decay=0.01),
            Adam(self.discriminator.parameters(), lr=2e-4, weight_decay=1e-5),
        ]

    def prepare(self, images: Images) -> None:
        """How strong the noise is, where neither the paper nor the user says."""
        if self.noise is None and "resnet" not in self.load_network().family:
            spread = [each.std((0, 2, 3)).mean() for [each] in self.frozen_of_all(images)]
            self.noise_ = _SHARE * float(torch.stack(spread).mean())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Both hinges, over all patches of the batch."""
        [features] = self.frozen_of(batch)
        adapted = self.adaptor(_rows(features))
        return hinge(
            self.discriminator, adapted, self.noise_ * torch.randn_like(adapted), self.margin
        )

    def compare(self, pixels: Tensor) -> ViewScores:
        """Minus the discriminator's value at each patch."""
        [features] = self.frozen(pixels)
        values = self.discriminator(self.adaptor(_rows(features)))
        return ViewScores(-values.view(features.shape[-2:]))


def hinge(
    discriminator: nn.Module, good: Tensor, noise: Tensor, margin: float
) -> dict[str, Tensor]:
    """Truncated L1 loss (eq. 5) of features (n, D), and of the same with noise (n, D) added."""
    # As one batch, so that both go through the same batch statistics, as in the released code.
    values = discriminator(torch.cat([good, good + noise]))
    above = (margin - values[: len(good)]).clamp(min=0).mean()
    below = (margin + values[len(good) :]).clamp(min=0).mean()
    return {"total": above + below, "good": above, "noisy": below}


def _rows(features: Tensor) -> Tensor:
    """Features (B, D, gh, gw) as (B * gh * gw, D)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)
