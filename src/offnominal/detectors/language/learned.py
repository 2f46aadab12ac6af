"""What AnomalyCLIP, CoOp and APRIL-GAN share: CLIP with a file of what was learned on other images.

Prompts or layers were trained with one CLIP model and one way of reading images; a detector takes
that way over from the file, and refuses another model.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Unpack

from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.backbones.clip_text import ClipText
from offnominal.backbones.weights import digest
from offnominal.detectors.base import Size
from offnominal.detectors.language.base import LanguageDetector, LanguageOptions
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.learnedfile import LearnedFile

__all__ = ["LearnedDetector", "Seen"]


class Seen(NamedTuple):
    """What the image tower makes of a batch.

    Attributes
    ----------
    whole : Tensor of shape (B, E), float32
        Unit vectors of the images.
    levels : list of Tensor of shape (B, N, D), float32
        Of the patches, by rows; one tensor a level. For prompts these are unit vectors in the space
        that images and texts share, for layers the raw tokens that the layers take.
    grid : (gh, gw)
        N is their product.
    """

    whole: Tensor
    levels: list[Tensor]
    grid: Size


class LearnedDetector(LanguageDetector):
    """A detector that needs a file of ``offnominal train``.

    Options as :class:`~offnominal.detectors.language.base.LanguageDetector` has them, but
    ``layers`` and ``resolution`` None are what the file says that its contents were trained with.
    """

    # What the file holds, as messages call it.
    holds: ClassVar[str]

    def __init__(self, **options: Unpack[LanguageOptions]) -> None:
        super().__init__(**options)
        # How the file says that images are to be read.
        self.reading_: dict[str, Any] = {}

    @abstractmethod
    def see(self, pixels: Tensor) -> Seen:
        """What the image tower makes of pixels (B, 3, h, w) on any device."""

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor."""
        return super().extra_state() | {"reading_": self.reading_}

    def reading(self) -> dict[str, Any]:
        """All that the comparison with the texts depends on but the weights, as plain values."""
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
        return stored or self._default_blocks(self.clip.level_count)

    @abstractmethod
    def _default_blocks(self, count: int) -> Sequence[int]:
        """The levels, counted from 0, where neither an option nor the file names some."""

    def _default_resolution(self, net: Backbone) -> int:
        stored: int | None = self.reading_.get("resolution")
        return stored or super()._default_resolution(net)

    def _named_file(self) -> Path:
        """The file that the options name."""
        [option] = self.file_options
        given: str | None = getattr(self, option)
        if given is None:
            raise OptionError(
                f"--method {self.method}: needs a file of learned {self.holds}; train one with "
                f"`offnominal train {self.method}`, and give it with --set {option}=FILE"
            )
        return Path(given)

    def _take_over(self, path: Path, about: LearnedFile, text: ClipText) -> None:
        """Read images as the file says, and refuse another model or other settings than it has."""
        self.reading_ = about.reading
        net, trained = self.clip, about.backbone
        for kind, ours in (("digest", net.digest), ("text", digest(text) if trained else "")):
            if trained and trained.get(kind) != ours:
                raise ModelFileError(
                    f"{path}: its {self.holds} were trained with {trained.get('name')} of other "
                    f"weights than {self.weights or net.name} (digest "
                    f"{str(trained.get(kind))[:12]}, not {ours[:12]}); give the same --backbone "
                    "and --weights"
                )
        reading = self.reading()
        for name in ("positions", "activation", "temperature"):
            if name in about.reading and about.reading[name] != reading[name]:
                raise OptionError(
                    f"{path}: its {self.holds} were trained with {name} {about.reading[name]}, not "
                    f"{reading[name]}: give {name} {about.reading[name]}"
                )
