"""What can be trained: prompts, which a frozen text tower reads, or layers behind the image tower.

A learner is all that the loop need not know of a method: what is learned, and the loss of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.weights import digest
from offnominal.detectors.april_gan import AprilGAN
from offnominal.detectors.learned import LearnedDetector
from offnominal.detectors.prompted import PromptedDetector
from offnominal.errors import OptionError
from offnominal.language.learnedfile import Learned
from offnominal.training.losses import Parts, glocal_loss, level_loss
from offnominal.training.recipe import Recipe
from offnominal.training.tower import Batch

__all__ = ["TRAINABLE", "LayerLearner", "Learner", "PromptLearner", "Trainable"]

_MAPS = ("focal", "dice_abnormal", "dice_normal")


class Learner(ABC):
    """What is trained for a detector.

    Parameters
    ----------
    detector : LearnedDetector
    recipe : Recipe
    names : iterable of str
        What the parts on the images are called, each once.
    settings : mapping
        Plain values, as the command line has them.
    generator : torch.Generator
        Draws the first values.

    Attributes
    ----------
    learned : LearnedPrompts or Projections
        Its parameters are what changes.
    digest : str
        Of the text tower's weights.
    parts : tuple of str
        Fields of `Parts` that the loss is made of.
    formula : str
        How, in words.
    """

    # What to do where a data set has no masks.
    else_masks: ClassVar[str] = "add masks"

    learned: Learned
    digest: str
    parts: tuple[str, ...]
    formula: str

    @abstractmethod
    def __init__(
        self,
        detector: LearnedDetector,
        recipe: Recipe,
        names: Iterable[str],
        settings: dict[str, Any],
        generator: torch.Generator,
    ) -> None: ...

    @abstractmethod
    def loss(self, batch: Batch) -> Parts:
        """The loss of a batch, with gradients to what is learned."""


class PromptLearner(Learner):
    """AnomalyCLIP's or CoOp's prompts. Settings: those of the prompts, and ``start_from``."""

    else_masks: ClassVar[str] = "add masks, or leave the maps out with --local-weight 0"

    def __init__(
        self,
        detector: LearnedDetector,
        recipe: Recipe,
        names: Iterable[str],
        settings: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        assert isinstance(detector, PromptedDetector)
        own = {name: value for name, value in settings.items() if name != "start_from"}
        self.text = detector.clip.load_text()
        self.digest = digest(self.text)
        self.learned = self.prompts = detector.new_prompts(self.text, generator, **own)
        if settings.get("start_from") is not None:
            self.prompts.start_from(self.text, settings["start_from"])
        self.prompts.to(self.text.positional_embedding.device)
        self.temperature, self.weight = detector.temperature, recipe.local_weight
        self.parts = ("image", *_MAPS) if self.weight else ("image",)
        self.formula = (
            f"The loss is the images’ part and {self.weight:g} times the sum of the maps’ parts."
            if self.weight
            else ""
        )

    def loss(self, batch: Batch) -> Parts:
        """Cross-entropy of the images, focal and Dice losses of their maps."""
        names = list(dict.fromkeys(batch.names))
        features = F.normalize(self.prompts(self.text, names), dim=-1)
        texts = features[[names.index(name) for name in batch.names]]
        return glocal_loss(
            batch.whole,
            batch.levels,
            texts,
            batch.labels,
            batch.truth,
            batch.grid,
            self.temperature,
            self.weight,
        )


class LayerLearner(Learner):
    """APRIL-GAN's layers. The texts stay as they are, so they are encoded once. No settings."""

    def __init__(
        self,
        detector: LearnedDetector,
        recipe: Recipe,
        names: Iterable[str],
        settings: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        assert isinstance(detector, AprilGAN)
        if settings:
            raise OptionError(f"{', '.join(settings)}: the layers of {detector.method} have none")
        if not recipe.local_weight:
            raise OptionError(
                "--local-weight 0: layers are learned from maps alone; give more than 0"
            )
        text = detector.clip.load_text()
        self.digest = digest(text)
        self.texts: dict[str, Tensor] = {name: detector.describe(text, name) for name in names}
        self.learned = self.layers = detector.new_layers(generator)
        self.temperature, self.weight = detector.temperature, recipe.local_weight
        self.parts = _MAPS[:2]
        times = "" if self.weight == 1 else f"{self.weight:g} times "
        self.formula = f"The loss is {times}the sum of both parts."

    def loss(self, batch: Batch) -> Parts:
        """Focal and Dice losses of the maps."""
        assert batch.truth is not None
        texts = torch.stack([self.texts[name] for name in batch.names])
        levels = self.layers(batch.levels)
        return level_loss(levels, texts, batch.truth, batch.grid, self.temperature, self.weight)


@dataclass(frozen=True)
class Trainable:
    """A method that ``offnominal train`` knows.

    Attributes
    ----------
    title : str
        As its authors call it.
    learner : type of Learner
    recipe : Recipe
        The paper's.
    """

    title: str
    learner: type[Learner]
    recipe: Recipe


TRAINABLE = {
    # Zhou et al., 2024, section 4.1, and the released code's script.
    "anomalyclip": Trainable("AnomalyCLIP", PromptLearner, Recipe()),
    # Zhou et al., 2022, section 4.1; the whole image's loss alone, as there.
    "coop": Trainable(
        "CoOp",
        PromptLearner,
        Recipe(epochs=50, batch=32, lr=2e-3, seed=1, local_weight=0.0, optimiser="sgd"),
    ),
    # The released code's script for VisA. On MVTec AD it has 3 epochs, and mosaics at 0.2, whose
    # features no cache can keep.
    "april-gan": Trainable("APRIL-GAN", LayerLearner, Recipe(local_weight=1.0)),
}
