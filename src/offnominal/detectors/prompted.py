"""What AnomalyCLIP and CoOp share: CLIP compared with prompts that were learned."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.backbones.clip_blocks import Activation
from offnominal.backbones.clip_text import ClipText
from offnominal.backbones.weights import digest
from offnominal.detectors.common import CommonOptions
from offnominal.detectors.language import LanguageDetector, LanguageOptions
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.features import abnormality
from offnominal.language.learned import AnomalyCLIPPrompts, LearnedPrompts
from offnominal.language.names import clean_name
from offnominal.language.promptfile import PromptFile, read_prompts

__all__ = ["PromptedDetector", "PromptedOptions", "Seen"]

_WITNESS = 1e-3  # share of the largest entry by which token embeddings may differ


class Seen(NamedTuple):
    """What the image tower makes of a batch.

    Attributes
    ----------
    whole : Tensor of shape (B, E), float32
        Unit vectors of the images.
    levels : list of Tensor of shape (B, N, E), float32
        Unit vectors of the patches, by rows; one tensor a level.
    grid : (gh, gw)
        N is their product.
    """

    whole: Tensor
    levels: list[Tensor]
    grid: tuple[int, int]


class PromptedOptions(CommonOptions, total=False):
    """Options of :class:`PromptedDetector`, for those who pass them on, less ``positions``."""

    prompts: str | Path | None
    class_name: str | None
    activation: Activation | None
    temperature: float
    aggregate: str


class PromptedDetector(LanguageDetector):
    """A detector whose texts are learned prompts.

    Parameters
    ----------
    prompts : path or None
        File of learned prompts; ``fit`` reads it. A saved detector holds the prompts' text features
        and needs the file no more.
    **options
        See :class:`~offnominal.detectors.language.LanguageDetector`. ``layers`` and ``resolution``
        None: what the prompts were trained with.
    """

    file_options: ClassVar[tuple[str, ...]] = ("prompts",)

    def __init__(
        self, prompts: str | Path | None = None, **options: Unpack[LanguageOptions]
    ) -> None:
        super().__init__(**options)
        self.prompts = str(prompts) if prompts is not None else None
        # What the file says that its prompts were trained under.
        self.reading_: dict[str, Any] = {}

    @abstractmethod
    def see(self, pixels: Tensor) -> Seen:
        """What the image tower makes of pixels (B, 3, h, w) on any device."""

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

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor."""
        return super().extra_state() | {"reading_": self.reading_}

    def reading(self) -> dict[str, Any]:
        """All that the comparison with the prompts depends on but the weights, as plain values."""
        net = self.clip
        return {
            "layers": list(self._blocks()),
            "resolution": self.resolution or self._default_resolution(net),
            "positions": self.positions,
            "activation": net.activation,
            "temperature": self.temperature,
        }

    def _blocks(self) -> Sequence[int]:
        """The levels that maps are made of, counted from 0."""
        if self.layers is not None:
            return self.clip.layers
        stored: Sequence[int] | None = self.reading_.get("layers")
        return stored or (self.clip.level_count - 1,)

    def _default_resolution(self, net: Backbone) -> int:
        stored: int | None = self.reading_.get("resolution")
        return stored or super()._default_resolution(net)

    def _describe(self) -> Tensor:
        if self.prompts is None:
            raise OptionError(
                f"--method {self.method}: needs a file of learned prompts; train one with "
                f"`offnominal train {self.method}`, and give it with --set prompts=FILE"
            )
        path = Path(self.prompts)
        prompts, about = read_prompts(path)
        if about.method != self.method:
            raise ModelFileError(
                f"{path}: prompts of {about.method}, which {self.method} cannot read; use "
                f"--method {about.method}"
            )
        self.reading_ = about.reading
        text = self.clip.load_text()
        self._check_backbone(path, prompts, about, text)
        self._check_reading(path, about)
        features = prompts.to(self._device)(text, [clean_name(self.class_name)])
        return F.normalize(features[0], dim=1)

    def _check_backbone(
        self, path: Path, prompts: LearnedPrompts, about: PromptFile, text: ClipText
    ) -> None:
        """Refuse prompts that were learned with another model."""
        net = self.clip
        if int(about.learner.get("width", text.width)) != text.width:
            raise ModelFileError(
                f"{path}: its prompts are {about.learner['width']} wide, and the text tower of "
                f"{net.name} takes {text.width}: use the CLIP model that they were trained with"
            )
        trained = about.backbone
        for kind, ours in (("digest", net.digest), ("text", digest(text) if trained else "")):
            if trained and trained.get(kind) != ours:
                raise ModelFileError(
                    f"{path}: its prompts were trained with {trained.get('name')} of other weights "
                    f"than {self.weights or net.name} (digest {str(trained.get(kind))[:12]}, not "
                    f"{ours[:12]}); give the same --backbone and --weights"
                )
        if about.witness is not None and isinstance(prompts, AnomalyCLIPPrompts):
            ids = text.tokenize(prompts.texts()).to(self._device)
            words = text.embed_ids(ids)[0, 1 + prompts.length :]
            theirs = about.witness.to(self._device)
            near = _WITNESS * float(theirs.abs().max())
            if words.shape != theirs.shape or float((words - theirs).abs().max()) > near:
                raise ModelFileError(
                    f"{path}: the token embeddings in it are not those of {net.name}: use the CLIP "
                    "model that it was trained with, OpenAI's ViT-L-14-336 for the released ones"
                )

    def _check_reading(self, path: Path, about: PromptFile) -> None:
        """Refuse settings that the prompts were not trained under."""
        ours = self.reading()
        for name in ("positions", "activation", "temperature"):
            if name in about.reading and about.reading[name] != ours[name]:
                raise OptionError(
                    f"{path}: its prompts were trained with {name} {about.reading[name]}, not "
                    f"{ours[name]}: give {name} {about.reading[name]}"
                )

    def _compare(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch scores summed over levels, and the images' own scores."""
        seen = self.see(pixels)
        states, temperature = self.text_features_, self.temperature
        levels = [abnormality(each, states, temperature) for each in seen.levels]
        grid = torch.stack(levels).sum(0).reshape(len(pixels), *seen.grid)
        return grid, abnormality(seen.whole, states, temperature)
