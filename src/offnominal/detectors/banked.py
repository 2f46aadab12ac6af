"""Detectors whose reference patches lie in memory banks, each with where it comes from."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, Unpack, cast

import torch
from torch import Tensor, nn

from offnominal.detectors import changing, indexing, measuring
from offnominal.detectors.base import Detector, Numbered, OnError, Progress, Scored, Size
from offnominal.detectors.common import CommonOptions, evenly
from offnominal.detectors.growing import Change, Version
from offnominal.detectors.places import (
    Layout,
    Look,
    Origin,
    place,
    tiled_layout,
    whole_layout,
)
from offnominal.detectors.reach import Compared, Found, Learned, Reaches, part_of
from offnominal.errors import OptionError
from offnominal.images import ImageSource
from offnominal.memory import MemoryBank
from offnominal.memory.index_report import IndexReport, Sampled
from offnominal.sizing import fit_size

if TYPE_CHECKING:
    from offnominal.detectors.explaining import Explanation

__all__ = ["Banked"]


class Banked(Detector):
    """A detector with memory banks, that can tell where their rows come from, grow and shrink.

    A row is known by the number of its reference (``owner``), the number of the view (number of the
    look times the tiles of the image, plus the tile's) and its place in the view's grid
    (``patch``). The rows of a reference lie together, and references in the order of their numbers,
    which are never given twice while a step back could need them.

    Beside the banks, ``reaches`` keeps how far the patches of each reference are from the rows of
    all others; thresholds follow from that. Rows that were forgotten lie in ``attic``.
    """

    storage: Literal["fp32", "fp16", "int8"]
    search: str
    neighbours: int
    calibrate_on: int
    # Why the method cannot grow or shrink, if it cannot.
    no_growth: ClassVar[str | None] = None

    bank: MemoryBank
    attic: nn.ModuleList
    reaches: Reaches
    aside_patches_: Tensor
    # Some references of a fit, while its index is to be measured with them.
    _sampled: Sampled | None = None
    # Image whose rows are passed over, as if it were no reference.
    _left_out: int | None = None
    _index_speed: float | None = None

    def __init__(self, **common: Unpack[CommonOptions]) -> None:
        super().__init__(**common)
        self.bank = MemoryBank(1)
        self.attic = nn.ModuleList()
        self._begin()

    def _begin(self) -> None:
        """Nothing has grown or shrunk yet."""
        self.forgotten_: list[dict[str, Any]] = []
        self.history_: list[dict[str, Any]] = []
        # References that the held-out scores in force were measured against.
        self.calibrated_with_: list[int] | None = None
        # Held-out patch scores that a smaller bank put out of force.
        self.aside_: list[dict[str, Any]] = []
        # Why the search is exact although an index was asked for.
        self.search_note_: str | None = None
        self.index_report_: dict[str, Any] | None = None
        self._index_speed = None
        self.register_buffer("aside_patches_", torch.empty(0, device=self._device))
        self.reaches = Reaches().to(self._device)

    def _make_attic(self) -> None:
        empty = [part_of(bank, slice(0, 0)) for bank in self._banks]
        self.attic = nn.ModuleList(empty).to(self._device)

    # -- what a method fills in ---------------------------------------------------------------

    @abstractmethod
    def _learn(self, owner: int, image: Any) -> Learned:
        """Put the rows of an image, uint8 (H, W, 3), into the banks."""

    @abstractmethod
    def _distance(self, bank: int, squared: Tensor) -> Tensor:
        """Distances (n,) as a bank measures them, from squared ones (n, k)."""

    @abstractmethod
    def _joined(self, layout: Layout, distance: Tensor) -> Tensor:
        """Patch scores of an image (gh, gw) from its distances in the order of its cells."""

    @abstractmethod
    def _compared(self, pixels: Tensor) -> Compared:
        """Patches of a view, pixels (3, h, w), and their nearest rows."""

    @property
    def _banks(self) -> list[MemoryBank]:
        """Every bank that references are put into; those that scores come from come first."""
        return [self.bank]

    @property
    def _patch_banks(self) -> list[MemoryBank]:
        """The banks of patches, which may have an index."""
        return [self.bank]

    @property
    def _index_neighbours(self) -> int:
        """How many nearest rows an index is to find."""
        return self.neighbours

    def _counts(self, layout: Layout) -> list[int]:
        """Patches of a view in each bank that scores come from."""
        return [layout.patches]

    def _looks(self, bank: int) -> list[Look]:
        """The ways in which references were looked at, in the order of their numbers."""
        return [Look()]

    def _neighbours(self, bank: int, left: int) -> int:
        """How many neighbours a patch is compared with, of the rows that are left in a bank."""
        return self.neighbours

    @property
    def _keeps_all(self) -> bool:
        """Whether the banks hold every upright patch that counts of every reference."""
        return True

    @property
    def _only_nearest(self) -> bool:
        """Whether the nearest row alone decides a patch's score and an image's."""
        return self.neighbours == 1

    def _bounded(self, found: Found, away: Tensor, gap: Tensor, nearest: Tensor) -> Found:
        """Upper bounds where the nearest rows are away, by way of them to rows that are not."""
        raise NotImplementedError  # where the banks hold everything, distances are measured anew

    def _restate(self, bank: int, part: MemoryBank, other: Detector) -> None:
        """Bring rows of another detector's bank to the scale of this one's."""

    def _must_agree(self) -> dict[str, Any]:
        """What two detectors that are merged must have in common."""
        net = self.load_network()
        free = (
            "backbone",
            "weights",
            "layers",
            "false_reject",
            "calibrate_on",
            "search_memory",
            "search",
        )
        options = {name: value for name, value in self.options().items() if name not in free}
        own = {"backbone": net.name, "digest of the backbone's weights": net.digest}
        mask = "on" if getattr(self, "masks_", False) else "off"
        return own | {"layers": net.layers} | options | {"foreground mask": mask}

    # -- learned state ------------------------------------------------------------------------

    def prepare_state(self) -> None:
        """Empty reaches and attic; the banks are there already."""
        super().prepare_state()
        self._begin()
        self._make_attic()

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor."""
        names = ("forgotten_", "history_", "calibrated_with_", "aside_", "reaches_")
        own = {name: getattr(self, name) for name in (*names, "search_note_", "index_report_")}
        return super().extra_state() | own

    @property
    def reaches_(self) -> list[dict[str, Any]]:
        """Plain values of the reaches."""
        return self.reaches.entries

    @reaches_.setter
    def reaches_(self, entries: list[dict[str, Any]]) -> None:
        self.reaches.entries = entries

    @property
    def _attics(self) -> list[MemoryBank]:
        attics = [cast(MemoryBank, attic) for attic in self.attic]
        for attic in attics:
            attic.dim = attic.rows.shape[1]  # a loaded bank's width is that of its rows
        return attics

    @property
    def promises(self) -> bool:
        """Where the search is exact: an index was trained with the reference that it scores."""
        return self.search == "exact" or self.search_note_ is not None

    @property
    def index_report(self) -> IndexReport | None:
        """What was measured of the index at the fit; None where the search is exact."""
        if self.index_report_ is None or not indexing.indexes(self):
            return None
        return IndexReport(**self.index_report_ | {"speed": self._index_speed})

    # -- where patches lie --------------------------------------------------------------------

    def _layout(self, size: Size) -> Layout:
        """How the views of an image lie in it."""
        net = self.load_network()
        if self.tile:
            return tiled_layout(size, self.tile, net)
        resolution = self.resolution or self._default_resolution(net)
        resized, seen = fit_size(*size, resolution, net.multiple, self.resize or net.resize)
        return whole_layout(size, resized, (0, 0, *seen), net.stride)

    def origin(self, row: int, bank: int = 0) -> Origin:
        """Where a row comes from; see :class:`~offnominal.detectors.growing.Growing`.

        Parameters
        ----------
        row : int
        bank : int
            Number of the bank, for methods that have several.
        """
        self._check_fitted()
        self._check_traced()
        rows = self._banks[bank]
        if not 0 <= row < len(rows):
            raise OptionError(f"row {row}: the bank has rows 0 to {len(rows) - 1}")
        owner, view, patch = (int(column[row]) for column in (rows.owner, rows.view, rows.patch))
        reference = next(r for r in self.references_ if r["owner"] == owner)
        layout = self._layout((reference["size"][0], reference["size"][1]))
        number, tile = divmod(view, len(layout.frames))
        return place(reference, layout, tile, patch, self._looks(bank)[number])

    def explain(
        self,
        image: ImageSource,
        worst: int = 5,
        references: Iterable[str | Path] = (),
    ) -> "Explanation":
        """Show what each of the worst patches was compared with."""
        from offnominal.detectors.explaining import explain

        self._check_fitted()
        self._check_traced()
        return explain(self, image, worst, references)

    # -- thresholds ---------------------------------------------------------------------------

    def _fitted(self, learned: dict[int, Learned], progress: Progress | None) -> None:
        """Build the index that is asked for, and set the thresholds of a fit."""
        indexing.build(self, progress)
        chosen = evenly(list(learned), self.calibrate_on)
        measuring.measure(self, {owner: learned[owner] for owner in chosen}, progress)
        measuring.set_thresholds(self)

    def _passing(self, images: Numbered) -> Numbered:
        for number, image in images:
            if self._sampled is not None:
                self._sampled.offer(number, image)
            yield number, image

    def _reach(self, owner: int, learned: Learned) -> Found:
        """Measure a reference against the others."""
        return measuring.reach(self, owner, learned)

    def _set_references(self, scored: list[Scored]) -> None:
        self._set_good(scored, "leave-one-out" if scored else "none")

    @property
    def _owners(self) -> list[int]:
        return [reference["owner"] for reference in self.references_]

    @property
    def calibration_note(self) -> str | None:
        """What should be known of held-out scores that were measured with another bank."""
        if self.calibrated_with_ is None:
            return None
        if self.calibration_ != "held-out":
            return (
                "the held-out images were scored by references that are forgotten, so the "
                "threshold is set from the references again; `offnominal calibrate` sets it anew"
            )
        if set(self._owners) == set(self.calibrated_with_):
            return None
        return (
            f"the held-out images were scored when there were {len(self.calibrated_with_)} "
            f"references, not {len(self._owners)}, so the threshold is on the cautious side; "
            "`offnominal calibrate` sets it anew"
        )

    # -- the estimator's contract -------------------------------------------------------------

    def fit(
        self,
        images: Iterable[ImageSource] = (),
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from images of good parts; see :class:`~offnominal.detectors.base.Detector`."""
        indexing.check_faiss(self)
        self._sampled = None if self.search == "exact" else Sampled()
        try:
            super().fit(images, on_error, progress)
            if self._sampled is not None:
                indexing.report(self, self._sampled, progress)
        finally:
            self._sampled = None
        self.history_ = []
        changing.note(self, "fit", self._owners, None)
        return self

    def calibrate(
        self,
        images: Iterable[ImageSource],
        false_reject: float | None = None,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Set the thresholds from held-out images; see :class:`Detector`.

        They stay in force while the bank grows, which can only make them too high, and are put
        aside while references that they were scored by are forgotten.
        """
        skipped = super().calibrate(images, false_reject, on_error, progress)
        self.calibrated_with_ = self._owners
        measuring.put_aside(self, [])
        return skipped

    def add(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
        when: datetime | None = None,
    ) -> Change:
        """Learn from more good images; see :class:`~offnominal.detectors.growing.Growing`."""
        self._check_grows("learn from single further images")
        return changing.add(self, images, on_error, progress, when)

    def forget(
        self,
        image: ImageSource | Sequence[ImageSource],
        when: datetime | None = None,
        progress: Progress | None = None,
    ) -> Change:
        """Give up a reference; see :class:`~offnominal.detectors.growing.Growing`."""
        self._check_grows("forget a single image")
        return changing.forget(self, image, when, progress)

    def undo(self, progress: Progress | None = None) -> Change:
        """Go back a step; see :class:`~offnominal.detectors.growing.Growing`."""
        self._check_grows("go back a step")
        return changing.undo(self, progress)

    def merge(
        self, other: Detector, when: datetime | None = None, progress: Progress | None = None
    ) -> Change:
        """Join another detector's bank; see :class:`~offnominal.detectors.growing.Growing`."""
        self._check_grows("take over what another detector has learned")
        return changing.merge(self, other, when, progress)

    def compact(self) -> Change:
        """Drop what was forgotten; see :class:`~offnominal.detectors.growing.Growing`."""
        self._check_grows("drop what was forgotten")
        return changing.compact(self)

    def history(self) -> list[Version]:
        """The steps so far; see :class:`~offnominal.detectors.growing.Growing`."""
        return changing.history(self) if self.history_ else super().history()

    def _check_grows(self, what: str) -> None:
        self._check_fitted()
        if self.no_growth is not None:
            raise OptionError(f"{self.method} cannot {what}: {self.no_growth}")
        self._check_traced()

    def _check_traced(self) -> None:
        if not all({"owner", "size"} <= set(reference) for reference in self.references_):
            raise OptionError(
                "this model comes from a version of Offnominal that did not note where each patch "
                "comes from: fit it anew"
            )
