"""APRIL-GAN: patch tokens of several levels, brought to the texts by learned linear layers.

Chen, Han and Zhang, "APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method
for CVPR 2023 VAND Workshop Challenge", 2023 (arXiv 2305.17382). Also called VAND, after the
challenge.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.backbones.clip_blocks import Activation
from offnominal.backbones.clip_text import ClipText
from offnominal.detectors.base import Progress, Scored, Size
from offnominal.detectors.common import check_choice
from offnominal.detectors.language.base import LanguageOptions
from offnominal.detectors.language.learned import LearnedDetector, Seen
from offnominal.detectors.views import Views
from offnominal.errors import ModelFileError, OptionError
from offnominal.language.features import abnormality, state_features
from offnominal.language.learned import Projections
from offnominal.language.learnedfile import read_learned
from offnominal.language.names import clean_name
from offnominal.language.prompts import APRIL_GAN
from offnominal.memory import MemoryBank

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
    >>> from offnominal.detectors.language.april_gan import AprilGAN
    >>> detector = AprilGAN(projections="layers.safetensors", class_name="metal nut").fit()
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "april-gan"
    file_options: ClassVar[tuple[str, ...]] = ("projections",)
    holds: ClassVar[str] = "layers"

    peak_: Tensor

    def __init__(  # type: ignore[misc]  # some have other defaults here
        self,
        projections: str | Path | None = None,
        softmax: Softmax = "pixel",
        activation: Activation | None = "gelu",
        temperature: float = 0.01,
        smoothing: float = 0.0,
        search_memory: int = 512,
        **options: Unpack[LanguageOptions],
    ) -> None:
        super().__init__(
            activation=activation, temperature=temperature, smoothing=smoothing, **options
        )
        check_choice("softmax", softmax, get_args(Softmax))
        if search_memory < 1:
            raise OptionError(f"search_memory {search_memory}: give at least 1 MiB")
        self.projections = str(projections) if projections is not None else None
        self.softmax: Softmax = softmax
        self.search_memory = search_memory
        self.learned: Projections | None = None
        self.banks = nn.ModuleList()
        self.register_buffer("peak_", torch.ones(()))

    def options(self) -> dict[str, Any]:
        """The constructor's arguments; levels that came with the learned layers are among them."""
        # A saved detector makes room for its layers before it knows anything else.
        stored = self.reading_.get("layers") if self.layers is None else None
        return super().options() | ({"layers": tuple(stored)} if stored else {})

    def _default_blocks(self, count: int) -> Sequence[int]:
        return sorted({count * part // 4 - 1 for part in (1, 2, 3, 4)} - {-1})

    def views(self, image: np.ndarray) -> Views:
        """As every detector's; patch scores at every pixel have a stride of 1."""
        views = super().views(image)
        return views if self.softmax == "patch" else replace(views, stride=1)

    def prepare_state(self) -> None:
        """Learned layers and banks, empty."""
        clip, levels = self.clip, len(self._blocks())
        self.learned = Projections(clip.width, clip.embed_dim, levels).to(self._device)
        self.learned.requires_grad_(False)
        memory = self.search_memory * 2**20
        self.banks = nn.ModuleList(MemoryBank(clip.width, memory=memory) for _ in range(levels))
        self.banks.to(self._device)

    def _describe(self) -> Tensor:
        """Text features, after the layers were read and checked."""
        path = self._named_file()
        found, about = read_learned(path, Projections)
        text = self.clip.load_text()
        self._take_over(path, about, text)
        self._check_layers(path, found)
        self.prepare_state()
        self.learned = found.to(self._device)
        return self.describe(text, self.class_name)

    @staticmethod
    def describe(text: ClipText, class_name: str | None) -> Tensor:
        """Text features (2, E), normal and abnormal, of parts of this name."""
        return state_features(text, APRIL_GAN, clean_name(class_name))

    def new_layers(self, generator: torch.Generator) -> Projections:
        """Layers to begin a training with, drawn at random, on the detector's device."""
        clip = self.clip
        drawn = Projections(clip.width, clip.embed_dim, len(self._blocks()), generator)
        return drawn.to(self._device)

    def _check_layers(self, path: Path, found: Projections) -> None:
        """Refuse layers of other levels or sizes than this backbone's."""
        clip, blocks = self.clip, list(self._blocks())
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

    # -- learning -----------------------------------------------------------------------------

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.text_features_ = self._describe()
        self.peak_ = torch.tensor(float(len(self._banks)), device=self._device)
        references: list[tuple[Views, Size, list[Seen]]] = []
        for index, image in images:
            views = self.views(image)
            seen = []
            for number, pixels in enumerate(views.pixels):
                found = self.see(pixels[None])
                for bank, tokens in zip(self._banks, found.levels, strict=True):
                    bank.add(F.normalize(tokens[0], dim=-1), index, number)
                seen.append(found)
            references.append((views.layout(), (image.shape[0], image.shape[1]), seen))
            if progress:
                progress("features", index + 1)
        if len(references) > 1:
            self._leave_one_out(references, progress)

    def _leave_one_out(
        self, references: list[tuple[Views, Size, list[Seen]]], progress: Progress | None
    ) -> None:
        found = [
            [self._distances(seen, 0, owner) for seen in views]
            for owner, (_, _, views) in enumerate(references)
        ]
        peaks = [max(float(each.max()) for each in views) for views in found]
        self.peak_ = torch.tensor(max(float(np.mean(peaks)), 1e-6), device=self._device)
        scored = []
        for (layout, size, views), distances in zip(references, found, strict=True):
            parts = [
                self._join(self._ask_texts(seen)[0], self._text_score(seen)[0], own, seen.grid)
                for seen, own in zip(views, distances, strict=True)
            ]
            merged = layout.merge([patch_scores for patch_scores, _ in parts])
            term = max(float(own) for _, own in parts)
            scored.append(Scored(merged, size, layout.cover, term))
            if progress:
                progress("threshold", len(scored))
        self._set_good(scored, "leave-one-out")

    # -- scoring ------------------------------------------------------------------------------

    @property
    def _banks(self) -> list[MemoryBank]:
        return [bank for bank in self.banks if isinstance(bank, MemoryBank)]

    def see(self, pixels: Tensor) -> Seen:
        """The class token as CLIP compares it with texts, and raw patch tokens."""
        with self._autocast():
            tokens = self.clip.tokens(pixels.to(self._device), self._blocks())
            whole = self.clip.project(tokens.last[:, 0])
        levels = [block[:, 1:].float() for block in tokens.blocks]
        return Seen(F.normalize(whole.float(), dim=-1), levels, tokens.grid)

    def _text_score(self, seen: Seen) -> Tensor:
        """Image scores (B,): CLIP's own."""
        return abnormality(seen.whole, self.text_features_, self.temperature)

    def _ask_texts(self, seen: Seen) -> Tensor:
        """Sum over levels of the abnormal share: (B, gh, gw), or (B, h, w) at every pixel."""
        assert self.learned is not None
        normal, abnormal = self.text_features_
        total = torch.zeros((), device=self._device)
        for unit in self.learned(seen.levels):
            # The softmax over two entries is a sigmoid of their difference.
            lead = (unit @ (abnormal - normal) / self.temperature).unflatten(1, seen.grid)
            total = total + self._enlarged(lead, seen.grid).sigmoid()
        return total

    def _enlarged(self, grids: Tensor, grid: Size) -> Tensor:
        """Grids (B, gh, gw) at every pixel that the network saw; as they are for ``patch``."""
        if self.softmax == "patch":
            return grids
        size = tuple(side * self.clip.stride for side in grid)
        return F.interpolate(grids[:, None], size, mode="bilinear", align_corners=True)[:, 0]

    def _distances(self, seen: Seen, index: int, skip: int | None = None) -> Tensor:
        """Sum over levels of ``1 - cosine`` to the nearest token of a good image: (gh, gw)."""
        total = torch.zeros((), device=self._device)
        for bank, tokens in zip(self._banks, seen.levels, strict=True):
            squared, _ = bank.search(F.normalize(tokens[index], dim=-1), skip=skip)
            total = total + squared[:, 0] / 2
        return total.reshape(seen.grid)

    def _join(
        self, text_map: Tensor, text_score: Tensor, distances: Tensor, grid: Size
    ) -> tuple[Tensor, Tensor]:
        both = text_map + self._enlarged(distances[None], grid)[0]
        return both, (text_score + distances.max() / self.peak_) / 2

    def _compare(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.see(pixels)
        maps, scores = self._ask_texts(seen), self._text_score(seen)
        if not len(self._banks[0]):
            return maps, scores
        joined = [
            self._join(maps[index], scores[index], self._distances(seen, index), seen.grid)
            for index in range(len(pixels))
        ]
        return torch.stack([each for each, _ in joined]), torch.stack([own for _, own in joined])


def minmax_scores(text: Sequence[float], peaks: Sequence[float]) -> list[float]:
    """Few-shot image scores of a whole set, as the released code combines them.

    Parameters
    ----------
    text : sequence of float
        Zero-shot image scores.
    peaks : sequence of float
        Maxima of the maps of the same images.

    Returns
    -------
    list of float
        The mean of each text score and its peak, the peaks brought to 0...1 over the set.
    """
    low, high = min(peaks), max(peaks)
    span = high - low or 1.0
    return [(own + (peak - low) / span) / 2 for own, peak in zip(text, peaks, strict=True)]
