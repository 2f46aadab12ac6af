"""WinCLIP: windows of patches compared with texts, and with good images where there are any.

Jeong, Zou, Kim, Zhang, Ravichandran and Dabeer, "WinCLIP: Zero-/Few-Shot Anomaly Classification and
Segmentation", CVPR 2023 (arXiv 2303.14814).
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offnominal.backbones.base import Backbone
from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.language.base import Banks, LanguageDetector
from offnominal.errors import OptionError
from offnominal.language.names import clean_name
from offnominal.language.prompts import WINCLIP, WINCLIP_RELEASED
from offnominal.scoring import Size

__all__ = ["WinCLIP", "WindowFeatures", "harmonic_over_windows"]

Fuse = Literal["mean", "sum"]
Prompts = Literal["paper", "reproduction"]


class WindowFeatures(NamedTuple):
    """A view as CLIP sees it.

    ``whole`` (1, E) is its embedding; ``rows`` (n, D) are unit vectors, of the windows of each
    side, then of the patches of the ``grid`` (gh, gw).
    """

    whole: Tensor
    rows: list[Tensor]
    grid: Size


class WinCLIP(LanguageDetector):
    """Zero-shot: each window of patches asks the texts. Few-shot: it asks good images as well.

    An image's score is the texts': the abnormal entry of a softmax over cosines. A patch has at
    each size of window the harmonic mean over the windows that cover it, and its score is the
    harmonic mean of these and the image's (section 4.2).

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
    >>> from offnominal import WinCLIP
    >>> detector = WinCLIP(class_name="metal nut").fit()
    >>> detector = WinCLIP(class_name="metal nut").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "winclip"
    accepts_references: ClassVar[bool] = True
    default_backbone: ClassVar[str] = "open_clip:ViT-B-16-plus-240"

    def __init__(
        self,
        windows: Sequence[int] | str = (3, 2),
        prompts: Prompts = "paper",
        fuse: Fuse = "mean",
        patch_norm: bool = False,
        smoothing: float = 0.0,
        search_memory: int = 512,
        **options: Any,
    ) -> None:
        super().__init__(smoothing=smoothing, **options)
        check_choice("prompts", prompts, Prompts)
        check_choice("fuse", fuse, Fuse)
        check_range("search_memory", search_memory, whole=True, least=1)
        self.windows = _sides(windows)
        self.prompts: Prompts = prompts
        self.fuse: Fuse = fuse
        self.patch_norm = patch_norm
        self.search_memory = search_memory
        # One for each size of window, and one for patches.
        self.banks = Banks(len(self.windows) + 1, search_memory)

    def default_resolution(self, network: Backbone) -> int:
        """The model's own."""
        return network.resolution

    def describe(self) -> Tensor:
        """Features of the papers' two ensembles of sentences."""
        ensemble = WINCLIP if self.prompts == "paper" else WINCLIP_RELEASED
        return ensemble.features(self.clip.load_text(), clean_name(self.class_name))

    def begin(self) -> None:
        """Ask the text tower, and know no good image."""
        super().begin()
        self.banks = Banks(len(self.windows) + 1, self.search_memory).to(self._device)

    def embed(self, pixels: Tensor) -> WindowFeatures:
        """Embeddings of a view (3, h, w) and of its windows, and its patches."""
        clip, batch = self.clip, pixels[None].to(self._device)
        with self._autocast():
            found = clip.tokens(batch)
            if min(found.grid) < max(self.windows):
                raise OptionError(
                    f"windows {self.windows}: the image has only {found.grid[0]} x "
                    f"{found.grid[1]} patches; raise --resolution"
                )
            windows = clip.embed_windows(batch, self.windows)
        patches = found.last[:, 1:].float()
        if self.patch_norm:
            patches = clip.visual.ln_post(patches)
        rows = [F.normalize(each[0], dim=1) for each in (*windows, patches)]
        return WindowFeatures(clip.project(found.last[:, 0]), rows, found.grid)

    def learn_features(
        self, number: int, features: WindowFeatures, view: int, upright: bool
    ) -> None:
        """Put windows and patches into their banks."""
        self.banks.learn(features.rows, number, view)

    def compare(self, features: WindowFeatures, without: int | None = None) -> ViewScores:
        """What the texts say, and the references where there are any."""
        patches, own = self._ask_texts(features)
        if self.banks.empty:
            return ViewScores(patches, own)
        distances = self._ask_references(features, without)
        both = patches + distances
        return ViewScores(both / 2 if self.fuse == "mean" else both, (own + distances.max()) / 2)

    def _ask_texts(self, features: WindowFeatures) -> tuple[Tensor, Tensor]:
        """The texts' map (gh, gw) and score ()."""
        score = self.abnormality(features.whole)[0]
        inverse = score.reciprocal()
        for rows, side in zip(features.rows, self.windows, strict=False):  # the last are patches
            each = harmonic_over_windows(self.abnormality(rows), features.grid, side)
            inverse = inverse + each.reciprocal()
        return (len(self.windows) + 1) / inverse, score

    def _ask_references(self, features: WindowFeatures, without: int | None) -> Tensor:
        """Mean distance (gh, gw) to the nearest of the references' windows and patches."""
        total = torch.zeros(features.grid, device=self._device)
        found = self.banks.nearest(features.rows, without)
        for squared, side in zip(found, (*self.windows, 1), strict=True):
            # Of unit vectors the squared distance is twice 1 - cosine.
            total = total + harmonic_over_windows(squared / 4, features.grid, side)
        return total / len(found)


def _sides(windows: Sequence[int] | str) -> tuple[int, ...]:
    try:
        parts = windows.split(",") if isinstance(windows, str) else windows
        sides = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        sides = ()
    if not sides or min(sides) < 1:
        raise OptionError(f"windows {windows!r}: give sides of 1 patch or more, as 3,2")
    return sides


def harmonic_over_windows(values: Tensor, grid: Size, side: int) -> Tensor:
    """Harmonic mean, at each patch, of the values of the windows that cover it.

    The values (windows,) are 0 or more, in the order of
    :func:`~offnominal.backbones.clip_blocks.window_indices`; windows have ``side`` patches a side.
    The means (gh, gw) are 0 where a window that covers the patch has the value 0.
    """
    placed = values.reshape(1, 1, grid[0] - side + 1, grid[1] - side + 1)
    total, count = (
        F.avg_pool2d(F.pad(each, (side - 1,) * 4), side, stride=1, divisor_override=1)
        for each in (placed.reciprocal(), torch.ones_like(placed))
    )
    return (count / total)[0, 0]
