"""CFM: two small networks map colour to geometry and back; what they cannot foresee is anomalous.

Costanzino, Zama Ramirez, Lisanti and Di Stefano, "Multimodal Industrial Anomaly Detection by
Crossmodal Feature Mapping", CVPR 2024 (arXiv 2312.04521), and the authors' code.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.detectors.features import ViewScores
from offnominal.detectors.trained_features import TrainedFeatureDetector
from offnominal.errors import BackboneError
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images

__all__ = ["CFM", "product_map"]

_BOXES = (5, 5, 5, 5, 5, 7, 7, 7)  # sides of the means that stand for a Gaussian of 4.7 pixels


class CFM(TrainedFeatureDetector):
    """Crossmodal feature mapping, for scans with colour.

    From the colour features at a place one network foresees the geometry features, and another the
    other way round. Both know good parts only. A place is anomalous where both are wrong: the score
    is the product of the two distances.

    Parameters
    ----------
    backbone : str or None
        Two networks with a ``+`` between, the second one of points.
    **options
        See :class:`~offnominal.detectors.trained_features.TrainedFeatureDetector`.

    Notes
    -----
    The paper's geometry features are those of Point-MAE, a transformer that was trained on clouds,
    and its colour features DINO's ViT-B/8, both at 224 x 224 positions. Here they are what the
    backbone gives, FPFH and any network's, on its grid of 28 x 28; the product is brought to the
    side of the image before it is smoothed. Each column of both is brought to mean 0 and deviation
    1 over the good parts: all numbers of FPFH are above 0, and so are a convolutional network's, so
    that their directions, which is all that is compared, would hardly differ. Places without any
    measured point are no part of the loss, and score 0.

    The paper trains for 250 rounds, the released code for 50, with 4 images a step. The image score
    is the released code's: the map's maximum, divided by the root of its mean over measured places.
    """

    method: ClassVar[str] = "cfm"
    default_backbone: ClassVar[str] = "wide_resnet50_2+fpfh"
    takes_defects: ClassVar[bool] = False
    default_side: ClassVar[int] = 224
    schedule: ClassVar[Schedule] = Schedule(batch=4, steps=200, paper_epochs=250)

    def build(self) -> None:
        """A network for each way."""
        network = self.load_network()
        if len(network.parts) != 2 or not network.takes_points:
            raise BackboneError(
                f"--backbone {network.name}: {self.method} takes one network of colour and one of "
                "points, as wide_resnet50_2+fpfh"
            )
        colour, geometry = network.parts
        self.to_geometry, self.to_colour = mapping(colour, geometry), mapping(geometry, colour)
        self.mean_, self.deviation_ = torch.zeros(network.dim), torch.ones(network.dim)

    def optimisers(self) -> list[Optimizer]:
        """Adam, of both at once."""
        return [Adam([*self.to_geometry.parameters(), *self.to_colour.parameters()], lr=1e-3)]

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Features (B, D, gh, gw) of colour and geometry, and where points were measured."""
        features = self.features(pixels)
        measured = pixels[:, 5:6].isfinite().float()
        return features, F.adaptive_max_pool2d(measured, features.shape[-2:])

    def prepare(self, images: Images) -> None:
        """Mean and deviation of each column."""
        mean, variance = self.moments(images)
        self.mean_, self.deviation_ = mean.float(), variance.clamp(min=1e-12).sqrt().float()

    def distances(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances (B, gh, gw) of unit vectors, on [0, 4]: of geometry, and of colour."""
        rows = (features.movedim(1, -1) - self.mean_) / self.deviation_
        length, _ = self.load_network().parts
        colour, geometry = rows[..., :length], rows[..., length:]
        return (
            2 - 2 * F.cosine_similarity(self.to_geometry(colour), geometry, dim=-1),
            2 - 2 * F.cosine_similarity(self.to_colour(geometry), colour, dim=-1),
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """1 - cosine, of both, where something was measured."""
        features, measured = self.frozen_of(batch)
        there = measured[:, 0] > 0
        geometry, colour = (each[there].mean() / 2 for each in self.distances(features))
        return {"total": geometry + colour, "geometry": geometry, "colour": colour}

    def compare(self, pixels: Tensor) -> ViewScores:
        """The smoothed product, and the image score."""
        features, measured = self.frozen(pixels)
        heat = product_map(*self.distances(features), measured[:, 0], self.side)
        typical = heat[heat > 0].mean() if (heat > 0).any() else heat.new_ones(())
        return ViewScores(heat[0], heat.max() / typical.sqrt())


def mapping(taken: int, given: int) -> nn.Sequential:
    """A perceptron of three layers, as wide as the mean of both ends."""
    width = (taken + given) // 2
    return nn.Sequential(
        nn.Linear(taken, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
        nn.Linear(width, given),
    )  # fmt: skip


def product_map(geometry: Tensor, colour: Tensor, measured: Tensor, side: int) -> Tensor:
    """The product of both distances, on images of a side and smoothed.

    Parameters
    ----------
    geometry, colour : Tensor of shape (B, gh, gw)
        Squared distances.
    measured : Tensor of shape (B, gh, gw)
        1 where there are points, and 0 elsewhere, where the score is 0.
    side : int

    Returns
    -------
    Tensor of shape (B, side, side)
    """
    product = geometry.clamp(min=0).sqrt() * colour.clamp(min=0).sqrt() * measured
    heat = F.interpolate(product[:, None], (side, side), mode="bilinear", align_corners=False)
    for box in _BOXES:
        heat = F.avg_pool2d(heat, box, 1, box // 2)
    return heat[:, 0]
