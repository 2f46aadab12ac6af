"""Detectors that keep reference patches in a bank: they grow and shrink without another fit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offnominal.detectors.memory_bank.origin import Origin
from offnominal.detectors.memory_bank.scores import BankScores
from offnominal.detectors.options import OnError, Progress, ShowProgress
from offnominal.detectors.references import Change, References, Rescored, Standing, What
from offnominal.errors import OptionError
from offnominal.images import Channels
from offnominal.memory import leave_one_out
from offnominal.progress import shown
from offnominal.scoring import Scores, Size
from offnominal.sources import ImageSources, several
from offnominal.views import View

__all__ = ["BankDetector"]


class BankDetector(BankScores):
    """A detector with a memory bank, which grows and shrinks, and says where its rows come from.

    Rows of forgotten references stay in the file and are passed over, until :meth:`compact`.

    Parameters
    ----------
    **options
        See :class:`~offnominal.detectors.memory_bank.scores.BankScores`.
    """

    # Whether what was learned can be extended; otherwise why not.
    no_growth: str | None = None

    def begin(self) -> None:
        """An empty bank."""
        super().begin()
        self._reference_geometry: dict[Size, list[View]] = {}

    # -- growing and shrinking ----------------------------------------------------------------

    def add(
        self,
        images: ImageSources,
        on_error: OnError | None = None,
        progress: ShowProgress = None,
        when: datetime | None = None,
        channels: Channels = "rgb",
    ) -> Change:
        """Learn from more good images at once, without looking at the earlier ones again.

        Meant for false alarms that somebody confirmed to be good. The thresholds are set anew, the
        added images among those that they come from.

        Parameters
        ----------
        images : paths, uint8 or uint16 arrays, PIL images, tensors, or a single one
            As :meth:`~offnominal.detectors.base.Detector.fit` has them. Exact copies of references,
            or of one another, are left out and reported.
        on_error : callable or None
            Called with each unreadable image, which is left out; None: it is raised, and the
            detector stays as it was.
        progress : callable, bool or None
            Called with the stage and the number of images that it has done; True: a bar.
        when : datetime or None
            Noted in the history.
        channels : {"rgb", "bgr"}
            Order of the channels of arrays and tensors.
        """
        before = self._before("learn from single further images")
        known: list[str] = []
        kept: dict[int, Any] = {}
        found = several(images, channels)
        with shown(progress, found) as told, self._all_or_nothing():
            for number, image, _ in self.references.take_in(self.read(found, on_error), known):
                kept[number] = self.learn(number, image)
                if told:
                    told("features", len(kept))
            if not kept:
                return self._change(before, "add", [], known)
            how = self._grown(list(kept), kept, told)
            self.references.note("add", kept, self.bank_rows, when)
        return self._change(before, "add", self.references.names(kept), known, how)

    def forget(
        self,
        image: ImageSources,
        when: datetime | None = None,
        progress: ShowProgress = None,
        channels: Channels = "rgb",
    ) -> Change:
        """Give up what was learned from a reference, or several, and set the thresholds anew.

        What is given up stays in the saved file, so that :meth:`undo` can bring it back, until
        :meth:`compact`.

        Parameters
        ----------
        image : path, digest, array, PIL image or tensor, or several of them
            The name that the reference was learned under, or the end of it; the beginning of its
            digest; or the image itself.
        when : datetime or None
            Noted in the history.
        progress : callable, bool or None
            Called with the stage and the number of references that it has done; True: a bar.
        channels : {"rgb", "bgr"}
            Order of the channels of arrays and tensors.

        Raises
        ------
        OptionError
            If there is no such reference, several, or no reference would be left.
        """
        before = self._before("forget a single image")
        found = {self.references.find(one, self.image_of) for one in several(image, channels)}
        if not found:
            raise OptionError("name at least one reference to forget")
        if found == set(self.references.active):
            raise OptionError(
                f"{self.references[min(found)].file}: no reference would be left to compare with; "
                "add others first, or fit anew"
            )
        numbers = sorted(found)
        with shown(progress, numbers) as told, self._all_or_nothing():
            self._activate(numbers, False)
            how = self._shrunk(numbers, told)
            self.references.note("forget", numbers, self.bank_rows, when)
        return self._change(before, "forget", self.references.names(numbers), how=how)

    def undo(self, progress: ShowProgress = None) -> Change:
        """Go back to before the last step of :meth:`history`, exactly.

        Parameters
        ----------
        progress : callable, bool or None
            Called with the stage and the number of references that it has done; True: a bar.

        Raises
        ------
        OptionError
            If there is none.
        """
        self.check_fitted()
        if self.references.steps[-1].what == "calibrate":
            return self._undo_calibration()
        before = self._before("go back a step")
        if len(self.references.steps) < 2:
            start = self.references.steps[0].what
            raise OptionError(
                f"nothing to undo: the history begins with {start}, and no step has followed"
            )
        with shown(progress, self.references) as told, self._all_or_nothing():
            step = self.references.steps.pop()
            names = self.references.names(step.numbers)
            self._activate(step.numbers, step.what == "forget")
            if step.what == "forget":
                how = self._grown(step.numbers, {}, told)
            else:
                how = self._shrunk(step.numbers, told)
        if step.what == "add":
            self._drop(min(step.numbers))
        return self._change(before, "undo", names, how=how)

    def compact(self) -> Change:
        """Drop what was forgotten for good, and with it the steps that :meth:`undo` could take."""
        before = self._before("drop what was forgotten")
        kept = self.references.active
        names = self.references.names(n for n, one in enumerate(self.references) if not one.active)
        new = {old: number for number, old in enumerate(kept)}
        table = np.array([new.get(old, -1) for old in range(len(self.references))])
        for bank in self.banks:
            bank.compact()
            for column in (bank.reference, bank.loo_reference):
                known = column >= 0
                column[known] = table[column[known]]
        self.good.renumber(new)
        self.measured_ = [new[old] for old in self.measured_ if old in new]
        self.references = References(self.references[old] for old in kept)
        self.references.note("compact", range(len(kept)), self.bank_rows)
        return self._change(before, "compact", names)

    def _activate(self, numbers: Iterable[int], flag: bool) -> None:
        for number in numbers:
            self.references[number].active = flag
            for bank in self.banks:
                bank.active(number, flag)

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was learned; rows of forgotten references are passed over."""
        super().restore(header, arrays)
        forgotten = [n for n, one in enumerate(self.references) if not one.active]
        self._activate(forgotten, False)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A step that breaks off leaves everything as it was."""
        count, active = len(self.references), self.references.active
        steps, measured = list(self.references.steps), self.measured_
        earlier = self.bank.loo_distance.copy(), self.bank.loo_reference.copy()
        good = self.good.references
        try:
            yield
        except BaseException:
            self.good.references, self.references.steps, self.measured_ = good, steps, measured
            self._drop(count)
            self._activate(range(count), False)
            self._activate(active, True)
            self.bank.loo_distance[:], self.bank.loo_reference[:] = earlier
            self.good.choose(active)
            raise

    def _drop(self, first: int) -> None:
        """Drop the last references for good."""
        for bank in self.banks:
            bank.truncate(int((bank.reference < first).sum()))
        del self.references[first:]
        self.measured_ = [number for number in self.measured_ if number < first]
        self.good.drop(first, self.references.active)

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
            leave_one_out.grown(self.bank, new, progress)
            for number in set(new) - set(self.measured_):  # it sets no threshold
                rows = self.bank.rows_of(number)
                self.bank.loo_distance[rows] = np.inf
                self.bank.loo_reference[rows] = leave_one_out.UNMEASURED
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
        old = self.good.references
        known = dict(zip(old.numbers, old.scores, strict=True))
        self.set_references(known | scored)
        return "kept" if others else "none"

    def _before(self, what: str) -> Standing:
        """What a step is told against, if there can be one."""
        self.check_fitted()
        if self.no_growth is not None:
            raise OptionError(f"{self.method} cannot {what}: {self.no_growth}")
        if self.known_defects is not None and self.known_defects.layer:
            raise OptionError(
                f"cannot {what}: known defects were weighed against the good images that it has, "
                "and change scores; fit anew with --defects and all good images"
            )
        self.load_network()
        return self.standing()

    def _change(
        self,
        before: Standing,
        what: What,
        images: Iterable[str],
        known: Iterable[str] = (),
        how: Rescored = "none",
    ) -> Change:
        if self.calibration.kind == "held-out":
            how = "none"
        return Change.between(before, self.standing(), what, images, known, how)

    # -- where rows come from -----------------------------------------------------------------

    def nearest(self, features: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
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
