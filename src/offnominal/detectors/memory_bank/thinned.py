"""Banks that keep a coreset of the patches, and thresholds from folds that do not know a reference.

Roth, Pemula, Zepeda, Schölkopf, Brox and Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022 (arXiv 2106.08265), section 3.2.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from offnominal.detectors.features import ViewScores, joined
from offnominal.detectors.memory_bank.base import BankDetector
from offnominal.detectors.options import LeaveOneOut, Progress, check_range
from offnominal.detectors.references import References
from offnominal.memory import MemoryBank
from offnominal.memory.coreset import farthest_rows, select_coreset
from offnominal.scoring import Scores

__all__ = ["ThinnedBank"]


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
    folds : int
        In how many parts the references are dealt to set the threshold, each part scored by a
        model of the others; at least 2. Where there are fewer references, each is a part.
    **options
        See :class:`~offnominal.detectors.memory_bank.base.BankDetector`.

    Notes
    -----
    While fitting, every patch of every reference is held in float32: 4 MiB for a square image
    with the defaults, or less where the network is narrow. The fitted bank is
    ``coreset`` times that, and one such bank more is held while the threshold is set.

    **Threshold.** With ``coreset=1`` each reference is scored against the bank without its own
    entries: exact leave-one-out, and the false-reject rate is promised, as for AnomalyDINO. A
    coreset without a reference's own entries has gaps that a new part does not meet, since other
    patches would have been chosen in their place. So the references are dealt into ``folds``, and
    each is scored against a coreset of the other folds' patches: cross-conformal prediction (Vovk,
    2015). If a new part were scored by these models too, at most about twice the rate asked for
    would be rejected at worst, and about the rate in practice (Barber, Candès, Ramdas and
    Tibshirani, 2021, theorem 4). It is scored by the model of all references, which knows more, so
    its score tends to be lower. ``calibrate`` with further good images gives a threshold with a
    promise. The folds take as long as ``(folds - 1) ** 2 / folds`` more coresets.

    **Growing.** Of an image that is added, the share ``coreset`` of its patches joins the bank,
    those farthest from it. The other references keep the scores that they had; where ``coreset`` is
    1, they are scored anew.
    """

    fewest: ClassVar[int] = 1  # images that a model can be made of

    def __init__(
        self,
        coreset: float = 0.1,
        project: int = 0,
        seed: int = 0,
        folds: int = 5,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("coreset", coreset, above=0, most=1)
        check_range("project", project, least=0)
        check_range("seed", seed, whole=True, least=0, below=2**32)
        check_range("folds", folds, whole=True, least=2)
        self.coreset = coreset
        self.project = project
        self.seed = seed
        self.folds = folds

    def begin(self) -> None:
        """An empty bank, and one for all patches of the references, while a fit lasts."""
        super().begin()
        self._all = MemoryBank().to(self._device)
        self._fold: tuple[int, Self] | None = None
        self._progress: Progress | None = None

    def release(self) -> None:
        """The bank is thinned."""
        self._all = MemoryBank()
        self._fold = self._progress = None

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Only of the whole bank: see the class's notes on the threshold."""
        return "exact" if self.coreset == 1 else "approximate"

    @property
    def keeps_all(self) -> bool:
        """Whether there is no coreset."""
        return self.coreset == 1

    def learn(self, number: int, image: np.ndarray) -> Any:
        """Keep all of a reference's patches for the fit, or put a further one's in the bank."""
        views = self.views(image)
        found = [self.rows(self.embed(torch.from_numpy(view.pixels))) for view in views]
        if self.fitted:
            rows = torch.cat(found)
            chosen = torch.arange(len(rows), device=rows.device)
            if not self.keeps_all:
                count = max(1, int(len(rows) * self.coreset))
                chosen = farthest_rows(rows, self.bank, count).sort().values
            self._put(number, found, chosen)
            return None if self.keeps_all else found
        if number == 0 and self.expected:
            self._all.reserve(self.expected * sum(map(len, found)))
        for place, rows in enumerate(found):
            self._all.add(rows, number, place, counts=self.keeps_all)
        return None

    def finish(self, progress: Progress | None) -> None:
        """Thin the references' patches to a coreset."""
        self._progress = progress
        self._fill(self._all, range(len(self.references)), progress)
        super().finish(progress)

    def _fill(self, every: MemoryBank, numbers: Sequence[int], progress: Progress | None) -> None:
        """Take a coreset of what some of the references showed."""
        chosen = self.choose(every.take(slice(None)), every.is_of(numbers), progress)
        if len(chosen) == len(every) and self.storage == every.storage:
            every.memory = self.bank.memory
            self.bank = every
            return
        for number in numbers:
            own = every.rows_of(number)
            kept = chosen[(chosen >= own[0]) & (chosen <= own[-1])] - own[0]
            self._put(number, _rows_by_view(every, number), kept)

    def choose(self, rows: Tensor, among: Tensor, progress: Progress | None) -> Tensor:
        """Numbers of the rows that the bank keeps, ascending (section 3.2).

        ``rows`` (n, dim) are those of all references, ``among`` (n,) bool those to choose from.
        """
        return self.thin(rows, among, max(1, int(int(among.sum()) * self.coreset)), progress)

    def thin(self, rows: Tensor, among: Tensor, count: int, progress: Progress | None) -> Tensor:
        """Numbers of a coreset of some rows, ascending: then an image's rows lie together."""
        left = among.nonzero()[:, 0]
        if count >= len(left):
            return left
        project = self.project or None
        found = select_coreset(
            rows, count, seed=self.seed, project=project, among=among, progress=progress
        )
        return found.sort().values

    def _put(self, number: int, views: list[Tensor], chosen: Tensor) -> None:
        """Put some of an image's rows into the bank: numbers over all views, ascending."""
        start = 0
        for place, rows in enumerate(views):
            patch = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
            self.bank.add(rows[patch], number, place, patch, counts=self.keeps_all)
            start += len(rows)

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
        for view, rows in zip(views, kept or _rows_by_view(self._all, number), strict=True):
            scores, weight = self.judge(rows, number)
            found.append(ViewScores(scores.reshape(self.grid_of(view)), None, weight))
        return joined(views, found)

    def without(self, number: int) -> Self | None:
        """The model of the folds that a reference is not in; None: there can be none.

        That is what a fit to them gives, from the same features. One is kept at a time.
        """
        fold = number % self.folds
        others = [n for n in range(len(self.references)) if n % self.folds != fold]
        if self.keeps_all or not len(self._all) or len(others) < self.fewest:
            return None
        if self._fold is None or self._fold[0] != fold:
            self._fold = None  # not two at once
            model = self.twin({})
            model.references = References(self.references[n] for n in others)
            model._fill(self._all, others, self._progress)
            self._fold = fold, model
        return self._fold[1]


def _rows_by_view(bank: MemoryBank, number: int) -> list[Tensor]:
    """All rows of a reference, those of each view together."""
    own = bank.rows_of(number)
    counts = torch.bincount(bank.view[own].long()).tolist()
    return list(torch.split(bank.take(slice(int(own[0]), int(own[-1]) + 1)), counts))
