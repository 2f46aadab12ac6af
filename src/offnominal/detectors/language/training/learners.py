"""What can be trained: prompts, which a frozen text tower reads, or layers behind the image tower.

A learner is all that the loop need not know of a method: what is learned, and the loss of a batch.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.backbones.weights import digest
from offnominal.detectors.language.april_gan import AprilGAN
from offnominal.detectors.language.learned import LearnedDetector, PromptedDetector
from offnominal.detectors.language.training.losses import (
    MAPS,
    Batch,
    glocal_loss,
    level_loss,
)
from offnominal.errors import OptionError
from offnominal.language.names import clean_name
from offnominal.language.prompts import APRIL_GAN
from offnominal.training.recipe import Recipe

__all__ = ["TRAINABLE", "LanguageRecipe", "LayerLearner", "PromptLearner", "Trainable"]


@dataclass(frozen=True)
class LanguageRecipe(Recipe):
    """Settings of a training of prompts or layers.

    Attributes
    ----------
    local_weight : float
        Weight of the maps' loss beside the images', where there is one; 0 leaves masks out.
    mosaic : float
        Share of images that are replaced by four others of their category in a 2 x 2 mosaic, on
        [0, 1]; APRIL-GAN's for MVTec AD is 0.2.
    """

    local_weight: float = 4.0
    mosaic: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.local_weight >= 0 or not math.isfinite(self.local_weight):
            raise OptionError(f"--local-weight {self.local_weight}: give 0 or more")
        if not 0 <= self.mosaic <= 1:
            raise OptionError(f"--mosaic {self.mosaic}: give a share from 0 to 1, as 0.2")


class PromptLearner(nn.Module):
    """AnomalyCLIP's or CoOp's prompts. Settings: those of the prompts, and ``start_from``.

    Parameters
    ----------
    detector : LearnedDetector
    recipe : LanguageRecipe
    names : iterable of str
        What the parts on the images are called, each once.
    settings : dict
        Plain values, as the command line has them.
    generator : torch.Generator
        Draws the first values.

    Attributes
    ----------
    learned : LearnedPrompts
        Its parameters are what changes.
    digest : str
        Of the text tower's weights.
    parts, formula : tuple of str, str
        What the loss is made of, and how, in words; empty where it is the one part itself.
    """

    # What to do where a data set has no masks.
    else_masks: ClassVar[str] = "add masks, or leave the maps out with --local-weight 0"

    def __init__(
        self,
        detector: LearnedDetector,
        recipe: LanguageRecipe,
        names: Iterable[str],
        settings: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        assert isinstance(detector, PromptedDetector)
        own = dict(settings)
        words = own.pop("start_from", None)
        self.text = detector.clip.load_text()
        self.digest = digest(self.text)
        self.learned = detector.kind(self.text.width, generator=generator, **own)
        depth, blocks = getattr(self.learned, "depth", 1), len(self.text.transformer.resblocks)
        if depth > blocks:
            raise OptionError(
                f"--depth {depth}: the text tower of {detector.clip.name} has {blocks} blocks; "
                "give that many or fewer"
            )
        if words is not None:
            self.learned.start_from(self.text, words)
        self.learned.to(self.text.positional_embedding.device)
        self.temperature, self.weight = detector.temperature, recipe.local_weight
        self.parts: tuple[str, ...] = ("image",)
        self.formula = ""
        if self.weight:
            self.parts += MAPS
            times = f"{self.weight:g} times the sum of the maps’ parts"
            self.formula = f"The loss is the images’ part and {times}."

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the images, focal and Dice losses of their maps."""
        names = list(dict.fromkeys(batch.names))
        features = F.normalize(self.learned(self.text, names), dim=-1)
        texts = features[[names.index(name) for name in batch.names]]
        return glocal_loss(batch, texts, self.temperature, self.weight)


class LayerLearner(nn.Module):
    """APRIL-GAN's layers. The texts stay as they are, so they are encoded once. No settings.

    Parameters and attributes are those of :class:`PromptLearner`; ``learned`` are ``Projections``.
    """

    else_masks: ClassVar[str] = "add masks"

    def __init__(
        self,
        detector: LearnedDetector,
        recipe: LanguageRecipe,
        names: Iterable[str],
        settings: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        assert isinstance(detector, AprilGAN)
        if settings:
            raise OptionError(f"{', '.join(settings)}: the layers of {detector.method} have none")
        if not recipe.local_weight:
            raise OptionError(
                "--local-weight 0: layers are learned from maps alone; give more than 0"
            )
        text = detector.clip.load_text()
        self.digest = digest(text)
        self.texts = {name: APRIL_GAN.features(text, clean_name(name)) for name in names}
        self.learned = detector.new_layers(generator)
        self.temperature, self.weight = detector.temperature, recipe.local_weight
        self.parts = MAPS[:2]
        times = "" if self.weight == 1 else f"{self.weight:g} times "
        self.formula = f"The loss is {times}the sum of both parts."

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Focal and Dice losses of the maps."""
        texts = torch.stack([self.texts[name] for name in batch.names])
        brought = batch._replace(levels=self.learned(batch.levels))
        return level_loss(brought, texts, self.temperature, self.weight)


@dataclass(frozen=True)
class Trainable:
    """A method that ``offnominal train`` knows: its title, what learns, and the paper's recipe."""

    title: str
    learner: type[PromptLearner] | type[LayerLearner]
    recipe: LanguageRecipe


TRAINABLE = {
    # Zhou et al., 2024, section 4.1, and the released code's script.
    "anomalyclip": Trainable("AnomalyCLIP", PromptLearner, LanguageRecipe()),
    # Zhou et al., 2022, section 4.1; the whole image's loss alone, as there.
    "coop": Trainable(
        "CoOp",
        PromptLearner,
        LanguageRecipe(epochs=50, batch=32, lr=2e-3, seed=1, optimiser="sgd", local_weight=0.0),
    ),
    # The released code's script for VisA. On MVTec AD it has 3 epochs, and mosaics at 0.2, whose
    # features no cache can keep.
    "april-gan": Trainable("APRIL-GAN", LayerLearner, LanguageRecipe(local_weight=1.0)),
}
