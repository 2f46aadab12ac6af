"""Deep SVDD: a network that maps good images into a small sphere.

Ruff, Vandermeulen, Goernitz, Deecke, Siddiqui, Binder, Mueller and Kloft, "Deep One-Class
Classification", ICML 2018.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.one_class.density import pushed_off_zero
from offnominal.detectors.trained import TrainedDetector
from offnominal.errors import OptionError
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images

__all__ = ["DeepSVDD", "Objective"]

Objective = Literal["one-class", "soft-boundary"]

_EPS = 1e-4  # of batch norms
_LAST = 4  # side of the encoder's last grid
_WARM_UP = 10 / 150  # share of the second part in which the radius stays 0


def blocks_of(side: int, most: int = 128) -> list[int]:
    """Filters of the blocks that bring a side down to 4: 32, then twice as many, up to 128."""
    count = round(math.log2(side / _LAST)) if side >= 2 * _LAST else 0
    if not count or _LAST * 2**count != side:
        raise OptionError(f"--resolution {side}: give 8, 16, 32, 64, 128, 256 or 512 for deep-svdd")
    return [min(32 * 2**number, most) for number in range(count)]


def encoder_of(side: int, dim: int) -> nn.Sequential:
    """Images (B, 3, side, side) to vectors (B, dim).

    No layer has an offset: with one it could send every image to the centre (proposition 2).
    """
    layers: list[nn.Module] = []
    before = 3
    for after in blocks_of(side):
        layers += [
            nn.Conv2d(before, after, 5, padding=2, bias=False),
            nn.BatchNorm2d(after, eps=_EPS, affine=False),
            nn.LeakyReLU(),
            nn.MaxPool2d(2),
        ]
        before = after
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * _LAST**2, dim, bias=False))


def decoder_of(side: int, dim: int) -> nn.Sequential:
    """Vectors (B, dim) to images (B, 3, side, side) on [0, 1]: the encoder's mirror image."""
    before = dim // _LAST**2
    layers: list[nn.Module] = [
        nn.BatchNorm1d(dim, eps=_EPS, affine=False),
        nn.Unflatten(1, (before, _LAST, _LAST)),
        nn.LeakyReLU(),
    ]
    for after in reversed(blocks_of(side)):
        layers += [
            nn.ConvTranspose2d(before, after, 5, padding=2, bias=False),
            nn.BatchNorm2d(after, eps=_EPS, affine=False),
            nn.LeakyReLU(),
            nn.Upsample(scale_factor=2),
        ]
        before = after
    last = nn.ConvTranspose2d(before, 3, 5, padding=2, bias=False)
    return nn.Sequential(*layers, last, nn.Sigmoid())


class DeepSVDD(TrainedDetector):
    """Distance of an image's vector from the centre of those of good images.

    Nothing is said of where a fault lies: the map is the image score at every pixel, and a rejected
    image is one region. A baseline from before networks looked at patches.

    An autoencoder is trained first. Then the centre c is the mean vector of all training images,
    and the encoder goes on with one of (equations 3 and 4)
    ``one-class:      mean |z - c|^2``
    ``soft-boundary:  R^2 + 1/nu mean max(0, |z - c|^2 - R^2)``

    The image score is ``|z - c|^2``; the released code takes ``R^2`` off, the same for all images.

    Parameters
    ----------
    objective : {"one-class", "soft-boundary"}
    nu : float
        Of the soft boundary, on (0, 1): the share of training images that may lie outside.
    pretrain : float
        Share of the schedule that the autoencoder takes, on (0, 1); 0.7 in the released runs.
    dim : int
        Length of the vector, a multiple of 16; 128 as released.
    resolution : int
        8 to 512, a power of two: each halving is a block of the encoder, down to 4 x 4. The
        released code takes 32 pixels, in which defects vanish; here 64.
    **options
        See :class:`~offnominal.detectors.trained.TrainedDetector`.
    """

    method: ClassVar[str] = "deep-svdd"
    default_side: ClassVar[int] = 64
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    schedule: ClassVar[Schedule] = Schedule(batch=64, steps=1400, paper_epochs=500)

    centre_: Tensor
    radius_: Tensor

    def __init__(
        self,
        objective: Objective = "one-class",
        nu: float = 0.1,
        pretrain: float = 0.7,
        dim: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_choice("objective", objective, Objective)
        check_range("nu", nu, above=0, below=1)
        check_range("pretrain", pretrain, above=0, below=1)
        check_range("dim", dim, whole=True, least=16, most=4096)
        if dim % _LAST**2:
            raise OptionError(f"--dim {dim}: give a multiple of {_LAST**2}, as 128")
        self.objective: Objective = objective
        self.nu = nu
        self.pretrain = pretrain
        blocks_of(self.side)
        self.dim = dim

    def build(self) -> None:
        """The encoder, a decoder to begin with, and the sphere."""
        self.encoder = encoder_of(self.side, self.dim)
        self._decoder = decoder_of(self.side, self.dim)  # not saved, as its name begins with _
        # Buffers, so that a training that is broken off keeps them.
        self.register_buffer("centre_", torch.zeros(self.dim))
        self.register_buffer("radius_", torch.zeros(()))
        self._images: Images | None = None
        self._since = -1.0  # share of the second part that is over, below 0 in the first

    def optimisers(self) -> list[Optimizer]:
        """Adam for both parts of the schedule."""
        return [Adam(self.parameters(), lr=1e-4, weight_decay=0.5e-6)]

    def rate(self, done: float) -> float:
        """A tenth after five sevenths of the first part, and after a third of the second."""
        self._since = (done - self.pretrain) / (1 - self.pretrain)
        if self._since < 0:
            return 1.0 if done < self.pretrain * 5 / 7 else 0.1
        return 1.0 if self._since < 1 / 3 else 0.1

    def prepare(self, images: Images) -> None:
        """The centre takes another look at them."""
        self._images = images

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Of the autoencoder, or of the sphere."""
        none = batch.pixels.new_zeros(())
        if self._since < 0:
            painted = self._decoder(self.encoder(batch.pixels))
            error = (painted - batch.pixels).square().sum((1, 2, 3)).mean()
            return {"total": error, "reconstruction": error, "sphere": none}
        if not self.centre_.any():
            self._set_centre()
        distances = self.squared_distances(batch.pixels)
        sphere = distances.mean()
        if self.objective == "soft-boundary":
            inside = self.radius_.square()
            sphere = inside + (distances - inside).clamp(min=0).mean() / self.nu
            if self._since >= _WARM_UP:
                self.radius_.copy_(distances.detach().sqrt().quantile(1 - self.nu))
        return {"total": sphere, "reconstruction": none, "sphere": sphere}

    def squared_distances(self, pixels: Tensor) -> Tensor:
        """|z - c|^2 (B,) of images (B, 3, side, side)."""
        away: Tensor = self.encoder(pixels) - self.centre_
        return away.square().sum(1)

    def _set_centre(self) -> None:
        assert self._images is not None
        self.eval()
        with torch.no_grad():
            found = torch.cat([self.encoder(pixels) for pixels in self._images.batches()])
        self.train()
        self.centre_.copy_(pushed_off_zero(found.mean(0)))

    def release(self) -> None:
        """The images are not needed any more."""
        super().release()
        self._images = None

    def compare(self, pixels: Tensor) -> ViewScores:
        """The distance, as a grid of one patch."""
        return ViewScores(self.squared_distances(pixels)[:, None])
