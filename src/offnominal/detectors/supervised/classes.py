"""Classes: a network of timm's learns to tell good parts from bad ones, and what is wrong.

Wightman, "PyTorch Image Models", 2019. Where it looks is told by class activation maps: Zhou,
Khosla, Lapedriza, Oliva and Torralba, "Learning Deep Features for Discriminative Localization",
CVPR 2016 (arXiv 1512.04150).
"""

from typing import Any, ClassVar, Literal

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.checks import check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.supervised.finetuned import FineTuned
from offnominal.errors import OptionError
from offnominal.labels.labelled import UNKNOWN
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch
from offnominal.training.imbalance import bce

__all__ = ["Classes"]


class Classes(FineTuned):
    """A classifier of timm's: defective or not, and a probability for each class of defect.

    It needs no marks. An image may have several classes (each has a probability of its own, so that
    they need not add up to 1).

    Parameters
    ----------
    dropout : float
        Before the last layer, on [0, 1).
    **options
        See :class:`~offnominal.detectors.supervised.finetuned.FineTuned`.

    Notes
    -----
    The image score is minus the logarithm of the probability that the part is good. The map is what
    the last layer says of each position of the network's last level alone, which is 32 times as
    coarse as the image: it tells about where, and was never shown any place.
    """

    method: ClassVar[str] = "classes"
    learns_by: ClassVar[Literal["classes", "boxes", "pixels"]] = "classes"
    schedule: ClassVar[Schedule] = Schedule(batch=16, steps=300, paper_epochs=50)
    use_of_marks: ClassVar[Literal["ignored", "used", "needed"]] = "ignored"

    def __init__(self, dropout: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        check_range("dropout", dropout, least=0, below=1)
        self.dropout = dropout

    def build(self) -> None:
        """The classifier: one output for any defect, and one for each class."""
        told = {"num_classes": 1 + len(self.kinds_), "drop_rate": self.dropout, **self.arguments}
        net: Any = timm.create_model(self.timm_name, pretrained=False, **told)
        if not hasattr(net, "forward_head"):
            raise OptionError(f"--backbone {self.timm_name}: no classifier; choose resnet18")
        self.net = nn.Sequential(net)
        for name, each in net.named_parameters():
            if name.startswith(self.fresh()):  # some families begin so wild that steps are lost
                nn.init.zeros_(each)

    def encoder(self) -> nn.Module:
        """The network of timm's."""
        found: nn.Module = self.net[0]
        return found

    def fresh(self) -> tuple[str, ...]:
        """The last layer is new."""
        net: Any = self.net[0]
        named: Any = net.pretrained_cfg["classifier"]
        return (named,) if isinstance(named, str) else tuple(named)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropies of "defective", over all images, and of the classes of bad ones."""
        found = self.net(batch.pixels).float()
        assert batch.labels is not None
        assert batch.kinds is not None
        kinds = batch.kinds.masked_fill(batch.labels[:, None] == 0, UNKNOWN)
        parts = {
            "defective": bce(found[:, 0], batch.labels),
            "classes": bce(found[:, 1:], kinds),
        }
        return {"total": parts["defective"] + parts["classes"], **parts}

    def compare(self, pixels: Tensor) -> ViewScores:
        """Score of the image, of the positions of the last level, and the classes."""
        net: Any = self.net[0]
        features = net.forward_features(pixels)
        found = net.forward_head(features)[0].float()
        image = F.softplus(found[0])
        if features.ndim == 4 and features.shape[1] == net.num_features:
            _, channels, height, width = features.shape
            alone = features.permute(2, 3, 0, 1).reshape(-1, channels, 1, 1)
            patches = F.softplus(net.forward_head(alone)[:, 0].float()).view(height, width)
        else:  # of tokens, which one layer alone cannot judge: the image is one place
            patches = image.view(1, 1)
        return ViewScores(patches, image, kinds=found[1:].sigmoid())
