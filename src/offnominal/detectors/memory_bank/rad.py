"""RAD: the most similar references first, then the nearest patches among theirs.

Zhang, Li, Henderson, Aragon-Camarasa and Long, "Is Task-Specific Training Necessary for Anomaly
Detection?", ICML 2026 (arXiv 2601.22763).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offnominal.checks import check_range
from offnominal.detectors.features import ViewScores, tokens_of
from offnominal.detectors.fusion import is_plain_transformer
from offnominal.detectors.learned_state import must
from offnominal.detectors.memory_bank.base import BankDetector
from offnominal.detectors.options import LeaveOneOut, Progress
from offnominal.detectors.recognising import Recognising
from offnominal.errors import OptionError
from offnominal.memory import MemoryBank
from offnominal.memory.filed import FiledBank
from offnominal.memory.retrieval import nearest_among
from offnominal.memory.storage import as_stored
from offnominal.scoring import Size
from offnominal.views import View

if TYPE_CHECKING:
    from torch import Tensor

    from offnominal.backbones.base import Backbone

__all__ = ["RAD"]

Floats = NDArray[np.float32]


class RAD(Recognising, BankDetector):
    """Training-free detection among the patches of the references that are most like the image.

    Each reference keeps a class token (or pooled feature) and its patches from several blocks. The
    ``retrieve`` references whose token is nearest to the image's by cosine are searched, and no
    others: for each patch and block the cosine distance to the nearest patch, averaged over the
    blocks. One model takes several kinds of part; the nearest reference says which kind an image
    is of, and the image is judged by that kind's threshold.

    Parameters
    ----------
    retrieve : int
        How many references are searched (k); with no more than that, all are. 150 on MVTec AD in
        the released code.
    radius : int or None
        Only patches are compared whose places differ by at most so many rows and columns, for parts
        that lie in one place; 1 on MVTec AD in the released code. In a grid of another size places
        are scaled. None: patches from anywhere.
    rows_file : str or None
        File that patches are kept in, as fp16, written in pieces while the fit goes on and mapped
        afterwards: for more than memory holds. It has to stay where it is. None: the model file.
    layers : sequence of int or None
        None: of a transformer four blocks, at a quarter, half and three quarters of its depth and
        the last (3, 6, 9 and 11 of 12, as in the released code); of others the backbone's own.
    aggregate : str
        ``map-top1``, the mean of the map's top 1 %.
    **options
        See :class:`~offnominal.detectors.memory_bank.base.BankDetector`. ``neighbours`` is 1, and
        ``storage`` fp32 or fp16.

    Examples
    --------
    >>> from offnominal import RAD
    >>> detector = RAD(backbone="builtin").fit({"nut": "nuts/", "bolt": "bolts/"})
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.category, prediction.is_anomalous
    """

    method: ClassVar[str] = "rad"
    takes_defects: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    takes_tiles: ClassVar[bool] = False

    def __init__(
        self,
        retrieve: int = 150,
        radius: int | None = None,
        rows_file: str | None = None,
        aggregate: str = "map-top1",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        check_range("retrieve", retrieve, whole=True, least=1)
        if radius is not None:
            check_range("radius", radius, whole=True, least=0)
        if self.neighbours != 1:
            raise OptionError(f"--neighbours {self.neighbours}: rad compares with the nearest one")
        if self.search != "exact":
            raise OptionError(f"--search {self.search}: rad finds references first; leave it out")
        if self.storage == "int8":
            raise OptionError("--storage int8: rad keeps fp32 or fp16, where levels stand apart")
        self.retrieve = retrieve
        self.radius = radius
        self.rows_file = None if rows_file is None else str(Path(rows_file).absolute())
        self.begin()

    def begin(self) -> None:
        """Empty banks: of patches, and of class tokens."""
        super().begin()
        self.summaries = MemoryBank(memory=self.search_memory * 2**20).to(self._device)
        self.widths_: list[int] = []

    def new_bank(self) -> MemoryBank:
        """An empty bank of patches, in a file of its own if one is named."""
        if self.rows_file is None:
            return super().new_bank()
        return FiledBank(Path(self.rows_file), self.search_memory * 2**20).to(self._device)

    @property
    def banks(self) -> list[MemoryBank]:
        """The bank of patches and that of class tokens."""
        return [self.bank, self.summaries]

    @property
    def nearest_decides(self) -> bool:
        """No: which references are searched does as well."""
        return False

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Exact while all are searched; else others are retrieved where one is left out."""
        return "exact" if len(self.references.active) <= self.retrieve else "approximate"

    @property
    def no_growth(self) -> str | None:  # type: ignore[override]  # here it depends on the fit
        """Why it cannot grow; None: it can."""
        if self.rows_file is not None:
            return "its patches lie in a file that is finished (--rows-file); fit anew"
        if len(self.categories) > 1:
            return "it knows several categories, each with thresholds of its fit; fit anew"
        return None

    def check_learned(self) -> None:
        """Every reference has its class token, and rows are joined of levels."""
        super().check_learned()
        must(sum(self.widths_) == self.bank.dim and min(self.widths_) > 0, "widths_ of other rows")
        must(np.array_equal(np.unique(self.bank.reference), self.summaries.reference),
             "class tokens of other references")  # fmt: skip
        must((np.diff(self.bank.reference) >= 0).all(), "rows of references are out of order")

    # -- from the image to features -----------------------------------------------------------

    def choose_levels(self, network: "Backbone") -> "Backbone":
        """Four blocks of a transformer, the last one among them; of others their own."""
        if self.layers is not None or not is_plain_transformer(network):
            return network
        count = network.level_count
        return network.at_levels([count // 4, count // 2, 3 * count // 4, count - 1])

    def embed(self, pixels: "Tensor") -> tuple[list["Tensor"], "Tensor"]:
        """Features (D, gh, gw) of each level on the finest grid, and the class token (1, D')."""
        import torch.nn.functional as F

        maps, summary = self.levels(pixels[None])
        grid = maps[0].shape[-2:]
        maps = [maps[0], *(F.interpolate(each, grid, mode="bilinear") for each in maps[1:])]
        return [F.normalize(each[0], dim=0) for each in maps], F.normalize(summary, dim=-1)

    def patches_of(self, features: Any) -> Floats:
        """The levels' features, joined."""
        return np.concatenate(features[0])

    def rows(self, features: Any) -> Floats:
        """Features as the bank takes them: each patch's unit vectors of all levels, joined."""
        found: Floats = tokens_of(self.patches_of(features))
        return found

    def learn_features(self, number: int, features: Any, view: int, upright: bool) -> None:
        """Put patches into the bank, and the class token beside them."""
        self.widths_ = [len(each) for each in features[0]]
        self.bank.add(self.rows(features), number, view, counts=True)
        self.summaries.add(features[1], number, view)

    def finish(self, progress: Progress | None) -> None:
        """Rows in a file are complete."""
        if isinstance(self.bank, FiledBank):
            self.bank.finish()
        super().finish(progress)

    # -- from features to scores --------------------------------------------------------------

    def patch_distance(self, squared: Floats) -> Floats:
        """Mean cosine distance over the levels, from squared distances of joined rows (n, k)."""
        found: Floats = squared.mean(-1) / np.float32(2 * len(self.widths_))
        return found

    def compare(self, features: Any, without: int | None = None) -> ViewScores:
        """Retrieve references, and compare each patch with theirs."""
        grid = features[0][0].shape[1:]
        return self.scored_among(self.retrieved(features[1], without), self.rows(features), grid)

    def view_from_bank(self, number: int, place: int, view: View) -> ViewScores:
        """The same of a reference, from what the banks hold of it."""
        numbers = self.retrieved(self.summaries.take(self.summaries.rows_of(number)), number)
        rows = self.bank.take(self.bank.rows_of(number))
        return self.scored_among(numbers, rows, self.grid_of(view))

    def nearest(self, features: Any) -> tuple[Floats, NDArray[np.int64]]:
        """For each patch: distance to the nearest row of what is retrieved, and its number."""
        among = self.retrieved(features[1])
        squared, index = self.bank.search(self.rows(features), 1, among=among)
        return self.patch_distance(squared), index[:, 0]

    def retrieved(self, summary: Floats, without: int | None = None) -> list[int]:
        """The references that are most like a class token (1, D'), the nearest first."""
        count = min(self.retrieve, self.summaries.left(without))
        if not count:
            return []
        _, found = self.summaries.search(summary, count, without)
        numbers: list[int] = self.summaries.reference[found[0]].tolist()
        return numbers

    def scored_among(self, numbers: list[int], rows: Floats, grid: Size) -> ViewScores:
        """Scores of a view by its rows (n, dim) among those of some references."""
        if not numbers:
            return ViewScores(np.full(grid, np.inf, np.float32))
        near = None if self.radius is None else self.reference_grid
        asked = as_stored(rows, self.bank.storage)
        told = (asked, self.widths_, near, grid, self.radius or 0)
        squared = nearest_among(self.bank, numbers, *told)
        scores = squared.mean(0).reshape(grid) / np.float32(2)
        return ViewScores(scores, category=self.nearest_category(numbers))

    def reference_grid(self, number: int) -> Size:
        """Patches (gh, gw) of a reference."""
        return self.grid_of(self.views_of(self.references[number].size)[0])
