"""DRA: seen, synthetic and residual anomalies, each with a head of its own, beside what is normal.

Ding, Pang and Shen, "Catching Both Gray and Black Swans: Open-set Supervised Anomaly Detection",
CVPR 2022 (arXiv 2203.14506).
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from offnominal.checks import check_range
from offnominal.detectors.supervised.devnet import DevNet
from offnominal.detectors.supervised.grids import top_mean
from offnominal.synthesis.cut_paste import cut_paste
from offnominal.training.budget import Schedule
from offnominal.training.images import Batch, Images

__all__ = ["DRA"]

_PASTED = (0.02, 0.15)  # of an image's area
_HIDDEN = 256


class DRA(DevNet):
    """Four heads on one trained network, each for another way to be anomalous.

    One learns labelled defects (seen), one pieces that are pasted elsewhere in good images
    (pseudo), one learns both by how features differ from the mean of some good images at the same
    place (residual), and one what is normal (holistic). The image's score is the sum of the first
    three less the last. A defect of a type that nobody labelled has three heads left that may see
    it.

    It learns from images that are labelled as defective: their masks, boxes and classes are not
    used.

    Parameters
    ----------
    known : int
        Good images that the residual head compares with; 5 in the paper.
    **options
        See :class:`~offnominal.detectors.supervised.devnet.DevNet`, whose network it has;
        ``criterion`` is the loss of each head.

    Notes
    -----
    Half of the good images of a step are turned into pseudo anomalies, by CutPaste as the released
    code does. Of the good images that it compares with, it takes others in each step while it
    learns, and from then on always the same, which are not augmented; the released code draws them
    anew for each batch of a test.

    Examples
    --------
    >>> from offnominal import DRA
    >>> detector = DRA(budget="20m").fit("good/", defects="bad/")
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "dra"
    schedule: ClassVar[Schedule] = Schedule(batch=16, steps=200, paper_steps=600, clip=1.0)
    use_of_marks: ClassVar[Literal["ignored", "used", "needed"]] = "ignored"

    def __init__(self, known: int = 5, **options: Any) -> None:
        super().__init__(**options)
        check_range("known", known, least=1, most=1000, whole=True)
        self.known = known

    def build(self) -> None:
        """The network and its heads."""
        super().build()
        channels = self.scorer.in_channels
        self.pseudo, self.residual_score = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.holistic = nn.Sequential(
            nn.Linear(channels, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1)
        )
        self.normal_ = torch.empty(0)
        self._good: Images | None = None

    def prepare(self, images: Images) -> None:
        """Take over pretrained weights, and know where good images are."""
        super().prepare(images)
        self._good = images

    def release(self) -> None:
        """Let go of the images."""
        super().release()
        self._good = None

    def rate(self, done: float) -> float:
        """A tenth after each third of the schedule."""
        return float(0.1 ** int(3 * done + 1e-9))

    def heads(self, features: list[Tensor], normal: list[Tensor]) -> list[Tensor]:
        """What the heads say of positions (B, 4, h, w) at each scale.

        Seen, pseudo and residual, against the mean features (C, h, w) of good images; the holistic
        one, which looks at all positions at once, says the same of each.
        """
        found = []
        for each, mean in zip(features, normal, strict=True):
            maps = [self.scorer(each), self.pseudo(each)]
            maps.append(self.residual_score(self.residual(mean - each)))
            whole = self.holistic(each.mean((2, 3)))[..., None, None].expand_as(maps[0])
            found.append(self.signless(torch.cat([*maps, whole], 1)))
        return found

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """What the heads say of positions (B, 4, h, w) at each scale."""
        features = self.features(pixels)
        sizes = [each[0, 0].numel() for each in features]
        normal = torch.split(self.normal_, sizes, dim=1)
        shaped = [mean.view(each.shape[1:]) for mean, each in zip(normal, features, strict=True)]
        return self.heads(features, shaped)

    def scores(self, maps: list[Tensor]) -> Tensor:
        """Scores (B,) of images by those of their positions."""
        found = self.head_scores(maps)
        return found[:, :3].sum(1) - found[:, 3]

    def head_scores(self, maps: list[Tensor]) -> Tensor:
        """Scores (B, 4) of images by each head, mean over the scales."""
        scales = [torch.stack([top_mean(m, self.top) for m in each.unbind(1)], 1) for each in maps]
        return torch.stack(scales).mean(0)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The sum of the heads' losses, each on what it is to tell apart (section 3)."""
        assert batch.labels is not None
        assert self._good is not None
        images, labels = batch.images.clone(), batch.labels.clone()
        good = torch.nonzero(labels == 0)[:, 0].tolist()
        for place in batch.rng.permutation(good)[: len(good) // 2].tolist():
            images[place] = _pasted(images[place], batch.rng)
            labels[place] = 2
        chosen = batch.rng.choice(len(self._good), min(self.known, len(self._good)), replace=False)
        pixels = torch.cat([self._good.pixels(chosen.tolist()), self._good.normalised(images)])
        both = self.features(pixels)
        means = [each[: len(chosen)].mean(0) for each in both]
        scores = self.head_scores(self.heads([each[len(chosen) :] for each in both], means))
        bad = (labels > 0).long()
        parts = {
            "seen": self.apart(scores[labels != 2, 0], bad[labels != 2]),
            "pseudo": self.apart(scores[labels != 1, 1], bad[labels != 1]),
            "residual": self.apart(scores[:, 2], bad),
            "holistic": self.apart(scores[:, 3], 1 - bad),
        }
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    def settle(self, images: Images) -> None:
        """Mean features of some good images, at each scale."""
        rng = np.random.default_rng(self.seed)
        chosen = rng.choice(len(images), min(self.known, len(images)), replace=False)
        features = self.features(images.pixels(chosen.tolist()))
        self.normal_ = torch.cat([each.mean(0).flatten(1) for each in features], 1)

    def shown(self, values: Tensor) -> Tensor:
        """The sum of what the three heads with positions say."""
        return values[:, :3].sum(1)


def _pasted(image: Tensor, rng: np.random.Generator) -> Tensor:
    """An image (3, h, w), uint8, with a piece of it pasted elsewhere."""
    given = image.permute(1, 2, 0).numpy()
    return torch.from_numpy(cut_paste(given, "patch", rng.uniform(*_PASTED), rng)[0]).movedim(-1, 0)
