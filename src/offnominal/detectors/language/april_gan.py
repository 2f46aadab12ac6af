"""APRIL-GAN: patch tokens of several levels, brought to the texts by learned linear layers.

Chen, Han and Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method
for CVPR 2023 VAND Workshop Challenge", 2023 (arXiv 2305.17382). Also called VAND, after the
challenge.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from offnominal.backbones.clip_blocks import Activation
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.language.base import Banks
from offnominal.detectors.language.learned import ClipFeatures, LearnedDetector
from offnominal.detectors.learned_state import must, must_fit
from offnominal.detectors.options import Progress
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.learned import LearnedModule, Projections
from offnominal.language.names import clean_name
from offnominal.language.prompts import APRIL_GAN
from offnominal.scoring import Size

__all__ = ["AprilGAN", "Softmax", "minmax_scores"]

Softmax = Literal["pixel", "patch"]


class AprilGAN(LearnedDetector):
    """Zero-shot maps from learned layers; few-shot maps from banks of the same tokens beside them.

    A patch token of each level passes a linear layer and is compared with the texts; the map is the
    sum over levels of the abnormal share (section 2.1). The image score is CLIP's own. With good
    images (section 2.2) each level's tokens are also compared with theirs: ``1 - cosine`` to the
    nearest one, summed over levels, is added to the map.

    Parameters
    ----------
    projections : path or None
        The learned layers: a file of ``offnominal train april-gan``, or a checkpoint of the
        released code. ``fit`` reads it; the saved detector holds them.
    softmax : {"pixel", "patch"}
        Whether similarities become shares after they were enlarged to the image's pixels, as in
        the released code, or before, which makes the detector's patch scores small and its maps
        smoother.
    activation : {"quickgelu", "gelu"} or None
        The released code runs OpenAI's weights with GELU, and its layers were learned so.
    temperature, smoothing
        0.01 and no smoothing, as in the released code.
    search_memory : int
        Bound on the search's working memory, in MiB.
    **options
        See :class:`~offnominal.detectors.language.base.LanguageDetector`. ``layers`` and
        ``resolution`` None: what the layers were trained with; for the released ones four levels,
        at each quarter of the image tower.

    Notes
    -----
    The released code adds to a few-shot image score the map's maximum, brought to 0...1 by the
    smallest and largest of all test images of the class. That needs the whole test set. Here the
    maximum of the few-shot map is divided by what good images reach when each is scored without
    itself (by the number of levels where there is one only), so that an image can be scored alone;
    :func:`minmax_scores` gives the released form for a set.

    Examples
    --------
    >>> from offnominal import AprilGAN
    >>> detector = AprilGAN(projections="layers.safetensors", class_name="metal nut").fit()
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "april-gan"
    accepts_references: ClassVar[bool] = True
    file_options: ClassVar[tuple[str, ...]] = ("projections",)
    kind: ClassVar[type[LearnedModule]] = Projections

    def __init__(
        self,
        projections: str | Path | None = None,
        softmax: Softmax = "pixel",
        activation: Activation | None = "gelu",
        temperature: float = 0.01,
        smoothing: float = 0.0,
        search_memory: int = 512,
        **options: Any,
    ) -> None:
        super().__init__(
            activation=activation, temperature=temperature, smoothing=smoothing, **options
        )
        check_choice("softmax", softmax, Softmax)
        check_range("search_memory", search_memory, whole=True, least=1)
        self.projections = str(projections) if projections is not None else None
        self.softmax: Softmax = softmax
        self.search_memory = search_memory
        self.learned: Projections | None = None
        self.banks = Banks(0, search_memory)
        self.peak_ = 1.0

    def default_blocks(self, count: int) -> Sequence[int]:
        """Four levels, at each quarter of the image tower."""
        return sorted({count * part // 4 - 1 for part in (1, 2, 3, 4)} - {-1})

    def describe(self) -> Tensor:
        """Text features, after the layers were read and checked."""
        path, found, about = self.read_file()
        text = self.clip.load_text()
        self.take_over(path, about, text)
        self._check_layers(path, found)
        self._take_layers(found)
        return APRIL_GAN.features(text, clean_name(self.class_name))

    def new_layers(self, generator: torch.Generator | None = None) -> Projections:
        """Layers drawn at random, on the detector's device."""
        clip = self.clip
        drawn = Projections(clip.width, clip.embed_dim, len(self.blocks()), generator)
        return drawn.to(self._device)

    def _take_layers(self, learned: Projections) -> None:
        """Use learned layers, beside an empty bank for each."""
        self.learned = learned.to(self._device).requires_grad_(False)
        self.banks = Banks(learned.levels, self.search_memory).to(self._device)

    def _check_layers(self, path: Path, found: Projections) -> None:
        """Refuse layers of other levels or sizes than this backbone's."""
        clip, blocks = self.clip, list(self.blocks())
        expected = {"width": clip.width, "embed_dim": clip.embed_dim, "levels": len(blocks)}
        if found.settings() != expected:
            raise ModelFileError(
                f"{path}: its layers take {found.settings()}, and {clip.name} with levels {blocks} "
                f"needs {expected}: use the model that they were trained with, or as many --layers"
            )
        trained = self.reading_.get("layers", blocks)
        if trained != blocks:
            raise OptionError(
                f"--layers {','.join(map(str, blocks))}: {path} was trained for levels "
                f"{','.join(map(str, trained))}; leave --layers out"
            )

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Make room for as many layers as there are, and take over what was learned."""
        with must_fit():
            reading = header["learned"]["reading_"]
            layers = reading.get("layers", [0])
            must(all(type(n) is int and 0 <= n < self.clip.level_count for n in layers), "layers")
            self.reading_ = reading
        self._take_layers(self.new_layers())
        super().restore(header, arrays)

    def check_learned(self) -> None:
        """The layers are those of this network, and scores are divided by something."""
        super().check_learned()
        must(self.peak_ > 0, "peak_ is not above 0")
        fresh = self.new_layers().state_dict()
        found = self.learned.state_dict() if self.learned else {}
        must({k: v.shape for k, v in fresh.items()} == {k: v.shape for k, v in found.items()},
             "the learned layers are not of this network's sizes")  # fmt: skip

    # -- learning -----------------------------------------------------------------------------

    def learn_features(self, number: int, features: ClipFeatures, view: int, upright: bool) -> None:
        """Put each level's tokens into its bank."""
        self.banks.learn(_units(features.levels), number, view)

    def finish(self, progress: Progress | None) -> None:
        """The mean of the references' peaks, each compared with the others."""
        self.peak_ = float(len(self.banks))
        if len(self.references) > 1:
            peaks = []
            for number in range(len(self.references)):
                rows = [
                    torch.from_numpy(bank.take(bank.rows_of(number))).to(self._device)
                    for bank in self.banks
                ]
                peaks.append(float(self._distances(rows, number).max()))
            self.peak_ = max(float(np.mean(peaks)), 1e-6)

    # -- scoring ------------------------------------------------------------------------------

    def patches_of(self, tokens: Tensor) -> Tensor:
        """Patch tokens as they are, which the layers take."""
        return tokens.float()

    def compare(self, features: ClipFeatures, without: int | None = None) -> ViewScores:
        """What the texts say, and the references where there are any."""
        patches = self._ask_texts(features)
        own = self.abnormality(features.whole[None])[0]
        if self.banks.empty:
            return ViewScores(patches, own)
        distances = self._distances(_units(features.levels), without).reshape(features.grid)
        both = patches + self._enlarged(distances, features.grid)
        return ViewScores(both, (own + distances.max() / self.peak_) / 2)

    def _ask_texts(self, features: ClipFeatures) -> Tensor:
        """Sum over levels of the abnormal share: (gh, gw), or (h, w) at every pixel."""
        assert self.learned is not None
        normal, abnormal = self.text_features_
        total = torch.zeros((), device=self._device)
        for unit in self.learned(features.levels):
            # The softmax over two entries is a sigmoid of their difference.
            lead = (unit @ (abnormal - normal) / self.temperature).reshape(features.grid)
            total = total + self._enlarged(lead, features.grid).sigmoid()
        return total

    def _enlarged(self, values: Tensor, grid: Size) -> Tensor:
        """A grid (gh, gw) at every pixel that the network saw; as it is for ``patch``."""
        if self.softmax == "patch":
            return values
        size = tuple(side * self.clip.stride for side in grid)
        full = F.interpolate(values[None, None], size, mode="bilinear", align_corners=True)
        return full[0, 0]

    def _distances(self, rows: Sequence[Tensor], without: int | None) -> Tensor:
        """Sum over levels of ``1 - cosine`` to the nearest token of a good image: (N,)."""
        return torch.stack(self.banks.nearest(rows, without)).sum(0) / 2


def _units(levels: Sequence[Tensor]) -> list[Tensor]:
    return [F.normalize(tokens, dim=-1) for tokens in levels]


def minmax_scores(text: Sequence[float], peaks: Sequence[float]) -> list[float]:
    """Few-shot image scores of a whole set, as the released code combines them.

    From zero-shot scores ``text`` and the maxima ``peaks`` of the same images' maps: the mean of
    each score and its peak, the peaks brought to 0...1 over the set.
    """
    low, high = min(peaks), max(peaks)
    span = high - low or 1.0
    return [(own + (peak - low) / span) / 2 for own, peak in zip(text, peaks, strict=True)]
