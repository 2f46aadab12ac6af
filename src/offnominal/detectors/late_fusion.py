"""Late fusion: what fitted detectors say of one part, brought to one scale by good parts.

Each member's image score becomes a conformal p-value among good parts (Vovk, Gammerman and Shafer,
2005, chapter 2), and the p-values are combined by Fisher's statistic (Fisher, "Statistical Methods
for Research Workers", 1932, section 21.1). That the members depend on each other does no harm: the
threshold comes from the combined scores of good parts, and not from Fisher's distribution.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from offnominal.calibration import evidence
from offnominal.checks import check_choice
from offnominal.detectors.base import Detector
from offnominal.detectors.learned_state import must, must_fit
from offnominal.detectors.members import (
    arrays_of,
    honest_scores,
    on_one_scale,
    open_members,
    own_arrays,
    restored_members,
)
from offnominal.detectors.options import EngineName, LeaveOneOut, Progress
from offnominal.errors import OptionError
from offnominal.scans.scan import Modality
from offnominal.scoring import Scores, Size, size_of

__all__ = ["LateFusion"]

Combination = Literal["fisher", "smallest"]
_LEAST = 3  # good images: what is left without one of them still has a spread


class LateFusion(Detector):
    """Two or more fitted detectors, of any methods, as one.

    ``fit`` learns nothing of the members' own: it takes good images, best those that no member was
    fitted on, and notes what each member says of them. An image that a member was fitted on counts
    with the score that the member has of it without itself, or as one that it held back; where it
    has none, the image is left out.

    Parameters
    ----------
    members : str
        Model files, two or more with commas between. The saved model holds what they learned and
        needs the files no more.
    combine : {"fisher", "smallest"}
        How p-values become one: the sum of their logarithms, to which every member adds, or the
        smallest one, so that the most alarmed member decides.
    maps : {"max", "mean"}
        How maps become one, each counted from the typical patch of a good part (0) to the highest
        one of all good parts (1). Members that find no places take no part in it.
    device, engine
        Of every member; see :class:`~offnominal.detectors.features.FeatureDetector`.
    aggregate : str
        ``members``: the combined image scores. Otherwise a statistic of the combined patch scores.
    **options
        See :class:`~offnominal.detectors.base.Detector`.

    Notes
    -----
    **Beyond all good parts** a p-value can be no smaller than 1 / (n + 1). So that defects are told
    apart there, its logarithm goes on falling in proportion to the score, by 1 for each mean excess
    of the upper half of the good scores over their median: the tail is taken as exponential
    (Pickands, 1975, whose shape is 0 then). Between good scores it is interpolated.

    **Threshold.** Each good image is combined by the scores of the others. It is called conformal
    where no member was fitted on the images, or all of them score those exactly without themselves,
    and approximate otherwise.

    Raises
    ------
    OptionError
        With fewer than two members or three good images, for a member that cannot take part, or if
        a member scores all good images the same.
    """

    method: ClassVar[str] = "fusion"
    own_score: ClassVar[str | None] = "members"
    takes_scans: ClassVar[bool] = True  # its members do
    # Options that are lists with commas between, on a command line as well.
    listed_options: ClassVar[tuple[str, ...]] = ("members",)

    def __init__(
        self,
        members: str = "",
        combine: Combination = "fisher",
        maps: Literal["max", "mean"] = "max",
        device: str = "auto",
        engine: EngineName = "auto",
        aggregate: str = "members",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        check_choice("combine", combine, Combination)
        check_choice("maps", maps, ("max", "mean"))
        if self.modality != "auto":
            told = "each member sees scans in its own way; leave it out"
            raise OptionError(f"--modality {self.modality}: {told}")
        self.members, self.combine, self.maps = members, combine, maps
        self.device, self.engine = device, engine
        self.detectors: list[Detector] = []
        self.begin()

    def load_members(self) -> list[Detector]:
        """The members, read from their files on first use."""
        if not self.detectors:
            self.detectors = open_members(self.members, *self._where)
        return self.detectors

    @property
    def _where(self) -> tuple[str, str, str]:
        return self.sixteen_bit, self.device, self.engine

    def twin(self, changes: Mapping[str, Any]) -> Self:
        """Another with the same options, but for some, on the members' networks."""
        options = self.options() | dict(changes)
        other = type(self)(**options, device=self.device, engine=self.engine)
        other.detectors = [member.twin({}) for member in self.detectors]
        return other

    @property
    def seen_as(self) -> Modality:
        """Colour and points, unless all members see the colour picture alone."""
        every = {member.seen_as for member in self.load_members()}
        return "colour" if every == {"colour"} else "scan"

    # -- learning what good parts score -------------------------------------------------------

    def begin(self) -> None:
        """Nothing is known of good images; a row for each, a column for each member."""
        self.images_ = self.lows_ = self.peaks_ = np.empty((0, 0))
        self.exact_ = True
        self._rows: dict[int, int] = {}  # of the good images, while a fit lasts

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Whether all good images were scored as new ones are."""
        return "exact" if self.exact_ else "approximate"

    def learn(self, number: int, image: NDArray[Any]) -> list[Scores] | None:
        """What each member says of a good image; None if one learned from it and cannot tell."""
        found = [honest_scores(member, image) for member in self.load_members()]
        self.exact_ &= all(exact for _, exact in found)
        said = [scores for scores, _ in found if scores is not None]
        if len(said) < len(found):
            return None
        size, pairs = size_of(image), zip(self.detectors, said, strict=True)
        rows = (
            [member.image_score(one, size) for member, one in pairs],
            [float(np.median(one.patches)) for one in said],
            [float(one.patches.max()) for one in said],
        )
        for name, row in zip(("images_", "lows_", "peaks_"), rows, strict=True):
            setattr(self, name, np.array([*getattr(self, name), row]))
        self._rows[number] = len(self.images_) - 1
        return said

    def finish(self, progress: Progress | None) -> None:
        """Whether enough good images tell something."""
        if len(self.images_) < _LEAST:
            raise OptionError(
                f"{len(self.images_)} good images to bring the members to one scale with (those "
                "that a member was fitted on and has no score of do not count): give "
                f"{_LEAST} or more that no member was fitted on"
            )
        for member, column in zip(self.detectors, self.images_.T, strict=True):
            if not np.isfinite(column).all() or column.min() == column.max():
                raise OptionError(
                    f"the member {member.method} scores all good images the same, so nothing can "
                    "be told by it: give good images that differ, or another member"
                )

    def score_reference(self, number: int, kept: list[Scores] | None) -> Scores:
        """Combine what the members say of a good image by the other ones; infinite: unknown."""
        if kept is None:
            return Scores(np.full((1, 1), np.inf, np.float32))
        return self._combined(kept, self.references[number].size, number)

    def release(self) -> None:
        """The fit is over."""
        self._rows = {}

    # -- predicting ---------------------------------------------------------------------------

    def score(self, image: NDArray[Any], without: int | None = None) -> Scores:
        """Combine what the members say of an image."""
        said = []
        for member in self.detectors:
            member.check_fitted()
            said.append(member.score(member.image_of(image)))
        return self._combined(said, size_of(image), without)

    def _combined(self, said: list[Scores], size: Size, without: int | None) -> Scores:
        kept = np.arange(len(self.images_)) != self._rows.get(-1 if without is None else without)
        good, low, high = self.images_[kept], self.lows_[kept].mean(0), self.peaks_[kept].max(0)
        pairs = list(zip(self.detectors, said, strict=True))
        images = [member.image_score(one, size) for member, one in pairs]
        each = [evidence(*pair) for pair in zip(images, good.T, strict=True)]
        drawn = np.any(self.peaks_ > self.lows_, axis=0)
        finest, units = on_one_scale(said, drawn, low, high, size)
        patches = units.max(0) if self.maps == "max" else units.mean(0)
        image = sum(each) if self.combine == "fisher" else max(each)
        return Scores(patches.astype(np.float32), image, 1.0, finest.window, finest.stride)

    def not_inspected(self, size: Size) -> str | None:
        """What of an image (H, W) no member sees, in words; None: all of it is looked at."""
        told = [member.not_inspected(size) for member in self.detectors]
        return None if None in told else told[0]

    @property
    def bank_rows(self) -> int:
        """Patches in the members' banks."""
        return sum(member.bank_rows for member in self.detectors)

    def exportable(self) -> str | None:
        """Why not."""
        return "it is several detectors with several networks; export a single one"

    # -- files --------------------------------------------------------------------------------

    def header(self) -> dict[str, Any]:
        """All that is no array, the members' with it."""
        return super().header() | {"members": [member.header() for member in self.detectors]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Learned arrays, the members' with them."""
        return super().arrays() | arrays_of(self.detectors)

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was learned, and the members, which are made anew if there are none."""
        with must_fit():
            self.detectors = restored_members(self.detectors, header, arrays, *self._where)
        super().restore(header, own_arrays(arrays))

    def check_learned(self) -> None:
        """A number of each good image by each member."""
        super().check_learned()
        must(len(self.detectors) > 1, "fewer than two members")
        shape = (len(self.images_), len(self.detectors))
        must(shape[0] >= _LEAST, "too few good images")
        for each in (self.images_, self.lows_, self.peaks_):
            must(each.shape == shape, "scores of other good images, or of other members")
