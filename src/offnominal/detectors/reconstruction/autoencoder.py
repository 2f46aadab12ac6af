"""An autoencoder, whose bottleneck lets no defect through; compared by SSIM or pixel by pixel.

Bergmann, Löwe, Fauser, Sattlegger and Steger, "Improving Unsupervised Defect Segmentation by
Applying Structural Similarity to Autoencoders", VISAPP 2019 (arXiv 1807.02011).
"""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.trained import TrainedDetector
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Triple
from offnominal.training.losses import ssim

__all__ = ["Autoencoder", "Comparison", "difference", "make_decoder", "make_encoder"]

Comparison = Literal["ssim", "l2"]

# Filters, kernel, stride and padding of each convolution (table 1), before the one to the latent.
_LAYERS = (
    (32, 4, 2, 1), (32, 4, 2, 1), (32, 3, 1, 1), (64, 4, 2, 1), (64, 3, 1, 1), (128, 4, 2, 1),
    (64, 3, 1, 1), (32, 3, 1, 1),
)  # fmt: skip
_STRIDE = 16


class Autoencoder(TrainedDetector):
    """Convolutional autoencoder with a latent vector, and the SSIM or squared difference.

    Parameters
    ----------
    compared : {"ssim", "l2"}
        What is trained on and scored by: structural similarity with a window of 11 x 11, or the
        squared difference of each pixel.
    latent : int
        Length of the latent vector; 100, and 500 in the authors' MVTec AD paper (2019).
    **options
        See :class:`~offnominal.detectors.trainable.Trainable`.

    Notes
    -----
    The authors published no code. The paper takes grey images of 128 x 128 pixels, and of textures
    random crops that are scored patch by patch; here the whole image is resized to that and keeps
    its colours. For other resolutions the innermost kernel grows, so that there is one latent
    vector. The image score, which the paper has none of, is the map's maximum. 32 images a step.
    """

    method: ClassVar[str] = "autoencoder"
    schedule: ClassVar[Schedule] = Schedule(batch=32, steps=2000, paper_epochs=200)
    default_side: ClassVar[int] = 128
    side_multiple: ClassVar[int] = _STRIDE
    mean: ClassVar[Triple] = (0.0, 0.0, 0.0)
    std: ClassVar[Triple] = (1.0, 1.0, 1.0)
    finest: ClassVar[int] = 128

    def __init__(self, compared: Comparison = "ssim", latent: int = 100, **options: Any) -> None:
        super().__init__(**options)
        check_choice("compared", compared, Comparison)
        check_range("latent", latent, least=1, most=2**16, whole=True)
        self.compared: Comparison = compared
        self.latent = latent

    def build(self) -> None:
        """Encoder and decoder, its mirror."""
        self.encoder = make_encoder(self.latent, self.side // _STRIDE)
        self.decoder = make_decoder(self.latent, self.side // _STRIDE)

    def optimisers(self) -> list[Optimizer]:
        """Adam (section 4.1)."""
        return [Adam(self.parameters(), lr=2e-4, weight_decay=1e-5)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean difference between images and what the decoder makes of their latent vectors."""
        painted = self.decoder(self.encoder(batch.pixels))
        return {"total": difference(batch.pixels, painted, self.compared).mean()}

    def compare(self, pixels: Tensor) -> ViewScores:
        """The difference at each pixel."""
        painted = self.decoder(self.encoder(pixels))
        return ViewScores(difference(pixels, painted, self.compared)[0])


def difference(image: Tensor, painted: Tensor, compared: Comparison) -> Tensor:
    """How images (B, 3, h, w) differ at each pixel (B, h, w), mean over channels.

    ``1 - SSIM``, with the plain mean over a window of 11 x 11 as in the paper and the image
    mirrored beyond its border, or the squared difference (equations 1 and 4).
    """
    if compared == "ssim":
        return 1 - ssim(image, painted, "uniform").mean(1)
    return (image - painted.float()).square().mean(1)


def make_encoder(latent: int, inner: int) -> nn.Sequential:
    """Images (B, 3, 16 n, 16 n) to latent vectors (B, latent, 1, 1), where n is `inner`."""
    steps: list[nn.Module] = []
    taken = 3
    for given, kernel, stride, padding in _LAYERS:
        steps += [nn.Conv2d(taken, given, kernel, stride, padding), nn.LeakyReLU(0.2, inplace=True)]
        taken = given
    return nn.Sequential(*steps, nn.Conv2d(taken, latent, inner))


def make_decoder(latent: int, inner: int) -> nn.Sequential:
    """The mirror of :func:`make_encoder`; nothing bounds what comes out."""
    steps: list[nn.Module] = [nn.ConvTranspose2d(latent, _LAYERS[-1][0], inner)]
    given = [3, *(layer[0] for layer in _LAYERS[:-1])]
    for (taken, kernel, stride, padding), to in zip(_LAYERS[::-1], given[::-1], strict=True):
        steps += [nn.LeakyReLU(0.2, inplace=True)]
        steps += [nn.ConvTranspose2d(taken, to, kernel, stride, padding)]
    return nn.Sequential(*steps)
