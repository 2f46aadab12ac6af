"""WinCLIP: windows of patches compared with texts, and with good images where there are any.

Jeong, Zou, Kim, Zhang, Ravichandran and Dabeer, "WinCLIP: Zero-/Few-Shot Anomaly Classification and
Segmentation", CVPR 2023 (arXiv 2303.14814).
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, Unpack, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offnominal.backbones.base import Backbone
from offnominal.detectors.base import Progress, Scored, Size
from offnominal.detectors.common import check_choice
from offnominal.detectors.language.base import LanguageDetector, LanguageOptions
from offnominal.detectors.views import Views
from offnominal.errors import OptionError
from offnominal.language.features import abnormality, state_features
from offnominal.language.names import clean_name
from offnominal.language.prompts import WINCLIP, WINCLIP_RELEASED
from offnominal.memory import MemoryBank

__all__ = ["WinCLIP", "harmonic_over_windows"]

Fuse = Literal["mean", "sum"]
Prompts = Literal["paper", "reproduction"]


class _Seen(NamedTuple):
    """A batch as CLIP sees it."""

    whole: Tensor  # (B, E): the image
    rows: list[Tensor]  # unit vectors (B, n, D): windows of each side, then patches
    grid: tuple[int, int]


class _Stored(NamedTuple):
    """A view of a reference: what texts say of it, and where its rows begin in each bank."""

    text_map: Tensor
    text_score: Tensor
    starts: list[int]
    counts: list[int]
    grid: tuple[int, int]


class WinCLIP(LanguageDetector):
    """Zero-shot: each window of patches asks the texts. Few-shot: it asks good images as well.

    An image's score is the texts' (see :func:`~offnominal.language.features.abnormality`). A patch
    has at each size of window the harmonic mean over the windows that cover it, and its score is
    the harmonic mean of these and the image's (section 4.2).

    With good images (WinCLIP+, section 4.3) windows and patches are also compared with theirs:
    ``(1 - cosine) / 2`` to the nearest one, harmonic means over windows again, the mean over sizes.
    The image score is the mean of the texts' and the maximum of this second map; the map is the
    mean of both. Thresholds come from each good image scored without its own windows.

    Parameters
    ----------
    windows : sequence of int, or str
        Sides of the windows, in patches; as text ``3,2``.
    prompts : {"paper", "reproduction"}
        22 templates, or the 21 of the reproduction whose figures AnomalyCLIP quotes.
    fuse : {"mean", "sum"}
        Of the two maps; ``sum`` in the reproduction. It changes no ranking of pixels.
    patch_norm : bool
        Whether patch tokens pass the final layer norm before they are compared. The reproduction's
        do not.
    smoothing : float
        The paper's maps are not smoothed.
    search_memory : int
        Bound on the search's working memory, in MiB.
    **options
        See :class:`~offnominal.detectors.language.base.LanguageDetector`. The paper's network is
        ViT-B/16+ at 240 pixels.

    Examples
    --------
    >>> from offnominal.detectors.language.winclip import WinCLIP
    >>> detector = WinCLIP(class_name="metal nut").fit()
    >>> detector = WinCLIP(class_name="metal nut").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "winclip"
    default_backbone: ClassVar[str] = "open_clip:ViT-B-16-plus-240"

    def __init__(  # type: ignore[misc]  # smoothing has another default here
        self,
        windows: Sequence[int] | str = (3, 2),
        prompts: Prompts = "paper",
        fuse: Fuse = "mean",
        patch_norm: bool = False,
        smoothing: float = 0.0,
        search_memory: int = 512,
        **options: Unpack[LanguageOptions],
    ) -> None:
        super().__init__(smoothing=smoothing, **options)
        check_choice("prompts", prompts, get_args(Prompts))
        check_choice("fuse", fuse, get_args(Fuse))
        if search_memory < 1:
            raise OptionError(f"search_memory {search_memory}: give at least 1 MiB")
        self.windows = _sides(windows)
        self.prompts: Prompts = prompts
        self.fuse: Fuse = fuse
        self.patch_norm = patch_norm
        self.search_memory = search_memory
        self.banks = nn.ModuleList()

    def _default_resolution(self, net: Backbone) -> int:
        return net.resolution

    def prepare_state(self) -> None:
        """An empty bank for each size of window, and one for patches."""
        clip = self.clip
        dims = [clip.embed_dim] * len(self.windows) + [clip.width]
        memory = self.search_memory * 2**20
        self.banks = nn.ModuleList(MemoryBank(dim, memory=memory) for dim in dims).to(self._device)

    def _describe(self) -> Tensor:
        ensemble = WINCLIP if self.prompts == "paper" else WINCLIP_RELEASED
        return state_features(self.clip.load_text(), ensemble, clean_name(self.class_name))

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.text_features_ = self._describe()
        self.prepare_state()
        references: list[tuple[Views, Size, list[_Stored]]] = []
        for index, image in images:
            views = self.views(image)
            stored = [
                self._store(pixels, index, number) for number, pixels in enumerate(views.pixels)
            ]
            references.append((views.layout(), (image.shape[0], image.shape[1]), stored))
            if progress:
                progress("features", index + 1)
        if len(references) > 1:
            self._leave_one_out(references, progress)

    def _store(self, pixels: Tensor, owner: int, view: int) -> _Stored:
        seen = self._see(pixels[None].to(self._device))
        text_map, text_score = self._ask_texts(seen)
        starts = [len(bank) for bank in self._banks]
        for bank, rows in zip(self._banks, seen.rows, strict=True):
            bank.add(rows[0], owner, view)
        counts = [rows.shape[1] for rows in seen.rows]
        return _Stored(text_map[0], text_score[0], starts, counts, seen.grid)

    def _leave_one_out(
        self, references: list[tuple[Views, Size, list[_Stored]]], progress: Progress | None
    ) -> None:
        scored: list[Scored] = []
        for owner, (layout, size, stored) in enumerate(references):
            maps, scores = [], []
            for view in stored:
                rows = [
                    bank.take(slice(start, start + count))
                    for bank, start, count in zip(
                        self._banks, view.starts, view.counts, strict=True
                    )
                ]
                distances = self._ask_references(rows, view.grid, owner)
                fused, score = self._join(view.text_map, view.text_score, distances)
                maps.append(fused)
                scores.append(float(score))
            # As for any image: of several views the most anomalous one speaks.
            worst = max(range(len(maps)), key=lambda number: float(maps[number].max()))
            scored.append(Scored(layout.merge(maps), size, layout.cover, scores[worst]))
            if progress:
                progress("threshold", owner + 1)
        self._set_good(scored, "leave-one-out")

    @property
    def _banks(self) -> list[MemoryBank]:
        return [bank for bank in self.banks if isinstance(bank, MemoryBank)]

    def _see(self, pixels: Tensor) -> _Seen:
        clip = self.clip
        with self._autocast():
            found = clip.tokens(pixels)
            if min(found.grid) < max(self.windows):
                raise OptionError(
                    f"windows {self.windows}: the image has only {found.grid[0]} x "
                    f"{found.grid[1]} patches; raise --resolution"
                )
            windows = clip.embed_windows(pixels, self.windows)
        patches = found.last[:, 1:].float()
        if self.patch_norm:
            patches = clip.visual.ln_post(patches)
        rows = [F.normalize(each, dim=2) for each in (*windows, patches)]
        return _Seen(clip.project(found.last[:, 0]), rows, found.grid)

    def _ask_texts(self, seen: _Seen) -> tuple[Tensor, Tensor]:
        """The texts' map (B, gh, gw) and score (B,)."""
        score = abnormality(seen.whole, self.text_features_, self.temperature)
        inverse = score.reciprocal()[:, None, None]
        for rows, side in zip(seen.rows, self.windows, strict=False):  # the last are patches
            each = abnormality(rows, self.text_features_, self.temperature)
            inverse = inverse + harmonic_over_windows(each, seen.grid, side).reciprocal()
        return (len(self.windows) + 1) / inverse, score

    def _ask_references(
        self, rows: Sequence[Tensor], grid: tuple[int, int], skip: int | None = None
    ) -> Tensor:
        """Mean distance (gh, gw) to the nearest of the references' windows and patches."""
        total = torch.zeros(grid, device=self._device)
        for bank, queries, side in zip(self._banks, rows, (*self.windows, 1), strict=True):
            squared, _ = bank.search(queries, skip=skip)
            # Of unit vectors the squared distance is twice 1 - cosine.
            distance = squared[:, 0] / 4
            total = total + harmonic_over_windows(distance[None], grid, side)[0]
        return total / len(self._banks)

    def _join(
        self, text_map: Tensor, text_score: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor]:
        both = text_map + distances
        return both / 2 if self.fuse == "mean" else both, (text_score + distances.max()) / 2

    def _compare(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._see(pixels)
        text_map, text_score = self._ask_texts(seen)
        if not len(self._banks[0]):
            return text_map, text_score
        joined = [
            self._join(
                text_map[index],
                text_score[index],
                self._ask_references([rows[index] for rows in seen.rows], seen.grid),
            )
            for index in range(len(pixels))
        ]
        return torch.stack([each for each, _ in joined]), torch.stack([own for _, own in joined])


def _sides(windows: Sequence[int] | str) -> tuple[int, ...]:
    try:
        parts = windows.split(",") if isinstance(windows, str) else windows
        sides = tuple(int(part) for part in parts)
    except ValueError:
        sides = ()
    if not sides or min(sides) < 1:
        raise OptionError(f"windows {windows!r}: give sides of 1 patch or more, as 3,2")
    return sides


def harmonic_over_windows(values: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Harmonic mean, at each patch, of the values of the windows that cover it.

    Parameters
    ----------
    values : Tensor of shape (B, windows)
        0 or more, in the order of :func:`~offnominal.backbones.clip_blocks.window_indices`.
    grid : (gh, gw)
    side : int
        Of the windows, in patches.

    Returns
    -------
    Tensor of shape (B, gh, gw)
        0 where a window that covers the patch has the value 0.
    """
    placed = values.reshape(-1, 1, grid[0] - side + 1, grid[1] - side + 1)
    total, count = (
        F.avg_pool2d(F.pad(each, (side - 1,) * 4), side, stride=1, divisor_override=1)
        for each in (placed.reciprocal(), torch.ones_like(placed))
    )
    return (count / total)[:, 0]
