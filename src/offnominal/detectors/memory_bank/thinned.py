"""Banks that keep a coreset of the patches, and what they would keep without a reference.

Roth, Pemula, Zepeda, Schölkopf, Brox and Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022 (arXiv 2106.08265), section 3.2.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import check_range
from offnominal.detectors.features import ViewScores, joined
from offnominal.detectors.memory_bank.base import BankDetector
from offnominal.detectors.options import LeaveOneOut, Progress
from offnominal.memory import MemoryBank
from offnominal.memory.coreset import cover, farthest_rows, select_coreset
from offnominal.memory.storage import as_stored
from offnominal.scoring import Scores

__all__ = ["ThinnedBank"]

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]


class ThinnedBank(BankDetector):
    """A detector whose memory bank is thinned to a coreset once all references are there.

    Parameters
    ----------
    coreset : float
        Share of the patches that the bank keeps, on (0, 1]. The paper compares 0.25, 0.1 and 0.01;
        1 keeps all.
    project : int
        Length that rows are projected to at random while the coreset is selected (section 3.2), 128
        in the released code; 0: not at all, which costs little here and keeps a better selection.
    seed : int
        Of the coreset's first row and of that projection.
    **options
        See :class:`~offnominal.detectors.memory_bank.base.BankDetector`.

    Notes
    -----
    While fitting, every patch of every reference is held in float32: 4 MiB for a square image with
    the defaults, or less where the network is narrow. The fitted bank is ``coreset`` times that,
    and one such bank more is held while the threshold is set.

    **Threshold.** With ``coreset=1`` each reference is scored against the bank without its own
    entries: exact leave-one-out, and the false-reject rate is promised, as for AnomalyDINO. A
    coreset without a reference's entries has gaps that a new part does not meet: others' patches
    that those entries stood for. So the gaps are filled before the reference is scored: of these
    patches the farthest is taken, and again, until all lie as near to an entry as every patch does
    to the coreset's. That is close to what fitting without the reference gives, but not the same,
    so the threshold is called approximate. Were a new part scored by each of these models, at most
    twice the rate asked for would be rejected at worst, and about the rate in practice (Barber,
    Candès, Ramdas and Tibshirani, 2021, theorem 1); it is scored by the model of all references,
    which knows more. ``calibrate`` with further good images gives a threshold with a promise.

    **Growing.** Of an image that is added, the share ``coreset`` of its patches joins the bank,
    those farthest from it. The other references keep the scores that they had; where ``coreset`` is
    1, they are scored anew.
    """

    def __init__(
        self,
        coreset: float = 0.1,
        project: int = 0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("coreset", coreset, above=0, most=1)
        check_range("project", project, least=0)
        check_range("seed", seed, whole=True, least=0, below=2**32)
        self.coreset = coreset
        self.project = project
        self.seed = seed

    def begin(self) -> None:
        """An empty bank, and one for all patches of the references, while a fit lasts."""
        super().begin()
        self._all = MemoryBank().to(self._device)
        self._stands_in = np.empty(
            0, np.int32
        )  # of each of those patches, whose entry is nearest to it
        self._radius = 0.0  # squared: no patch is farther from its nearest entry
        self._without: tuple[int, Self] | None = None

    def release(self) -> None:
        """The bank is thinned."""
        self._all, self._stands_in, self._radius = MemoryBank(), np.empty(0, np.int32), 0.0
        self._without = None

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Only of the whole bank: see the class's notes on the threshold."""
        return super().leave_one_out if self.coreset == 1 else "approximate"

    @property
    def keeps_all(self) -> bool:
        """Whether there is no coreset."""
        return self.coreset == 1

    def learn(self, number: int, image: np.ndarray) -> Any:
        """Keep all of a reference's patches for the fit, or put a further one's in the bank."""
        views = self.views(image)
        self.match_parts(views[0].pixels)
        looked = self.looked_at(number) if self.looked_at else self.look(number, image)
        found = [self.rows(features) for features in looked]
        if self.fitted:
            rows = np.concatenate(found)
            chosen = np.arange(len(rows))
            if not self.keeps_all:
                count = max(1, int(len(rows) * self.coreset))
                chosen = np.sort(farthest_rows(rows, self.bank, count))
            self._put(number, found, chosen)
            return None if self.keeps_all else found
        if number == 0 and self.expected:
            self._all.reserve(self.expected * sum(map(len, found)))
        for place, rows in enumerate(found):
            self._all.add(rows, number, place, counts=self.keeps_all)
        return None

    def finish(self, progress: Progress | None) -> None:
        """Thin the references' patches to a coreset, and find what each entry stands for."""
        every = self._all
        rows = every.take(slice(None))
        there = self.candidates(rows)
        chosen = self.thin(rows, there, progress)
        same = self.storage == every.storage and self.search == "exact"
        if len(chosen) == len(every) and same:
            every.memory = self.bank.memory
            self.bank = every.to(self._device)  # made before the network had settled on one
        else:
            for number in range(len(self.references)):
                own = every.rows_of(number)
                kept = chosen[(chosen >= own[0]) & (chosen <= own[-1])] - own[0]
                self._put(number, self._rows_by_view(number), kept)
        if not self.keeps_all and len(self.references) > 1:
            self._survey(there, progress)
        super().finish(progress)

    def candidates(self, rows: Floats) -> Whole:
        """Numbers, ascending, of the references' rows (n, dim) that the bank may keep."""
        return np.arange(len(rows))

    def thin(self, rows: Floats, there: Whole, progress: Progress | None) -> Whole:
        """Numbers of the rows that the bank keeps, ascending: an image's lie together (3.2)."""
        count = max(1, int(len(rows) * self.coreset))
        if count >= len(there):
            return there
        project = self.project or None
        among = rows if len(there) == len(rows) else rows[there]
        found = select_coreset(
            among,
            count,
            seed=self.seed,
            project=project,
            device=str(self._device),
            progress=progress,
        )
        return there[np.sort(found)]

    def _survey(self, there: Whole, progress: Progress | None) -> None:
        """Find the entry nearest to every patch, and how far the farthest patch is."""
        self._stands_in = np.full_like(self._all.reference, -1)
        for number in range(len(self.references)):
            own = there[self._all.reference[there] == number]
            if len(own):
                squared, entry = self.bank.search(self._all.take(own))
                self._stands_in[own] = self.bank.reference[entry[:, 0]]
                self._radius = max(self._radius, float(squared.max()))
            if progress:
                progress("coverage", number + 1)

    def _put(self, number: int, views: list[Floats], chosen: Whole) -> None:
        """Put some of an image's rows into the bank: numbers over all views, ascending."""
        start = 0
        for place, rows in enumerate(views):
            patch = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
            self.bank.add(rows[patch], number, place, patch, counts=self.keeps_all)
            start += len(rows)

    def _rows_by_view(self, number: int) -> list[Floats]:
        own = self._all.rows_of(number)
        ends = np.cumsum(np.bincount(self._all.view[own]))[:-1]
        return np.split(self._all.take(slice(int(own[0]), int(own[-1]) + 1)), ends)

    # -- references without themselves --------------------------------------------------------

    def score_reference(self, number: int, kept: Any) -> Scores:
        """Score all patches of a reference by a model that does not know it.

        While a fit lasts that is :meth:`without`; of an image that was added, the bank without what
        it gave, which was chosen to join the others and left no gaps among them.
        """
        if self.keeps_all:
            return super().score_reference(number, None)
        self.measured_ = sorted({*self.measured_, number})
        views = self.views_of(self.references[number].size)
        found = []
        for view, rows in zip(views, kept or self._rows_by_view(number), strict=True):
            scores, weight = self.judge(rows, number)
            found.append(ViewScores(scores.reshape(self.grid_of(view)), None, weight))
        return joined(views, found)

    def without(self, number: int) -> Self | None:
        """What the coreset would be without a reference, while a fit lasts; otherwise None.

        One is kept at a time.
        """
        if not len(self._stands_in):
            return None
        if self._without is None or self._without[0] != number:
            self._without = None  # not two at once
            every, bank = self._all, self.bank
            alone = (self._stands_in == number) & (every.reference != number)
            patches = np.flatnonzero(alone)
            rows = as_stored(every.take(patches), self.storage)
            near = np.full(len(rows), np.inf, np.float32)
            if bank.left(number) and len(rows):
                near = bank.search(rows, 1, number)[0][:, 0]
            gaps = patches[cover(rows, near, self._radius)]
            others = np.flatnonzero(bank.reference != number)
            self._without = number, self.model_of(others, gaps)
        return self._without[1]

    def model_of(self, entries: Whole, patches: Whole) -> Self:
        """A model of some of the bank's entries and of some of the references' patches."""
        model = self.twin({})
        model.bank.add(np.concatenate([self.bank.take(entries), self._all.take(patches)]))
        return model
