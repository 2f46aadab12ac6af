"""An ensemble: the same method on several backbones, their scores and maps averaged.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, section 4.2 and
table 4, average the scores and the maps of PatchCore on WideResNet-101-2, ResNeXt-101 and
DenseNet-201. Their released code brings each member to the range of 0 to 1 first, by the smallest
and the largest value of the whole test set. A part on a line is judged before the next one is seen,
so here each member is divided by what it gives good parts: the mean image score of its references,
each scored without itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from offnominal.backbones.base import Resize
from offnominal.detectors.base import Detector
from offnominal.detectors.learned_state import must, must_fit
from offnominal.detectors.members import arrays_of, own_arrays, states_of
from offnominal.detectors.options import EngineName, LeaveOneOut, Precision, Progress
from offnominal.detectors.registry import detector_class
from offnominal.errors import OptionError
from offnominal.scoring import Scores, Size, on_grid_of

__all__ = ["PAPER_BACKBONES", "Ensemble"]

PAPER_BACKBONES = "wide_resnet101_2,resnext101_32x8d,densenet201"
# Scores are divided by scales, in float32.
_SMALLEST = float(np.finfo(np.float32).tiny)
_PAPER_SETTINGS: dict[str, Any] = {"coreset": 0.01, "dim": 384}


class Ensemble(Detector):
    """Several detectors of one method, each on a backbone of its own.

    The image score is the mean over the members of their image scores, and the patch scores, which
    the map is made of, the mean of theirs on the finest grid; each divided by the member's scale,
    so that 1 is what the average good part scores.

    Parameters
    ----------
    of : str
        The members' method, as ``--method`` takes it.
    settings : mapping or None
        Options of that method, the same for all members, as ``{"coreset": 0.25}``. None: for
        PatchCore those of the paper's ensemble, 1 % of features of length 384.
    backbone : str or None
        Names, one for each member, with commas between; None: those of the paper.
    weights : str or None
        Local weights files, as many, with commas between; None: from the hub.
    layers, resolution, resize, tile, precision, device, engine
        Of every member; see :class:`~offnominal.detectors.features.FeatureDetector`.
    aggregate : str
        ``members``: the mean of the members' image scores. Otherwise a statistic of the averaged
        patch scores.
    **options
        See :class:`~offnominal.detectors.base.Detector`.

    Notes
    -----
    **Threshold.** A reference's patch scores by each member, without its own entries, are averaged
    as those of a new part are. The scales come from the same references, which moves each of them
    by a share of 1 / n; otherwise what the members' method says of its threshold holds.

    Raises
    ------
    OptionError
        If there are fewer than 2 members or references, or ``weights`` lists another number.
    """

    method: ClassVar[str] = "ensemble"
    default_backbone: ClassVar[str] = PAPER_BACKBONES
    backbone_family: ClassVar[str | None] = ""
    own_score: ClassVar[str | None] = "members"

    def __init__(
        self,
        of: str = "patchcore",
        settings: Mapping[str, Any] | None = None,
        backbone: str | None = None,
        weights: str | None = None,
        layers: Sequence[int] | None = None,
        resolution: int | None = None,
        resize: Resize | None = None,
        tile: int | None = None,
        precision: Precision = "fp32",
        device: str = "auto",
        engine: EngineName = "auto",
        aggregate: str = "members",
        **options: Any,
    ) -> None:
        super().__init__(aggregate=aggregate, **options)
        self.of = of
        self.settings = dict(settings) if settings is not None else None
        self.backbone = backbone or self.default_backbone
        self.weights = weights
        self.layers = tuple(layers) if layers is not None else None
        self.resolution = resolution
        self.resize = resize
        self.tile = tile
        self.precision = precision
        self.device = device
        self.engine: EngineName = engine
        names = [name.strip() for name in self.backbone.split(",")]
        files = [None] * len(names) if weights is None else weights.split(",")
        if len(names) < 2 or len(files) != len(names):
            raise OptionError(
                f"--backbone {self.backbone}: {len(names)} for an ensemble with {len(files)} "
                "weights files; list at least two with commas between, and as many weights, or none"
            )
        kind = detector_class(of)
        chosen = self.settings
        if chosen is None:
            chosen = _PAPER_SETTINGS if of == "patchcore" else {}
        for name in chosen:
            if name in ("backbone", "weights", "false_reject"):
                raise OptionError(f"settings {name}: give it as an option of the ensemble")
            if name not in kind.option_defaults():
                raise OptionError(f"settings {name}: the method {of} has no such option")
        own: tuple[str, ...] = ("layers", "resolution", "resize", "tile", "precision", "device")
        own += ("engine",) if "engine" in kind.option_defaults() else ()
        own += ("sixteen_bit", "smoothing", "false_reject")
        shared = {name: getattr(self, name) for name in own}
        # What is not said is each member's own choice.
        given = {name: value for name, value in shared.items() if value is not None}
        self.members = [
            kind(**(given | dict(chosen) | {"backbone": name, "weights": file}))
            for name, file in zip(names, files, strict=True)
        ]
        self.begin()

    def twin(self, changes: Mapping[str, Any]) -> Self:
        """Another with the same options, but for some, on the members' networks."""
        other = type(self)(
            **(self.options() | dict(changes)), device=self.device, engine=self.engine
        )
        own = {name: getattr(other, name) for name in ("smoothing", "false_reject")}
        other.members = [member.twin(own) for member in self.members]
        other.begin()
        return other

    def begin(self) -> None:
        """No member knows anything."""
        self.scales_ = np.ones(len(self.members))
        self._alone: dict[int, list[Scores]] = {}
        for member in self.members:
            member.begin()
            member.fitted, member.references = False, self.references
            member.expected = self.expected

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """As its members have it."""
        kinds = {member.leave_one_out for member in self.members}
        return kinds.pop() if len(kinds) == 1 else "approximate"

    @property
    def bank_rows(self) -> int:
        """Patches in the members' banks."""
        return sum(member.bank_rows for member in self.members)

    # -- learning -----------------------------------------------------------------------------

    def learn(self, number: int, image: np.ndarray) -> list[Any]:
        """Let every member take in an image."""
        return [member.learn(number, image) for member in self.members]

    def finish(self, progress: Progress | None) -> None:
        """All members have seen all images."""
        if len(self.references) < 2:
            raise OptionError("an ensemble is scaled by its references: give 2 or more good images")
        for member in self.members:
            member.finish(progress)

    def release(self) -> None:
        """The fit is over."""
        self._alone = {}
        for member in self.members:
            member.release()

    def score_reference(self, number: int, kept: list[Any]) -> Scores:
        """Let every member score a reference without itself; the scales are not known yet."""
        found = zip(self.members, kept, strict=True)
        self._alone[number] = [member.score_reference(number, one) for member, one in found]
        return self._alone[number][0]

    def scored_all(self, scored: Mapping[int, Scores]) -> Mapping[int, Scores]:
        """Scale each member by its references, and average."""
        sizes = {number: self.references[number].size for number in scored}
        images = [
            [member.image_score(self._alone[number][place], sizes[number]) for number in scored]
            for place, member in enumerate(self.members)
        ]
        self.scales_ = np.array(images, dtype=np.float64).mean(1)
        if not (self.scales_ >= _SMALLEST).all():  # nan among them
            raise OptionError(
                "an ensemble is scaled by its references, and for one of its members they all "
                "score 0, or what is no number: give good images that differ, or other backbones"
            )
        for member in self.members:
            member.fitted = True
        return {number: self._mean(self._alone[number], sizes[number]) for number in scored}

    # -- predicting ---------------------------------------------------------------------------

    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """Mean of what the members say."""
        size = (image.shape[0], image.shape[1])
        return self._mean([member.score(image, without) for member in self.members], size)

    def not_inspected(self, size: Size) -> str | None:
        """What of an image (H, W) no member sees, in words; None: all of it is looked at."""
        told = [member.not_inspected(size) for member in self.members]
        return None if None in told else told[0]

    def _mean(self, found: Sequence[Scores], size: Size) -> Scores:
        scales = self.scales_.tolist()
        images = [
            member.image_score(one, size) / scale
            for member, one, scale in zip(self.members, found, scales, strict=True)
        ]
        finest = max(found, key=lambda one: one.patches.size)
        grids = [on_grid_of(one, finest, size) for one in found]
        mean = np.mean([g / np.float32(k) for g, k in zip(grids, scales, strict=True)], axis=0)
        return finest._replace(patches=mean, image=float(np.mean(images)), weight=1.0)

    def exportable(self) -> str | None:
        """Why not."""
        return (
            "it is several detectors with several networks, each with a scale of its own; export a "
            "detector of one backbone"
        )

    def check_learned(self) -> None:
        """A scale for each member."""
        super().check_learned()
        must(self.scales_.shape == (len(self.members),), "scales_ are not one for each member")
        must((self.scales_ > 0).all(), "scales_ are not above 0")

    # -- files --------------------------------------------------------------------------------

    def header(self) -> dict[str, Any]:
        """All that is no array, the members' with it."""
        return super().header() | {"members": [member.header() for member in self.members]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Learned arrays, the members' with them."""
        return super().arrays() | arrays_of(self.members)

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was learned."""
        super().restore(header, own_arrays(arrays))
        with must_fit():
            for member, known in zip(self.members, states_of(header, arrays), strict=True):
                member.restore(*known)
