"""CAVGA: the attention of what tells images apart is led over good parts and away from defects.

Venkataramanan, Peng, Singh and Mahalanobis, "Attention Guided Anomaly Localization in Images",
ECCV 2020 (arXiv 1911.08616), its weakly supervised form.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from offnominal.backbones.locally_aware import locally_aware
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.supervised.base import Supervised
from offnominal.detectors.supervised.grids import grid_targets
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch
from offnominal.training.imbalance import Imbalance, imbalance_loss

__all__ = ["CAVGA", "guided_attention"]

_WIDTH = 32  # of decoder and discriminator


class CAVGA(Supervised, TrainedFeatureDetector):
    """An adversarial variational autoencoder whose latent variable is a map, and has attention.

    A linear classifier tells good from defective images by the mean of the latent map. What it
    looks at for each answer (Grad-CAM, which is the classifier at each position here) is led: in
    good images that are classified as such, the attention of `good` is to cover everything and that
    of `defective` nothing. Masks lead it in defective images, too, to the defect and away from it;
    the paper knows no masks. The map is one less the attention of `good`, and the image score the
    probability of `defective`.

    Parameters
    ----------
    guidance : float
        Weight of the guided attention; 0: none.
    classifying : float
        Weight of the classifier's loss. The paper has 0.01 for the attention and 0.001 for this,
        with which hardly anything is learned within hundreds of steps.
    adversarial : float
        Weight of the discriminator's judgement of what is painted; 1 in the paper, 0: none.
    latent : int
        Channels of the latent map.
    criterion : {"bce", "focal", "deviation", "dice", "auc-margin"}
        The classifier's loss; cross-entropy in the paper. See :mod:`offnominal.training.imbalance`.
    **options
        See :class:`~offnominal.detectors.supervised.base.Supervised` and
        :class:`~offnominal.detectors.trained_features.TrainedFeatureDetector`.

    Notes
    -----
    The authors published no code. Their encoder, a ResNet-18, is trained along; here it is frozen,
    so that its features are computed once, and the latent map has their grid. The image is painted
    at twice that grid. Gradients are not averaged over positions before the sigmoid, which would
    leave it at one half everywhere.
    """

    method: ClassVar[str] = "cavga"
    default_backbone: ClassVar[str] = "resnet18"
    schedule: ClassVar[Schedule] = Schedule(batch=16, steps=1000, paper_epochs=150)

    def __init__(
        self,
        guidance: float = 1.0,
        classifying: float = 1.0,
        adversarial: float = 1.0,
        latent: int = 64,
        criterion: Imbalance = "bce",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("guidance", guidance, least=0)
        check_range("classifying", classifying, above=0)
        check_range("adversarial", adversarial, least=0)
        check_range("latent", latent, least=1, most=4096, whole=True)
        check_choice("criterion", criterion, Imbalance)
        self.guidance, self.classifying, self.adversarial = guidance, classifying, adversarial
        self.latent = latent
        self.criterion: Imbalance = criterion

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Locally aware features (B, D, gh, gw)."""
        return (locally_aware(self.levels(pixels).maps),)

    def build(self) -> None:
        """Encoder, decoder and classifier; and the discriminator, which is not saved."""
        side = self.load_network().multiple * 2
        dim = self.frozen(torch.zeros(1, 3, side, side))[0].shape[1]
        self.encoder = nn.Sequential(
            nn.BatchNorm2d(dim, affine=False), nn.Conv2d(dim, 2 * self.latent, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(self.latent, _WIDTH, 3, padding=1),
            nn.BatchNorm2d(_WIDTH),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(_WIDTH, 3, 3, padding=1),
        )
        self.classifier = nn.Linear(self.latent, 2)
        self._critic = nn.Sequential(
            nn.Conv2d(3, _WIDTH, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, _WIDTH, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, 1, 3, padding=1),
        )

    def optimisers(self) -> list[Optimizer]:
        """Adam for each player."""
        parts = (self.encoder, self.decoder, self.classifier)
        own = [each for part in parts for each in part.parameters()]
        return [Adam(own, lr=1e-3), Adam(self._critic.parameters(), lr=1e-4, betas=(0.5, 0.999))]

    def attention(self, latent: Tensor) -> Tensor:
        """Attention of `good` and of `defective` (B, 2, gh, gw), on [0, 1]."""
        weight = self.classifier.weight[..., None, None]
        return torch.sigmoid(F.conv2d(latent, weight, self.classifier.bias))

    def logits(self, latent: Tensor) -> Tensor:
        """How much more `defective` than `good` images are, (B,)."""
        good, bad = self.classifier(latent.mean((2, 3))).T
        difference: Tensor = bad - good
        return difference

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of both players; no gradient of one reaches the other."""
        assert batch.labels is not None
        assert batch.targets is not None
        [features] = self.frozen_of(batch)
        mean, spread = self.encoder(features).chunk(2, 1)
        latent = mean + torch.randn_like(mean) * (spread / 2).exp()
        painted = self.decoder(latent)
        image = F.adaptive_avg_pool2d(batch.pixels, (painted.shape[-2], painted.shape[-1]))
        apart = (painted - image).square().mean()
        prior = (mean.square() + spread.exp() - 1 - spread).sum() / 2 / image.numel()

        fixed = {name: each.detach() for name, each in self._critic.named_parameters()}
        fooled = _says(functional_call(self._critic, fixed, (painted,)), True)
        critic = _says(self._critic(image), True) + _says(self._critic(painted.detach()), False)

        logits = self.logits(latent)
        classified = imbalance_loss(self.criterion)(logits, batch.labels, None)
        attention = self.attention(latent)
        truth = grid_targets(batch.targets, attention.shape[-2:])
        misled = (batch.labels == 0) & (logits > 0)  # its attention says nothing of good parts
        guided = guided_attention(attention, truth.masked_fill(misled[:, None, None], 255))
        total = apart + prior + self.adversarial * fooled + critic
        total = total + self.classifying * classified + self.guidance * guided
        parts = {"painted": apart, "prior": prior, "fooled": fooled, "critic": critic}
        return {"total": total, **parts, "classified": classified, "guided": guided}

    def compare(self, pixels: Tensor) -> ViewScores:
        """The probability of `defective`, and one less the attention of `good`."""
        latent = self.encoder(self.frozen(pixels)[0]).chunk(2, 1)[0]
        good = self.attention(latent)[0, 0]
        return ViewScores(1 - good, torch.sigmoid(self.logits(latent)[0]))


def guided_attention(attention: Tensor, truth: Tensor) -> Tensor:
    """How far attention is from where it is led, on [0, 4].

    Parameters
    ----------
    attention : Tensor of shape (B, 2, gh, gw), on [0, 1]
        Of `good` and of `defective`.
    truth : Tensor of shape (B, gh, gw)
        0 good, 1 defective, 255 not known or not led.
    """
    good, bad = attention[:, 0], attention[:, 1]
    total = attention.new_zeros(())
    for value, wrong in ((0, bad - good), (1, good - bad)):
        there = (truth == value).float()
        total = total + ((wrong + 1) * there).sum() / there.sum().clamp(min=1)
    return total


def _says(values: Tensor, real: bool) -> Tensor:
    """Cross-entropy of the discriminator's values, as logits, with what it should say."""
    return F.softplus(-values if real else values).mean()
