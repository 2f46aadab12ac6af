"""IGD: a Gaussian of images' descriptors, held in shape by decoding what lies between them.

Chen, Tian, Pang and Carneiro, "Deep One-Class Classification via Interpolated Gaussian Descriptor",
AAAI 2022 (arXiv 2101.10043).
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.one_class.density import pushed_off_zero
from offnominal.detectors.one_class.igd_networks import Critic, Decoder
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images
from offnominal.training.losses import ms_ssim, ssim

__all__ = ["IGD", "Norms", "reconstruction_loss"]

Norms = Literal["batch", "initial"]

_RANGE = 2.1179 + 2.64  # of normalised pixels, as the released code has it
_SIMILARITY = 0.85  # weight of the structural part of the reconstruction loss
_ADVERSARIAL = 0.1
_MIXED = 0.2  # share of the image in the critic's second input
_DIM = 128
_UPDATES = 26  # of centre and width in a training: every 10 of 256 epochs


def reconstruction_loss(images: Tensor, painted: Tensor) -> Tensor:
    """Loss of each image (B,): 0.85 of 1 - MS-SSIM, and 0.15 of the mean absolute difference."""
    apart = (images - painted).abs().mean((1, 2, 3)) / _RANGE
    return _SIMILARITY * (1 - ms_ssim(images, painted, _RANGE)) + (1 - _SIMILARITY) * apart


class IGD(TrainedFeatureDetector):
    """How badly an image is painted from its descriptor, and how far that is from the others.

    A linear map of a frozen network's features is the descriptor z. A decoder paints the image from
    it. Three losses hold the descriptors in shape: the reconstruction's; that of a Gaussian around
    their centre c, ``1 - exp(-|z - c|^2 / s)``; and a critic's. The critic learns to tell by how
    much the descriptor of a painted image was mixed with another one's; encoder and decoder learn
    to make it find no mixture. So what lies between two good images is painted as a good one.

    The image score is the mean of the reconstruction loss and the Gaussian one. The map is the
    reconstruction loss at each pixel, with SSIM at one scale. The released code has a second model
    of windows of 32 pixels, which enters its final scores; that is not here.

    Both players take a step at once; in the released code the critic's comes second.

    Parameters
    ----------
    width : float
        Factor on the channels of decoder and critic, above 0 and at most 1. 1 is the paper's, whose
        step takes minutes on two cores.
    norms : {"batch", "initial"}
        ``initial``: batch norms of the decoder keep their first statistics, as they do in the
        released code, which switches them to evaluation and never back.
    resolution : int
        A multiple of 64; 256 as in the paper.
    **options
        See :class:`~offnominal.detectors.trained_features.TrainedFeatureDetector`. The paper's
        network is ResNet-18.
    """

    method: ClassVar[str] = "igd"
    default_backbone: ClassVar[str] = "resnet18"
    default_layers: ClassVar[tuple[int, ...] | None] = (-1,)
    side_multiple: ClassVar[int] = 64
    schedule: ClassVar[Schedule] = Schedule(batch=16, steps=500, paper_epochs=256)

    centre_: Tensor
    spread_: Tensor
    updates_: Tensor

    def __init__(self, width: float = 0.25, norms: Norms = "batch", **options: Any) -> None:
        super().__init__(**options)
        check_range("width", width, above=0, most=1)
        check_choice("norms", norms, Norms)
        self.width = width
        self.norms: Norms = norms

    def build(self) -> None:
        """Encoder, decoder, and the critic, which is not saved, as its name begins with _."""
        [vector] = self.frozen(torch.zeros(1, 3, self.side, self.side))[0]
        self.encoder = nn.Linear(len(vector), _DIM)
        self.decoder = Decoder(self.side, _DIM, self.width)
        self._critic = Critic(self.side, self.width)
        # Buffers, so that a training that is broken off keeps them.
        self.register_buffer("centre_", torch.zeros(_DIM))
        self.register_buffer("spread_", torch.ones(()))
        self.register_buffer("updates_", torch.zeros((), dtype=torch.int64))
        self._done = 0.0

    def optimisers(self) -> list[Optimizer]:
        """Adam for each player."""
        own = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [
            Adam(own, lr=1e-4, betas=(0.0, 0.9), weight_decay=1e-6),
            Adam(self._critic.parameters(), lr=1e-4, betas=(0.0, 0.9)),
        ]

    def rate(self, done: float) -> float:
        """Polynomial decay."""
        self._done = done
        return float((1 - done) ** 0.9)

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The mean of the last level (B, C)."""
        return (self.levels(pixels).summary,)

    def known_by(self, pixels: Tensor) -> Sequence[Tensor]:
        """The last level itself."""
        return self.levels(pixels).maps

    def prepare(self, images: Images) -> None:
        """Vectors of all images, of which centre and width are made."""
        self._vectors = torch.cat([vectors for [vectors] in self.frozen_of_all(images)])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of both players; no gradient of one reaches the other."""
        if self._done * _UPDATES >= self.updates_:
            self._update()
        if self.norms == "initial":
            self.decoder.eval()
        images, [vectors] = batch.pixels, self.frozen_of(batch)
        z = self.encoder(vectors)
        painted = self.decoder(z)
        share = torch.rand(len(z), 1, device=z.device) / 2
        between = self.decoder(share * z + (1 - share) * z.flip(0))

        fixed = {name: each.detach() for name, each in self._critic.named_parameters()}
        noticed = functional_call(self._critic, fixed, (between,)).square().mean()
        reconstruction = reconstruction_loss(images, painted).mean()
        gaussian = self.gaussian(z).mean()

        guess = self._critic(between.detach())
        mixed = self._critic((painted + _MIXED * (images - painted)).detach())
        critic = (guess - share[:, 0]).square().mean() + mixed.square().mean()
        total = reconstruction + gaussian + _ADVERSARIAL * noticed + critic
        parts = {"reconstruction": reconstruction, "gaussian": gaussian, "noticed": noticed}
        return {"total": total, **parts, "critic": critic}

    def gaussian(self, z: Tensor) -> Tensor:
        """1 - exp(-|z - c|^2 / s) of descriptors (B, 128): (B,)."""
        return 1 - torch.exp(-(z - self.centre_).square().sum(1) / self.spread_)

    @torch.no_grad()
    def _update(self) -> None:
        z = self.encoder(self._vectors)
        if not self.updates_:
            self.centre_.copy_(pushed_off_zero(z.mean(0)))
        self.spread_.copy_((z - self.centre_).square().sum(1).mean().clamp(min=1))
        self.centre_.copy_(pushed_off_zero(z.mean(0)))
        self.updates_ += 1

    def release(self) -> None:
        """The vectors are not needed any more."""
        super().release()
        self._vectors = torch.empty(0)

    def compare(self, pixels: Tensor) -> ViewScores:
        """Both losses of the image, and the reconstruction's of each pixel."""
        z = self.encoder(self.frozen(pixels)[0])
        painted = self.decoder(z)
        score = (reconstruction_loss(pixels, painted) + self.gaussian(z)) / 2
        unlike = 1 - ssim(pixels, painted, span=_RANGE).mean((0, 1))
        apart = (pixels - painted).abs().mean((0, 1)) / _RANGE
        return ViewScores(_SIMILARITY * unlike + (1 - _SIMILARITY) * apart, score[0])
