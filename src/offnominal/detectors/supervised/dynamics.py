"""Training dynamics: how the loss of a patch falls while an autoencoder learns says what it is.

After Chu and Kitani, "Neural Batch Sampling with Reinforcement Learning for Semi-Supervised Anomaly
Detection", ECCV 2020.
"""

from copy import deepcopy
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.backbones.locally_aware import locally_aware
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.supervised.base import Supervised
from offnominal.detectors.supervised.grids import grid_targets, top_mean
from offnominal.detectors.supervised.sampling import PatchSampler
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images
from offnominal.training.imbalance import Imbalance, imbalance_loss

__all__ = ["TrainingDynamics"]

Sampler = Literal["learned", "uniform"]

_TOP = 0.05  # of the patches speaks for an image


class TrainingDynamics(Supervised, TrainedFeatureDetector):
    """A classifier of loss profiles: the loss of each patch at several moments of a training.

    An autoencoder of patch features learns from all images. What is good is common and alike, and
    its loss falls soon; that of a defect lags behind. The autoencoder is kept after 1/2, 1/4, 1/8,
    ... of the training, and what it loses on a patch at each of these moments is the patch's
    profile, by which a small convolutional classifier tells what is defective.

    A sampler chooses which patches of a step the autoencoder learns from. It prefers them by a
    weighted sum of their loss, of how far it has fallen, and of whether they are known to be good.
    The weights are learned by policy gradients (REINFORCE), and the reward is how far the losses of
    defective patches lie above those of good ones a step later.

    Parameters
    ----------
    stages : int
        Moments, the end among them, on [2, 12].
    sampler : {"learned", "uniform"}
        ``uniform``: by chance alone.
    sampled : float
        Share of the patches of a step that the autoencoder learns from, on (0, 1].
    narrow : int
        Channels in the middle of the autoencoder.
    criterion : {"focal", "bce", "deviation", "dice", "auc-margin"}
        The classifier's loss; see :mod:`offnominal.training.imbalance`.
    **options
        See :class:`~offnominal.detectors.supervised.base.Supervised` and
        :class:`~offnominal.detectors.trained_features.TrainedFeatureDetector`.

    Notes
    -----
    The authors published no code. They paint pixels, begin the autoencoder anew in every episode,
    let a policy network walk over the images, and train it again for images to be judged. Here
    features are painted, in one episode, and the moments are saved, so that a new image needs no
    training. In images without a mask the top 5 % of the patches stand for a defect.
    """

    method: ClassVar[str] = "dynamics"
    default_backbone: ClassVar[str] = "wide_resnet50_2"
    schedule: ClassVar[Schedule] = Schedule(batch=8, steps=400, paper_steps=400)

    kept: Tensor

    def __init__(
        self,
        stages: int = 6,
        sampler: Sampler = "learned",
        sampled: float = 0.25,
        narrow: int = 16,
        criterion: Imbalance = "focal",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("stages", stages, least=2, most=12, whole=True)
        check_choice("sampler", sampler, Sampler)
        check_range("sampled", sampled, above=0, most=1)
        check_range("narrow", narrow, least=1, most=4096, whole=True)
        check_choice("criterion", criterion, Imbalance)
        self.stages, self.sampled, self.narrow = stages, sampled, narrow
        self.sampler: Sampler = sampler
        self.criterion: Imbalance = criterion

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Locally aware features (B, D, gh, gw)."""
        return (locally_aware(self.levels(pixels).maps),)

    def build(self) -> None:
        """The autoencoder, its earlier states, the classifier and the sampler's weights."""
        side = self.load_network().multiple * 2
        dim = self.frozen(torch.zeros(1, 3, side, side))[0].shape[1]
        self.painter = nn.Sequential(
            nn.Conv2d(dim, dim // 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(dim // 2, self.narrow, 1),
            nn.Conv2d(self.narrow, dim // 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(dim // 2, dim, 1),
        )
        # Never trained, and not frozen either: a training that goes on has to find them again.
        self.earlier = nn.ModuleList(deepcopy(self.painter) for _ in range(self.stages - 1))
        self.classifier = nn.Sequential(
            nn.BatchNorm2d(self.stages),
            nn.Conv2d(self.stages, 16, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1, padding_mode="replicate"),
        )
        self._done, self.moments_ = 0.0, 0
        self.mean_, self.std_ = torch.zeros(dim, 1, 1), torch.ones(dim, 1, 1)
        self.register_buffer("kept", torch.zeros((), dtype=torch.int64))
        self.chooser = PatchSampler()

    def prepare(self, images: Images) -> None:
        """Mean and deviation of good parts' features."""
        mean, variance = self.moments(images)
        spread = variance.sqrt().float()
        self.mean_ = mean.float()[:, None, None]
        # What never fires on good parts may do so on defects, and must not drown all else.
        self.std_ = spread.clamp(min=float(spread.mean()) / 10 + 1e-6)[:, None, None]

    def optimisers(self) -> list[Optimizer]:
        """Adam for the autoencoder, and for the classifier."""
        return [
            Adam(self.painter.parameters(), lr=1e-3),
            Adam(self.classifier.parameters(), lr=2e-3),
        ]

    def rate(self, done: float) -> float:
        """Constant; it is only told how far the training is."""
        self._done = done
        return 1.0

    def losses_of(self, features: Tensor, painter: nn.Module) -> Tensor:
        """Logarithm of the squared error of each patch: (B, D, gh, gw) to (B, gh, gw)."""
        errors: Tensor = (painter(features) - features).square().mean(1)
        return errors.clamp(min=1e-8).log()

    def profile(self, features: Tensor, now: Tensor, kept: int) -> Tensor:
        """Loss profiles (B, stages, gh, gw), with the state of now for moments that are to come."""
        with torch.no_grad():
            then = [self.losses_of(features, one) for one in list(self.earlier)[:kept]]
        return torch.stack([*then, *[now.detach()] * (self.stages - kept)], 1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """What the autoencoder loses on the patches that were chosen, and the classifier's loss."""
        self._keep()
        assert batch.labels is not None
        assert batch.targets is not None
        features = (self.frozen_of(batch)[0] - self.mean_) / self.std_
        now = self.losses_of(features, self.painter)
        profiles = self.profile(features, now, int(self.kept))
        truth = grid_targets(batch.targets, now.shape[-2:])
        losses, before, known = (
            each.flatten() for each in (profiles[:, -1], profiles[:, 0], truth)
        )
        if self.sampler == "learned":
            self.chooser.learn(losses, known)
        chosen = self.chooser.draw(losses, before, known, max(1, int(self.sampled * len(losses))))
        painted = now.exp().flatten()[chosen].mean()

        values = self.classifier(profiles)[:, 0]
        criterion = imbalance_loss(self.criterion)
        patches = criterion(values, truth, None)
        images = criterion(top_mean(values, _TOP), batch.labels, None)
        return {"total": painted + patches + images, "painted": painted, "images": images}

    @torch.no_grad()
    def _keep(self) -> None:
        """Keep the autoencoder where another moment has come: after 1/2, 1/4, 1/8, ..."""
        last = self.stages - 1
        while int(self.kept) < last and self._done >= 0.5 ** (last - int(self.kept)):
            self.earlier[int(self.kept)].load_state_dict(self.painter.state_dict())
            self.kept += 1

    def settle(self, images: Images) -> None:
        """How many moments there were."""
        self.moments_ = int(self.kept)

    def compare(self, pixels: Tensor) -> ViewScores:
        """The classifier's value at each patch, and of the image the mean of the largest."""
        features = (self.frozen(pixels)[0] - self.mean_) / self.std_
        profiles = self.profile(features, self.losses_of(features, self.painter), self.moments_)
        values = self.classifier(profiles)[:, 0]
        return ViewScores(values[0], top_mean(values, _TOP)[0])
