"""What AnomalyCLIP, CoOp and APRIL-GAN share: CLIP with a file of what was learned on other images.

Prompts or layers were trained with one CLIP model and one way of reading images; a detector takes
that way over from the file, and refuses another model.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.backbones.clip_text import ClipText
from offnominal.backbones.weights import digest
from offnominal.detectors.features import ViewScores
from offnominal.detectors.language.base import LanguageDetector
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.learned import AnomalyCLIPPrompts, LearnedModule, LearnedPrompts
from offnominal.language.learnedfile import LearnedFile, read_learned
from offnominal.language.names import clean_name
from offnominal.scoring import Size

__all__ = ["ClipFeatures", "LearnedDetector", "PromptedDetector"]

_WITNESS = 1e-3  # share of the largest entry by which token embeddings may differ


class ClipFeatures(NamedTuple):
    """What the image tower makes of a view.

    ``whole`` (E,) is the view's unit vector, float32; ``levels`` (N, D) those of the patches by
    rows, a tensor a level: unit vectors in the space that images and texts share, or the raw tokens
    that learned layers take. N is the product of the ``grid`` (gh, gw).
    """

    whole: Tensor
    levels: list[Tensor]
    grid: Size


class LearnedDetector(LanguageDetector):
    """A detector that needs a file of ``offnominal train``.

    Options as :class:`~offnominal.detectors.language.base.LanguageDetector` has them, but
    ``layers`` and ``resolution`` None are what the file says that its contents were trained with.
    """

    # What the file holds.
    kind: ClassVar[type[LearnedModule]]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # How the file says that images are to be read.
        self.reading_: dict[str, Any] = {}

    def embed(self, pixels: Tensor) -> ClipFeatures:
        """What the image tower makes of a view (3, h, w)."""
        net, first = self.clip, self.values_from()
        with self._autocast():
            found = net.tokens(pixels[None].to(self._device), self.blocks(), first)
        # Where there is a value path the released code leaves the class token's last norm out.
        whole = net.project(found.last[:, 0], norm=first is None)
        levels = found.blocks if first is None else found.values
        patches = [self.patches_of(each[0, 1:]) for each in levels]
        return ClipFeatures(F.normalize(whole, dim=-1)[0], patches, found.grid)

    def values_from(self) -> int | None:
        """The block from which on patches are those of value-value attention; None: of none."""
        return None

    @abstractmethod
    def patches_of(self, tokens: Tensor) -> Tensor:
        """Features (N, D), float32, of a level's patch tokens (N, width)."""

    def reading(self) -> dict[str, Any]:
        """All that the comparison with the texts depends on but the weights, as plain values."""
        net = self.clip
        return {
            "layers": list(self.blocks()),
            "resolution": self.resolution or self.default_resolution(net),
            "positions": self.positions,
            "activation": net.activation,
            "temperature": self.temperature,
        }

    def blocks(self) -> Sequence[int]:
        """The levels that maps are made of, counted from 0."""
        if self.layers is not None:
            return self.clip.layers
        stored: Sequence[int] | None = self.reading_.get("layers")
        return stored or self.default_blocks(self.clip.level_count)

    def default_blocks(self, count: int) -> Sequence[int]:
        """The levels where neither an option nor the file names some: the last of `count`."""
        return (count - 1,)

    def default_resolution(self, network: Backbone) -> int:
        """What the file says, otherwise the papers'."""
        stored: int | None = self.reading_.get("resolution")
        return stored or super().default_resolution(network)

    def read_file(self) -> tuple[Path, Any, LearnedFile]:
        """The file that the options name, opened: its path, what was learned, and about it."""
        given: str | None = getattr(self, self.kind.option)
        if given is None:
            raise OptionError(
                f"--method {self.method}: needs a file of learned {self.kind.holds}; train one "
                f"with `offnominal train {self.method}`, and give it with --set "
                f"{self.kind.option}=FILE"
            )
        return Path(given), *read_learned(Path(given), self.kind)

    def take_over(self, path: Path, about: LearnedFile, text: ClipText) -> None:
        """Read images as the file says, and refuse another model or other settings than it has."""
        self.reading_ = about.reading
        net, trained, holds = self.clip, about.backbone, self.kind.holds
        for kind, ours in (("digest", net.digest), ("text", digest(text) if trained else "")):
            if trained and trained.get(kind) != ours:
                raise ModelFileError(
                    f"{path}: its {holds} were trained with {trained.get('name')} of other "
                    f"weights than {self.weights or net.name} (digest "
                    f"{str(trained.get(kind))[:12]}, not {ours[:12]}); give the same --backbone "
                    "and --weights"
                )
        reading = self.reading()
        for name in ("positions", "activation", "temperature"):
            if name in about.reading and about.reading[name] != reading[name]:
                raise OptionError(
                    f"{path}: its {holds} were trained with {name} {about.reading[name]}, not "
                    f"{reading[name]}: give {name} {about.reading[name]}"
                )


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
    kind: ClassVar[type[LearnedPrompts]]

    def __init__(self, prompts: str | Path | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.prompts = str(prompts) if prompts is not None else None

    def patches_of(self, tokens: Tensor) -> Tensor:
        """Patches where CLIP's texts are, of length 1."""
        return F.normalize(self.clip.project(tokens), dim=-1)

    def describe(self) -> Tensor:
        """Features of the learned prompts, after they were read and checked."""
        path, prompts, about = self.read_file()
        text = self.clip.load_text()
        if prompts.width != text.width:
            raise ModelFileError(
                f"{path}: its prompts are {prompts.width} wide, and the text tower of "
                f"{self.clip.name} takes {text.width}: use the CLIP model that they were trained "
                "with"
            )
        self.take_over(path, about, text)
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

    def compare(self, features: ClipFeatures, without: int | None = None) -> ViewScores:
        """What the prompts say of the patches, summed over levels, and of the image."""
        patches = torch.stack([self.abnormality(each) for each in features.levels]).sum(0)
        own = self.abnormality(features.whole[None])[0]
        return ViewScores(patches.reshape(features.grid), own)
