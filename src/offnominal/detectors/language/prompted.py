"""What AnomalyCLIP and CoOp share: CLIP compared with prompts that were learned."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.clip_blocks import Activation
from offnominal.backbones.clip_text import ClipText
from offnominal.detectors.common import CommonOptions
from offnominal.detectors.language.base import LanguageOptions
from offnominal.detectors.language.learned import LearnedDetector
from offnominal.errors import ModelFileError
from offnominal.language.features import abnormality
from offnominal.language.learned import AnomalyCLIPPrompts, LearnedPrompts
from offnominal.language.learnedfile import LearnedFile, read_learned
from offnominal.language.names import clean_name

__all__ = ["PromptedDetector", "PromptedOptions"]

_WITNESS = 1e-3  # share of the largest entry by which token embeddings may differ


class PromptedOptions(CommonOptions, total=False):
    """Options of :class:`PromptedDetector`, for those who pass them on, less ``positions``."""

    prompts: str | Path | None
    class_name: str | None
    activation: Activation | None
    temperature: float
    aggregate: str


class PromptedDetector(LearnedDetector):
    """A detector whose texts are learned prompts.

    Parameters
    ----------
    prompts : path or None
        File of learned prompts; ``fit`` reads it. A saved detector holds the prompts' text features
        and needs the file no more.
    **options
        See :class:`~offnominal.detectors.language.base.LanguageDetector`. ``layers`` and
        ``resolution`` None: what the prompts were trained with.
    """

    file_options: ClassVar[tuple[str, ...]] = ("prompts",)
    holds: ClassVar[str] = "prompts"
    kind: ClassVar[type[LearnedPrompts]]

    def __init__(
        self, prompts: str | Path | None = None, **options: Unpack[LanguageOptions]
    ) -> None:
        super().__init__(**options)
        self.prompts = str(prompts) if prompts is not None else None

    @abstractmethod
    def new_prompts(
        self, text: ClipText, generator: torch.Generator, **settings: Any
    ) -> LearnedPrompts:
        """Prompts to begin a training with, drawn at random.

        Parameters
        ----------
        text : ClipText
            The text tower that will read them.
        generator : torch.Generator
        **settings
            Of the learner; those not given are the paper's.
        """

    def _default_blocks(self, count: int) -> Sequence[int]:
        return (count - 1,)

    def _describe(self) -> Tensor:
        path = self._named_file()
        prompts, about = read_learned(path, self.kind)
        text = self.clip.load_text()
        width = prompts.settings()["width"]
        if width != text.width:
            raise ModelFileError(
                f"{path}: its prompts are {width} wide, and the text tower of {self.clip.name} "
                f"takes {text.width}: use the CLIP model that they were trained with"
            )
        self._take_over(path, about, text)
        self._check_witness(path, prompts, about, text)
        features = prompts.to(self._device)(text, [clean_name(self.class_name)])
        return F.normalize(features[0], dim=1)

    def _check_witness(
        self, path: Path, prompts: LearnedPrompts, about: LearnedFile, text: ClipText
    ) -> None:
        """Refuse a released checkpoint whose token embeddings are another model's."""
        if about.witness is None or not isinstance(prompts, AnomalyCLIPPrompts):
            return
        ids = text.tokenize(prompts.texts()).to(self._device)
        words = text.embed_ids(ids)[0, 1 + prompts.length :]
        theirs = about.witness.to(self._device)
        near = _WITNESS * float(theirs.abs().max())
        if words.shape != theirs.shape or float((words - theirs).abs().max()) > near:
            raise ModelFileError(
                f"{path}: the token embeddings in it are not those of {self.clip.name}: use the "
                "CLIP model that it was trained with, OpenAI's ViT-L-14-336 for the released ones"
            )

    def _compare(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch scores summed over levels, and the images' own scores."""
        seen = self.see(pixels)
        states, temperature = self.text_features_, self.temperature
        levels = [abnormality(each, states, temperature) for each in seen.levels]
        grid = torch.stack(levels).sum(0).reshape(len(pixels), *seen.grid)
        return grid, abnormality(seen.whole, states, temperature)
