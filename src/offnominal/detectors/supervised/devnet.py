"""DevNet: a few labelled defects, whose scores are to deviate from those of good images.

Pang, Ding, Shen and van den Hengel, "Explainable Deep Few-shot Anomaly Detection with Deviation
Networks", 2021 (arXiv 2108.00462).
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from offnominal.backbones import backbone_name
from offnominal.backbones.timm import TimmBackbone
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.supervised.base import Supervised
from offnominal.detectors.supervised.encoder import convolutional, last_features
from offnominal.detectors.supervised.grids import gradient_map, top_mean
from offnominal.errors import OptionError
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images
from offnominal.training.imbalance import Imbalance, deviation, imbalance_loss
from offnominal.training.norms import adapt_norms

__all__ = ["DevNet"]

Start = Literal["pretrained", "scratch"]
Localise = Literal["scores", "gradient"]


class DevNet(Supervised):
    """A network that scores patches, trained so that defective images deviate from good ones.

    A convolution of one position on the last features of a network, which is trained along, scores
    each position. An image's score is the mean of the largest tenth of their absolute values
    (equation 2), and of that the mean over two scales. The loss measures it in standard deviations
    from scores drawn from a standard normal: good images are to be at 0, defective ones at least
    ``margin`` away (equations 4 and 5). Masks, boxes and classes of defects are not used.

    Parameters
    ----------
    margin : float
        Standard deviations that defective images are to be away; 5 in the paper.
    top : float
        Share of the positions that an image's score is the mean of, on (0, 1]; 0.1 in the paper.
    scales : int
        Sizes of an image, each half the one before, 1 to 4; 2 in the paper.
    localise : {"scores", "gradient"}
        Of what the map is made: the positions' absolute scores, or, as in the paper, the gradient
        of the score by the pixels, scaled for each image, so that no threshold holds for it.
    criterion : {"deviation", "focal", "bce", "dice", "auc-margin"}
        The loss, see :mod:`offnominal.training.imbalance`; ``deviation`` in the paper, which alone
        has a ``margin``. With others scores keep their signs.
    backbone : str
        A convolutional network of timm's; ResNet-18.
    weights : path or None
        Local weights to start from.
    start : {"pretrained", "scratch"}
        ``pretrained``: from ``weights``, or from those that come with a package or the hub. Either
        way the network is trained, and saved with the model.
    smoothing : float
        Standard deviation of the map's Gaussian, in pixels of the image; 4, as in the paper.
    **options
        See :class:`~offnominal.detectors.supervised.base.Supervised`. ``augment`` is ``rotations``
        by any angle.

    Examples
    --------
    >>> from offnominal import DevNet
    >>> detector = DevNet(budget="20m").fit("good/", defects="bad/")
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "devnet"
    default_backbone: ClassVar[str] = "resnet18"
    backbone_family: ClassVar[str | None] = None
    schedule: ClassVar[Schedule] = Schedule(batch=16, steps=240, paper_steps=1000, clip=1.0)
    use_of_marks: ClassVar[Literal["ignored", "used", "needed"]] = "ignored"
    default_side: ClassVar[int] = 448
    side_multiple: ClassVar[int] = 32
    learns_from: ClassVar[tuple[str, ...]] = ("weights",)
    default_augment: ClassVar[str] = "rotations"

    def __init__(
        self,
        margin: float = 5.0,
        top: float = 0.1,
        scales: int = 2,
        localise: Localise = "scores",
        criterion: Imbalance = "deviation",
        backbone: str | None = None,
        weights: str | None = None,
        start: Start = "pretrained",
        smoothing: float = 4.0,
        **options: Any,
    ) -> None:
        super().__init__(smoothing=smoothing, **options)
        check_range("margin", margin, above=0)
        check_choice("criterion", criterion, Imbalance)
        if margin != 5 and criterion != "deviation":
            raise OptionError(f"--margin {margin} --criterion {criterion}: has none; leave it out")
        check_range("top", top, above=0, most=1)
        check_range("scales", scales, least=1, most=4, whole=True)
        check_choice("localise", localise, Localise)
        check_choice("start", start, Start)
        if start == "scratch" and weights is not None:
            raise OptionError(f"--start scratch --weights {weights}: give one of the two")
        self.margin, self.top, self.scales = margin, top, scales
        self.localise: Localise = localise
        self.criterion: Imbalance = criterion
        self.weights = str(weights) if weights is not None else None
        self.backbone = backbone_name(backbone, weights, self.default_backbone)
        self.start: Start = start

    def build(self) -> None:
        """The network, up to its last features, and what scores them."""
        self.encoder, channels = convolutional(self.backbone, self.method)
        self.scorer = nn.Conv2d(channels, 1, 1)
        # From ImageNet's normalisation to that of the weights.
        self.factor_, self.shift_ = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)

    def prepare(self, images: Images) -> None:
        """Take over pretrained weights, where those are asked for."""
        if self.start == "scratch":
            return
        given = TimmBackbone(self.backbone, self.weights)
        known = given.model.state_dict()
        self.encoder.load_state_dict({name: known[name] for name in self.encoder.state_dict()})
        mean, std, own_mean, own_std = (
            torch.tensor(three, device=images.device)[:, None, None]
            for three in (images.mean, images.std, given.mean, given.std)
        )
        self.factor_, self.shift_ = std / own_std, (mean - own_mean) / own_std
        # So that the first step begins with what the network saw before.
        seen = (pixels * self.factor_ + self.shift_ for pixels in images.batches())
        adapt_norms(self.encoder, seen)

    def optimisers(self) -> list[Optimizer]:
        """Adam for all of it."""
        return [Adam(self.parameters(), lr=2e-4, weight_decay=1e-5)]

    def rate(self, done: float) -> float:
        """A tenth after each fifth of the schedule."""
        return float(0.1 ** int(5 * done + 1e-9))

    def features(self, pixels: Tensor) -> list[Tensor]:
        """The network's last features at each scale: (B, 3, h, w) to (B, C, h / 32, w / 32), ..."""
        seen, found = pixels * self.factor_ + self.shift_, []
        for halved in range(self.scales):
            size = [max(1, side >> halved) for side in pixels.shape[-2:]]
            smaller = F.interpolate(seen, size=size) if halved else seen
            found.append(last_features(self.encoder, smaller))
        return found

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Scores of the positions at each scale: (B, 3, h, w) to (B, h / 32, w / 32), ..."""
        return [self.scorer(each)[:, 0] for each in self.features(pixels)]

    def scores(self, maps: list[Tensor]) -> Tensor:
        """Scores (B,) of images by those of their positions."""
        return torch.stack([top_mean(self.signless(each), self.top) for each in maps]).mean(0)

    def shown(self, values: Tensor) -> Tensor:
        """What the map (B, h, w) is made of, of :meth:`maps` at one scale."""
        return self.signless(values)

    def signless(self, values: Tensor) -> Tensor:
        """Absolute values, as the deviation loss has them; for another loss the same."""
        return values.abs() if self.criterion == "deviation" else values

    def apart(self, scores: Tensor, truth: Tensor) -> Tensor:
        """The loss of scores (B,), with reference scores drawn anew."""
        if self.criterion == "deviation":
            return deviation(scores, truth, margin=self.margin)
        return imbalance_loss(self.criterion)(scores, truth, None)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """How far scores are from what they are to be."""
        assert batch.labels is not None
        return {"total": self.apart(self.scores(self.maps(batch.pixels)), batch.labels)}

    def exportable(self) -> str | None:
        """Why not."""
        if self.localise == "scores":
            return None
        return "a graph has no gradients to make a map of; fit anew with --localise scores"

    def compare(self, pixels: Tensor) -> ViewScores:
        """The image's score, and the map."""
        maps = self.maps(pixels)
        image = self.scores(maps)[0]
        if self.localise == "gradient":
            slopes = gradient_map(lambda seen: self.scores(self.maps(seen)), pixels)
            return ViewScores(slopes, image)
        size = maps[0].shape[-2:]
        fine = [F.interpolate(self.shown(e)[None], size, mode="bilinear")[0, 0] for e in maps]
        return ViewScores(torch.stack(fine).mean(0), image)
