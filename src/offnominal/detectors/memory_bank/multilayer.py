"""Nearest neighbours of features from several blocks, references and queries both augmented.

In the spirit of VisionAD: Wang et al., "Search is All You Need for Few-shot Anomaly Detection",
2025 (arXiv 2504.11895). Every piece is an option, so that each can be left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores
from offnominal.detectors.fusion import Fusion, fuse_levels, is_plain_transformer
from offnominal.detectors.memory_bank.anomalydino import AnomalyDINO
from offnominal.errors import OptionError
from offnominal.foreground import MaskMode
from offnominal.memory import MemoryBank
from offnominal.rotations import parse_rotations
from offnominal.sizing import Resize
from offnominal.views import View, flipped, quarter_turned

if TYPE_CHECKING:
    from torch import Tensor

    from offnominal.backbones.base import Backbone

__all__ = ["MultiLayerNN"]

QueryView = Literal["plain", "vflip", "hflip", "clamp"]


class MultiLayerNN(AnomalyDINO):
    """Few-shot detection by nearest neighbours in the fused features of several blocks.

    A test image is looked at in several ways (``query_views``), each compared with a bank of the
    references in these ways, turned and flipped. The maps, turned back, are averaged.

    Parameters
    ----------
    fusion : {"mean", "concat"} or None
        Of the blocks' raw outputs; None: the mean, where they have one shape.
    rotations : str
        Of the references: ``none``, ``agnostic`` or degrees. Quarter turns are exact.
    reference_flips : bool
        Whether the bank holds references flipped upside down and left to right as well.
    query_views : str
        Ways to look at a test image, by commas: ``plain``; ``vflip``, upside down; ``hflip``;
        ``clamp``, with all that is darker than the mean of the backbone's training images raised to
        it, channel by channel. VisionAD's code has ``plain,vflip,clamp``; of dark parts ``clamp``
        leaves nothing to see, so it is not a default here.
    summary_weight : float
        Weight of the distance from the image's class token (or pooled feature) to the nearest of
        the references', which is added to every patch score, so to the image score however it is
        aggregated. 0 leaves it out.
    layers : sequence of int or None
        None: from a sixth to three quarters of the way up a transformer: blocks 4 to 18 of a ViT-L,
        2 to 9 of a ViT-B, counted from 0.
    resize : {"short", "crop", "square"} or None
        ``square`` as in the released code.
    mask : {"auto", "on", "off"}
        ``off`` as in the released code. With a mask, Otsu's threshold parts object and background
        unless ``mask_threshold`` says otherwise.
    **options
        See :class:`~offnominal.detectors.memory_bank.anomalydino.AnomalyDINO`.

    Notes
    -----
    The bank holds a row for every patch of every reference in every rotation, flip and query view:
    6 rows a patch by default. VisionAD's code keeps a bank for each query view, filled from
    references changed as the query is; here all query views search the same rows.
    """

    method: ClassVar[str] = "multilayer-nn"
    exports: ClassVar[bool] = True
    embedding: ClassVar[tuple[str, ...]] = ("fusion",)

    def __init__(
        self,
        fusion: Fusion | None = None,
        rotations: str | Sequence[float] = "0,90,180,270",
        reference_flips: bool = True,
        query_views: str | Sequence[str] = "plain,vflip",
        summary_weight: float = 0.0,
        resize: Resize | None = "square",
        mask: MaskMode = "off",
        **options: Any,
    ) -> None:
        parse_rotations(rotations)  # there is no test for "auto": flips turn references as well
        super().__init__(rotations=rotations, resize=resize, mask=mask, **options)
        if fusion is not None:
            check_choice("fusion", fusion, Fusion)
        check_range("summary_weight", summary_weight, least=0)
        self.fusion = fusion
        self.reference_flips = reference_flips
        self._names = _parse_query_views(query_views)
        self.query_views = query_views if isinstance(query_views, str) else tuple(query_views)
        self.summary_weight = summary_weight

    def begin(self) -> None:
        """Empty banks: of patches, and of class tokens."""
        super().begin()
        self.summaries = MemoryBank(memory=self.search_memory * 2**20).to(self._device)

    @property
    def banks(self) -> list[MemoryBank]:
        """The bank of patches and that of class tokens."""
        return [self.bank, self.summaries]

    def choose_levels(self, network: "Backbone") -> "Backbone":
        """From a sixth to three quarters of the way up, unless it is no transformer."""
        if self.layers is not None or not is_plain_transformer(network):
            return network
        count = network.level_count
        return network.at_levels(range(count // 6, 3 * count // 4 + 1))

    @property
    def component_threshold(self) -> float | None:
        """A backbone's own holds for its last block's tokens only."""
        return self.mask_threshold

    # -- ways to look -------------------------------------------------------------------------

    def views(self, image: np.ndarray) -> list[View]:
        """The image in every query view."""
        plain = self.plain_views(image)
        return [_query_view(view, name) for name in self._names for view in plain]

    def reference_views(self, image: np.ndarray) -> list[View]:
        """Query views first; then turned and flipped ones, exactly where by quarters."""
        views, plain = self.views(image), self.plain_views(image)
        changed: list[View] = []
        for angle in parse_rotations(self.rotations)[1:]:
            if angle % 90:
                changed += self.turned_views(image, angle)
            else:
                changed += [quarter_turned(view, int(angle // 90)) for view in plain]
        if self.reference_flips:
            changed += [flipped(view, flip) for flip in ("rows", "columns") for view in plain]
        there = {(view.angle, view.flip) for view in views}
        if self._names != ["clamp"]:
            views += [view for view in changed if (view.angle, view.flip) not in there]
        if "clamp" in self._names:  # what is clamped is compared with what was clamped
            views += [_clamped(view) for view in changed]
        return views

    # -- fused features and class tokens ------------------------------------------------------

    def embed(self, pixels: "Tensor") -> tuple["Tensor", "Tensor"]:
        """Fused features (D, gh, gw), and the view's class token (1, D')."""
        import torch.nn.functional as F

        with self._autocast():
            net, batch = self.torch_network(), pixels[None].to(self._device)
            maps, summary = fuse_levels(net, batch, self.fusion)
        return maps[0].float(), F.normalize(summary.float(), dim=-1)

    def patches_of(self, features: Any) -> NDArray[np.float32]:
        """Fused features (D, gh, gw), of which the mask is made."""
        found: NDArray[np.float32] = features[0] if isinstance(features, tuple) else features
        return found

    def rows(self, features: Any) -> NDArray[np.float32]:
        """Features as the bank takes them; class tokens stand apart."""
        return super().rows(self.patches_of(features))

    def learn_features(self, number: int, features: Any, view: int, upright: bool) -> None:
        """Put a view into the bank, and its class token beside it."""
        maps, summary = features
        super().learn_features(number, maps, view, upright)
        self.summaries.add(summary, number, view)

    def compare(self, features: Any, without: int | None = None) -> ViewScores:
        """Distance of each patch to its nearest rows, and of the class token if it counts."""
        maps, summary = features
        return self._with_summary(super().compare(maps, without), summary, without)

    def view_from_bank(self, number: int, place: int, view: View) -> ViewScores:
        """The same of a view of a reference, from what the banks hold of it."""
        found = super().view_from_bank(number, place, view)
        own = self.summaries.rows_of(number)
        return self._with_summary(found, self.summaries.take(own[place : place + 1]), number)

    def _with_summary(
        self, found: ViewScores, summary: NDArray[np.float32], without: int | None
    ) -> ViewScores:
        if not self.summary_weight:
            return found
        squared, _ = self.summaries.search(summary, 1, without)
        return ViewScores(found.patches + self.summary_weight * (squared[0, 0] / 2))


def _parse_query_views(value: str | Sequence[str]) -> list[QueryView]:
    """Names of the query views, each once, in the order given."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, Sequence):
        raise OptionError(
            f"--query-views {value!r}: give names with commas between, as plain,vflip"
        )
    for name in names:
        check_choice("query_views", name, QueryView)
    if not names:
        raise OptionError("query_views: give at least one, as plain")
    if len(set(names)) < len(names):
        raise OptionError(f"--query-views {','.join(names)}: name each way to look once")
    return list(names)  # type: ignore[arg-type]  # checked just above


def _query_view(view: View, name: QueryView) -> View:
    """An upright view as a query view shows it."""
    if name == "clamp":
        return _clamped(view)
    if name == "plain":
        return view
    return flipped(view, "rows" if name == "vflip" else "columns", upright=True)


def _clamped(view: View) -> View:
    """Normalised pixels cut at 0, which is the mean that the backbone normalises by."""
    return replace(view, pixels=view.pixels.clip(min=0))
