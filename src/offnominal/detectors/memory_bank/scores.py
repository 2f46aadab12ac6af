"""Scores by a memory bank: of images, and of its references without their own rows."""

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import FeatureDetector, ViewScores, joined
from offnominal.detectors.learned_state import must
from offnominal.detectors.options import LeaveOneOut, Progress
from offnominal.errors import ModelFileError
from offnominal.memory import MemoryBank, leave_one_out
from offnominal.memory.search.ivf import IVFBank, parse_search
from offnominal.scoring import Scores, Size
from offnominal.views import View

__all__ = ["BankScores", "Storage"]

Floats = NDArray[np.float32]
Storage = Literal["fp32", "fp16", "int8"]


class BankScores(FeatureDetector):
    """A detector that scores patches by the rows of a memory bank.

    A method writes :meth:`rows`, :meth:`patch_distance`, and where it needs to :meth:`judge`. The
    bank knows for every row that counts how far it is from the rows of all other references, and
    thresholds follow from that.

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
    search : str
        ``exact``; or ``ivf,recall=0.99``, by an inverted file of FAISS that finds the nearest patch
        for that share of the patches, for banks of millions.
    **options
        See :class:`~offnominal.detectors.features.FeatureDetector`.
    """

    speaks_arrays = True

    def __init__(
        self,
        neighbours: int = 1,
        calibrate_on: int = 0,
        search_memory: int = 512,
        storage: Storage = "fp32",
        search: str = "exact",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("neighbours", neighbours, whole=True, least=1)
        check_range("calibrate_on", calibrate_on, whole=True, least=0)
        check_range("search_memory", search_memory, whole=True, least=1)
        check_choice("storage", storage, Storage)
        self.neighbours = neighbours
        self.calibrate_on = calibrate_on
        self.search_memory = search_memory
        self.storage: Storage = storage
        self.search = search
        parse_search(search)

    def begin(self) -> None:
        """An empty bank."""
        super().begin()
        self.bank = self.new_bank()
        # References that thresholds are set from.
        self.measured_: list[int] = []
        if self.search != "exact":
            self.search_: dict[str, Any] | None = None  # what building the index found

    def new_bank(self) -> MemoryBank:
        """An empty bank on the detector's device."""
        memory, recall = self.search_memory * 2**20, parse_search(self.search)
        if recall is not None:
            return IVFBank(recall, memory, self.storage)
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

    @abstractmethod
    def rows(self, features: Any) -> Floats:
        """Features of a view as the bank takes them, (n, dim)."""

    @abstractmethod
    def patch_distance(self, squared: Floats) -> Floats:
        """Patch scores (n,) from squared distances to the nearest rows (n, k)."""

    def judge(self, rows: Floats, without: int | None = None) -> tuple[Floats, float | None]:
        """Patch scores (n,) of rows (n, dim) of a view, and the weight of its image score."""
        count = min(self.neighbours, self.bank.left(without))
        return self.patch_distance(self.bank.search(rows, count, without)[0]), None

    def exportable(self) -> str | None:
        """Why not; None: the nearest rows of a bank are found by products."""
        return None

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Exact as long as searches are."""
        return "exact" if self.search == "exact" else "approximate"

    @property
    def keeps_all(self) -> bool:
        """Whether the bank holds every upright patch that counts of every reference."""
        return True

    @property
    def nearest_decides(self) -> bool:
        """Whether the nearest row alone decides a patch's score and an image's."""
        return self.neighbours == 1

    def check_learned(self) -> None:
        """There are rows to compare with, and references that were measured are there."""
        super().check_learned()
        must(len(self.bank), "an empty bank")
        must(all(n < len(self.references) for n in self.measured_), "measured_ is out of range")
        if (width := len(getattr(self, "centre_", ()))) > 1:
            must(width == self.bank.dim, "centre_ is not as long as a row")

    # -- references without themselves --------------------------------------------------------

    def learn(self, number: int, image: np.ndarray) -> Any:
        """Put a reference into the bank, where it is found again: nothing else is kept."""
        super().learn(number, image)

    def finish(self, progress: Progress | None) -> None:
        """Index the rows, if that is asked for; a single reference has nothing to measure yet."""
        if isinstance(self.bank, IVFBank):
            self.search_ = self.bank.build()
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
        patches = np.zeros(grid[0] * grid[1], np.float32)
        weight = None
        if len(own):
            if self.nearest_decides:
                scores = self.patch_distance(self.bank.loo_distance[own][:, None])
            else:
                scores, weight = self.judge(self.bank.take(own), number)
            places = self.bank.patch[own]
            if int(places.max()) >= len(patches):
                raise ModelFileError(f"rows of reference {number} lie outside it; fit anew")
            patches[places] = scores
        return ViewScores(patches.reshape(grid), None, weight)

    def grid_of(self, view: View) -> Size:
        """Patches of a view; each point of a cloud without a grid is one."""
        if view.size[0] == 1:
            return view.size
        stride = self.load_network().stride
        return view.size[0] // stride, view.size[1] // stride
