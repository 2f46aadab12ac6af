"""Detectors that keep reference patches in a bank: they grow and shrink without another fit."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from offnominal.detectors.features import FeatureDetector, ViewScores, joined
from offnominal.detectors.memory_bank.origin import Origin
from offnominal.detectors.options import OnError, Progress, check_choice, check_range
from offnominal.detectors.references import Change, References, Rescored
from offnominal.errors import OptionError
from offnominal.images import ImageSource
from offnominal.memory import MemoryBank, leave_one_out
from offnominal.scoring import Scores, Size
from offnominal.views import View

__all__ = ["BankDetector", "Storage"]

Storage = Literal["fp32", "fp16", "int8"]


class BankDetector(FeatureDetector):
    """A detector with a memory bank, which says where its rows come from, grows and shrinks.

    A method writes :meth:`rows`, :meth:`patch_distance`, and where it needs to :meth:`judge`.
    The bank knows for every row that counts how far it is from the rows of all other references; thresholds
    follow from that, so that adding and forgetting take little. Rows of forgotten references stay
    in the file and are passed over, until :meth:`compact`.

    Parameters
    ----------
    neighbours : int
        The distance of a patch is the mean over this many nearest neighbours.
    calibrate_on : int
        0: every reference is scored to set the threshold. A number: at most so many, drawn at
        random, to save time with very many.
    search_memory : int
        Bound on the search's working memory, in MiB.
    storage : {"fp32", "fp16", "int8"}
        How the bank keeps its patches: in full, a half or a quarter of the size. Patches that are
        looked up are rounded in the same way, so that thresholds hold.
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`.
    """

    # Whether what was learned can be extended; otherwise why not.
    no_growth: str | None = None

    def __init__(
        self,
        neighbours: int = 1,
        calibrate_on: int = 0,
        search_memory: int = 512,
        storage: Storage = "fp32",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("neighbours", neighbours, least=1)
        check_range("calibrate_on", calibrate_on, least=0)
        check_range("search_memory", search_memory, least=1)
        check_choice("storage", storage, Storage)
        self.neighbours = neighbours
        self.calibrate_on = calibrate_on
        self.search_memory = search_memory
        self.storage: Storage = storage

    def begin(self) -> None:
        """An empty bank."""
        super().begin()
        self.bank = self.new_bank()
        # References that thresholds are set from.
        self.measured_: list[int] = []
        self._reference_geometry: dict[Size, list[View]] = {}

    def new_bank(self) -> MemoryBank:
        """An empty bank on the detector's device."""
        memory = self.search_memory * 2**20
        return MemoryBank(memory=memory, storage=self.storage).to(self._device)

    @property
    def banks(self) -> list[MemoryBank]:
        """Every bank that references are put into."""
        return [self.bank]

    @property
    def bank_rows(self) -> int:
        """Patches in the bank, but for those of forgotten references."""
        return self.bank.left()

    # -- what a method writes -----------------------------------------------------------------

    def rows(self, features: Any) -> Tensor:
        """Features of a view as the bank takes them, (n, dim)."""
        raise NotImplementedError(f"{type(self).__name__} must write rows")

    def patch_distance(self, squared: Tensor) -> Tensor:
        """Patch scores (n,) from squared distances to the nearest rows (n, k)."""
        raise NotImplementedError(f"{type(self).__name__} must write patch_distance")

    def judge(self, rows: Tensor, without: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Patch scores (n,) of rows (n, dim) of a view, and the weight of its image score."""
        count = min(self.neighbours, self.bank.left(without))
        return self.patch_distance(self.bank.search(rows, count, without)[0]), None

    @property
    def keeps_all(self) -> bool:
        """Whether the bank holds every upright patch that counts of every reference."""
        return True

    @property
    def nearest_decides(self) -> bool:
        """Whether the nearest row alone decides a patch's score and an image's."""
        return self.neighbours == 1

    # -- references without themselves --------------------------------------------------------

    def learn(self, number: int, image: np.ndarray) -> Any:
        """Put a reference into the bank, where it is found again: nothing else is kept."""
        super().learn(number, image)

    def finish(self, progress: Progress | None) -> None:
        """With a single reference there is nothing to measure yet, but there may be."""
        if len(self.references) == 1 and self.keeps_all:
            self.measured_ = [0]
            leave_one_out.measure(self.bank, [0])

    def score_reference(self, number: int, kept: Any) -> Scores:
        """Score a reference against the bank without its own rows.

        Distances to the nearest row only shrink as a bank grows, so these scores are at or above
        those against the whole, and the conformal promise holds.
        """
        self.measured_ = sorted({*self.measured_, number})
        if kept is not None:
            return super().score_reference(number, kept)
        if self.nearest_decides:
            leave_one_out.measure(self.bank, [number])
        return self.score_from_bank(number)

    def score_from_bank(self, number: int) -> Scores:
        """A reference's scores from what the bank holds of it."""
        views = self.views_of(self.references[number].size)
        found = [self.view_from_bank(number, place, view) for place, view in enumerate(views)]
        return joined(views, found)

    def view_from_bank(self, number: int, place: int, view: View) -> ViewScores:
        """Scores of an upright view of a reference, without its own rows."""
        own = self.bank.rows_of(number)
        own = own[(self.bank.view[own] == place) & self.bank.counts[own]]
        grid = self.grid_of(view)
        patches = torch.zeros(grid[0] * grid[1], device=own.device)
        weight = None
        if len(own):
            if self.nearest_decides:
                scores = self.patch_distance(self.bank.loo_distance[own][:, None])
            else:
                scores, weight = self.judge(self.bank.take(own), number)
            patches[self.bank.patch[own].long()] = scores
        return ViewScores(patches.reshape(grid), None, weight)

    def grid_of(self, view: View) -> Size:
        """Patches of a view."""
        stride = self.load_network().stride
        return view.size[0] // stride, view.size[1] // stride

    # -- growing and shrinking ----------------------------------------------------------------

    @torch.inference_mode()
    def add(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
        when: datetime | None = None,
    ) -> Change:
        """Learn from more good images at once, without looking at the earlier ones again.

        Meant for false alarms that somebody confirmed to be good. The thresholds are set anew, the
        added images among those that they come from.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
            Exact copies of references, or of one another, are left out and reported.
        on_error : callable or None
            Called with each unreadable image, which is left out; None: it is raised, and the
            detector stays as it was.
        progress : callable or None
            Called with the stage and the number of images that it has done.
        when : datetime or None
            Noted in the history.
        """
        before = self._before("learn from single further images")
        first = len(self.references)
        earlier = self.bank.loo_distance.clone(), self.bank.loo_reference.clone()
        known: list[str] = []
        kept: dict[int, Any] = {}
        try:
            for number, image in self.references.take_in(self.read(images, on_error), known):
                kept[number] = self.learn(number, image)
                if progress:
                    progress("features", len(kept))
            if not kept:
                return before.change("add", [], known)
            how = self._grown(list(kept), kept, progress)
        except BaseException:
            self._drop_rows(first)
            self.bank.loo_distance.copy_(earlier[0])
            self.bank.loo_reference.copy_(earlier[1])
            del self.references[first:]
            self.measured_ = [number for number in self.measured_ if number < first]
            raise
        self.references.note("add", kept, self.bank_rows, when)
        return before.change("add", kept, known, how)

    @torch.inference_mode()
    def forget(
        self,
        image: ImageSource | Sequence[ImageSource],
        when: datetime | None = None,
        progress: Progress | None = None,
    ) -> Change:
        """Give up what was learned from a reference, or several, and set the thresholds anew.

        What is given up stays in the saved file, so that :meth:`undo` can bring it back, until
        :meth:`compact`.

        Parameters
        ----------
        image : path, digest, array or PIL image, or a sequence of them
            The name that the reference was learned under, or the end of it; the beginning of its
            digest; or the image itself.
        when : datetime or None
            Noted in the history.
        progress : callable or None
            Called with the stage and the number of references that it has done.

        Raises
        ------
        OptionError
            If there is no such reference, several, or no reference would be left.
        """
        before = self._before("forget a single image")
        single = isinstance(image, str | Path | np.ndarray) or hasattr(image, "getexif")
        several: Any = [image] if single else image
        found = {self.references.find(one, self.sixteen_bit) for one in several}
        if not found:
            raise OptionError("name at least one reference to forget")
        if found == set(self.references.active):
            raise OptionError(
                f"{self.references[min(found)].file}: no reference would be left to compare with; "
                "add others first, or fit anew"
            )
        numbers = sorted(found)
        self._activate(numbers, False)
        how = self._shrunk(numbers, progress)
        self.references.note("forget", numbers, self.bank_rows, when)
        return before.change("forget", numbers, how=how)

    @torch.inference_mode()
    def undo(self, progress: Progress | None = None) -> Change:
        """Go back to before the last step of :meth:`history`, exactly.

        Parameters
        ----------
        progress : callable or None
            Called with the stage and the number of references that it has done.

        Raises
        ------
        OptionError
            If there is none.
        """
        before = self._before("go back a step")
        if len(self.references.steps) < 2:
            start = self.references.steps[0].what
            raise OptionError(
                f"nothing to undo: the history begins with {start}, and no step has followed"
            )
        step = self.references.steps.pop()
        names = [self.references[number].file for number in step.numbers]
        if step.what == "forget":
            self._activate(step.numbers, True)
            how = self._grown(step.numbers, {}, progress)
        else:
            first = min(step.numbers)
            self._drop_rows(first)
            del self.references[first:]
            self.measured_ = [number for number in self.measured_ if number < first]
            how = self._shrunk(step.numbers, progress)
        return before.change("undo", names, how=how)

    @torch.inference_mode()
    def compact(self) -> Change:
        """Drop what was forgotten for good, and with it the steps that :meth:`undo` could take."""
        before = self._before("drop what was forgotten")
        kept = self.references.active
        names = [one.file for one in self.references if not one.active]
        new = {old: number for number, old in enumerate(kept)}
        table = torch.tensor([new.get(old, -1) for old in range(len(self.references))])
        for bank in self.banks:
            bank.compact()
            for column in (bank.reference, bank.loo_reference):
                moved = table.to(column)[column.clamp(min=0).long()]
                column.copy_(torch.where(column >= 0, moved, column))
        self.good.renumber(new)
        self.measured_ = [new[old] for old in self.measured_ if old in new]
        self.references = References(self.references[old] for old in kept)
        self.references.note("compact", range(len(kept)), self.bank_rows)
        return before.change("compact", names)

    def _activate(self, numbers: Iterable[int], flag: bool) -> None:
        for number in numbers:
            self.references[number].active = flag
            for bank in self.banks:
                bank.active(number, flag)

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what was learned; rows of forgotten references are passed over."""
        super().restore(header, tensors)
        forgotten = [n for n, one in enumerate(self.references) if not one.active]
        self._activate(forgotten, False)

    def _drop_rows(self, first: int) -> None:
        """Drop the rows of the last references."""
        for bank in self.banks:
            bank.truncate(int((bank.reference < first).sum()))

    def _grown(
        self, new: Sequence[int], kept: dict[int, Any], progress: Progress | None
    ) -> Rescored:
        """Set the thresholds after references came, or came back."""
        others = self._measured_but(new)
        if not self.keeps_all:
            scored = {n: self.score_reference(n, kept[n]) for n in new if n in kept}
            return self._kept_scores(others, scored)
        self.measured_ = sorted({*self.measured_, *(n for n in new if n in kept)})
        if self.nearest_decides:
            leave_one_out.grown(self.bank, [n for n in new if n in self.measured_], progress)
        return self._scored_anew(others)

    def _shrunk(self, gone: Sequence[int], progress: Progress | None) -> Rescored:
        """Set the thresholds after references went."""
        others = self._measured_but(gone)
        if not self.keeps_all:
            return self._kept_scores(others, {})
        if self.nearest_decides:
            leave_one_out.shrunk(self.bank, gone, progress)
        return self._scored_anew(others)

    def _measured_but(self, numbers: Sequence[int]) -> list[int]:
        active = set(self.references.active) - set(numbers)
        return [number for number in self.measured_ if number in active]

    def _scored_anew(self, others: list[int]) -> Rescored:
        active = set(self.references.active)
        measured = [number for number in self.measured_ if number in active]
        scored = {n: self.score_from_bank(n) for n in measured} if len(active) > 1 else {}
        self.set_references(scored)
        how: Rescored = "affected" if self.nearest_decides else "all"
        return how if others else "none"

    def _kept_scores(self, others: list[int], scored: dict[int, Scores]) -> Rescored:
        """A bank of a part of the patches cannot score its references again: scores stay."""
        old = self.good.references.of(range(len(self.references)))
        known = dict(zip(old.numbers, old.scores, strict=True))
        self.set_references(known | scored)
        return "kept" if others else "none"

    def _before(self, what: str) -> "_Before":
        self.check_fitted()
        if self.no_growth is not None:
            raise OptionError(f"{self.method} cannot {what}: {self.no_growth}")
        self.load_network()
        return _Before(self)

    # -- where rows come from -----------------------------------------------------------------

    def nearest(self, features: Any) -> tuple[Tensor, Tensor]:
        """For each patch of a view: distance to the nearest row (n,), and its number (n,)."""
        squared, index = self.bank.search(self.rows(features), 1)
        return self.patch_distance(squared), index[:, 0]

    def row_place(self, row: int) -> tuple[int, View, Size, int]:
        """Reference, view, grid of the view, and place in the grid that a row comes from."""
        bank = self.bank
        number, place = int(bank.reference[row]), int(bank.view[row])
        size = self.references[number].size
        if size not in self._reference_geometry:
            black = np.zeros((*size, 3), np.uint8)
            self._reference_geometry = {size: self.reference_views(black)}
        view = self._reference_geometry[size][place]
        return number, view, self.grid_of(view), int(bank.patch[row])

    def origin(self, row: int) -> Origin:
        """Where a row of the memory bank comes from.

        Raises
        ------
        OptionError
            If there is no such row.
        """
        self.check_fitted()
        if not 0 <= row < len(self.bank):
            raise OptionError(f"row {row}: the bank has rows 0 to {len(self.bank) - 1}")
        number, view, grid, patch = self.row_place(row)
        return Origin.of(self.references[number], view, grid, patch)


class _Before:
    """What a change is told against."""

    def __init__(self, detector: BankDetector) -> None:
        self.detector = detector
        self.references = len(detector.references.active)
        self.rows = detector.bank_rows
        self.threshold = detector.threshold

    def change(
        self,
        what: Literal["add", "forget", "undo", "compact"],
        images: Iterable[int | str],
        known: Iterable[str] = (),
        how: Rescored = "none",
    ) -> Change:
        now = self.detector
        names = [one if isinstance(one, str) else now.references[one].file for one in images]
        return Change(
            what,
            tuple(names),
            tuple(known),
            (self.references, len(now.references.active)),
            (self.rows, now.bank_rows),
            (self.threshold, now.threshold),
            "none" if now.calibration.kind == "held-out" else how,
        )
