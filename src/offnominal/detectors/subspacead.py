"""SubspaceAD: a linear subspace of patch features, and what lies outside of it.

Lendering, Akdag and Bondarev, "SubspaceAD", CVPR 2026 (arXiv 2602.23013).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal, Unpack, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from offnominal.augment import parse_rotations, rotate_image
from offnominal.detectors import subspace_growing
from offnominal.detectors.base import OnError, Progress, Scored
from offnominal.detectors.common import check_choice
from offnominal.detectors.growing import Change, Version
from offnominal.detectors.subspace import Moments, Subspace
from offnominal.detectors.subspace_base import SubspaceModel, SubspaceOptions
from offnominal.detectors.views import Views
from offnominal.errors import OptionError
from offnominal.images import ImageSource
from offnominal.memory import MemoryBank

__all__ = ["Border", "Held", "SubspaceAD"]

Border = Literal["black", "mirror"]

_LARGEST_ANGLE = 345.0
_RANDOM = re.compile(r"random(\d+)")


@dataclass
class Held:
    """A reference whose score against the others is wanted."""

    moments: Moments  # of all its patches, rotations included
    tokens: list[Tensor]  # of each upright view, (gh * gw, D)
    grids: list[tuple[int, int]]
    layout: Views
    size: tuple[int, int]


class SubspaceAD(SubspaceModel):
    """Few-shot and full-shot detection by the distance from a subspace of good patch features.

    What is kept is the mean and the scatter of the patch features, so that the time for a test
    image and the size of the file do not depend on the number of references, and more of them can
    be added (:meth:`add`).

    Parameters
    ----------
    rotations : str
        ``random30``: every reference as it is and turned by 30 angles drawn uniformly from 0 to 345
        degrees; ``none``, ``agnostic`` or a list of degrees. Say ``none`` where a part that is
        turned is a defect, and with many references: the released code turns few-shot references
        only.
    rotation_border : {"black", "mirror"}
        What fills the corners of a turned reference. ``black`` without interpolation is the
        released code's; ``mirror`` with it is AnomalyDINO's.
    seed : int
        Of the angles. Those of a reference depend on the seed and its number only.
    nearest : float
        0: the distance from the subspace alone. Up to 1: weight w of the cosine distance d to the
        nearest patch of the references in the score, residual^(1 - w) d^w. It needs a bank, so the
        cost of a test image grows with the references.
    calibrate_on : int
        At most so many references, drawn with the seed, are scored without themselves to set the
        threshold; 0: all. Each takes an eigendecomposition and, while fitting, 8 D^2 bytes and its
        patch features: 18 MiB with a ViT-L at 672 px.
    variance, fusion, aggregate, ...
        See :class:`~offnominal.detectors.subspace_base.SubspaceModel` and
        :class:`~offnominal.detectors.base.Detector`.

    Examples
    --------
    >>> from offnominal import SubspaceAD
    >>> detector = SubspaceAD(backbone="builtin").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "subspacead"

    earlier_mean_: Tensor
    earlier_scatter_: Tensor

    def __init__(
        self,
        rotations: str | Sequence[float] = "random30",
        rotation_border: Border = "black",
        seed: int = 0,
        nearest: float = 0.0,
        calibrate_on: int = 100,
        **options: Unpack[SubspaceOptions],
    ) -> None:
        super().__init__(**options)
        _parse_angles(rotations, seed, 0)
        check_choice("rotation_border", rotation_border, get_args(Border))
        if not 0 <= nearest <= 1:
            raise OptionError(f"nearest {nearest}: give a weight from 0 to 1")
        if calibrate_on < 0:
            raise OptionError(f"calibrate_on {calibrate_on}: give 0 (all) or more")
        self.rotations = rotations if isinstance(rotations, str) else tuple(rotations)
        self.rotation_border: Border = rotation_border
        self.seed = seed
        self.nearest = nearest
        self.calibrate_on = calibrate_on
        self.angles_: list[list[float]] = []
        self.history_: list[dict[str, Any]] = []
        self.calibrated_with_: int | None = None

    def prepare_state(self) -> None:
        """Empty sums and an empty bank."""
        super().prepare_state()
        self.bank = MemoryBank(1).to(self._device)
        self.history_ = []
        self.calibrated_with_ = None
        # The sums before the last addition, for undo.
        nothing = torch.empty(0, dtype=torch.float64, device=self._device)
        for name in ("earlier_mean_", "earlier_scatter_"):
            self.register_buffer(name, nothing)

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor."""
        names = ("angles_", "history_", "calibrated_with_")
        return super().extra_state() | {name: getattr(self, name) for name in names}

    @property
    def promises(self) -> bool:
        """Not strictly: a subspace of one reference fewer may score a part higher or lower."""
        return False

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.load_network()
        self.prepare_state()
        self.angles_ = []
        total: Moments | None = None
        held: dict[int, Held] = {}
        draw = np.random.default_rng(self.seed)
        for index, image in images:
            own = self._observe(index, image)
            total = own.moments if total is None else total.plus(own.moments)
            _hold(held, index, own, self.calibrate_on, draw)
            if progress:
                progress("features", index + 1)
        if total is None:
            return
        self._learn(total)
        self._score_references(total, held, progress)

    def _observe(self, index: int, image: np.ndarray) -> Held:
        """Features of a reference and of its rotations."""
        angles = _parse_angles(self.rotations, self.seed, index)
        self.angles_.append(list(angles))
        moments: Moments | None = None
        upright: list[Tensor] = []
        grids: list[tuple[int, int]] = []
        layout = self.views(image).layout()
        for angle in angles:
            for pixels in self.views(_turn(image, angle, self.rotation_border)).pixels:
                tokens, grid = self._tokens(pixels)
                found = Moments.of(tokens)
                moments = found if moments is None else moments.plus(found)
                if angle == 0:
                    upright.append(tokens)
                    grids.append(grid)
                if self.nearest:
                    if not len(self.bank):
                        self.bank = MemoryBank(tokens.shape[1]).to(self._device)
                    self.bank.add(F.normalize(tokens, dim=-1), index)
        assert moments is not None, "the upright reference is always observed"
        return Held(moments, upright, grids, layout, (image.shape[0], image.shape[1]))

    def _score_references(
        self, total: Moments, held: dict[int, Held], progress: Progress | None
    ) -> None:
        """Score references against the subspace of the others, which is what refitting would give.

        A reference's sums are taken out of the total, so no image is looked at twice.
        """
        if total.count == next(iter(held.values())).moments.count:
            return  # a single reference
        scored: list[Scored] = []
        for turn, (index, own) in enumerate(sorted(held.items()), start=1):
            scored.append(self._score_without(total, index, own))
            if progress:
                progress("threshold", turn)
        self._set_good(scored, "leave-one-out")

    def _score_without(self, total: Moments, index: int, own: Held) -> Scored:
        others = Subspace.of(total.minus(own.moments), self.variance)
        grids = [
            self._score(tokens, others, self.bank, skip=index).reshape(grid)
            for tokens, grid in zip(own.tokens, own.grids, strict=True)
        ]
        return Scored(own.layout.merge(grids), own.size, own.layout.cover)

    def _score(
        self, tokens: Tensor, subspace: Subspace, bank: MemoryBank, skip: int | None = None
    ) -> Tensor:
        residual = subspace.residual(tokens)
        if not self.nearest:
            return residual
        bank.dim = bank.rows.shape[1]  # a loaded bank's width is that of its rows
        squared, _ = bank.search(F.normalize(tokens, dim=-1), 1, skip=skip)
        # A weighted geometric mean needs no common unit of both.
        return residual ** (1 - self.nearest) * (squared[:, 0] / 2) ** self.nearest

    def _patch_scores(self, pixels: Tensor) -> Tensor:
        subspace = self.subspace
        scores = []
        for one in pixels:
            tokens, grid = self._tokens(one)
            scores.append(self._score(tokens, subspace, self.bank).reshape(grid))
        return torch.stack(scores)

    def add(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
        when: datetime | None = None,
    ) -> Change:
        """Learn from more good images; the subspace becomes that of fitting to all at once.

        Each image is scored by the subspace of all others, and those scores join the ones that the
        thresholds are set from. The earlier ones stay as they are: they were measured with fewer
        references, so they are a little high. See :class:`~offnominal.detectors.growing.Growing`.
        """
        self._check_fitted()
        return subspace_growing.add(self, images, on_error, progress, when)

    def undo(self, progress: Progress | None = None) -> Change:
        """Go back to before the last addition; the sums of one step before are kept, no more."""
        self._check_fitted()
        return subspace_growing.undo(self)

    def calibrate(
        self,
        images: Iterable[ImageSource],
        false_reject: float | None = None,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Set the thresholds from held-out images, which stay in force; see :class:`Detector`."""
        skipped = super().calibrate(images, false_reject, on_error, progress)
        self.calibrated_with_ = len(self.references_)
        return skipped

    @property
    def calibration_note(self) -> str | None:
        """What should be known of held-out scores of another subspace."""
        count = len(self.references_)
        if self.calibration_ != "held-out" or self.calibrated_with_ in (None, count):
            return None
        return (
            f"the held-out images were scored when there were {self.calibrated_with_} references, "
            f"not {count}; `offnominal calibrate` sets the threshold anew"
        )

    def history(self) -> list[Version]:
        """The steps so far; see :class:`~offnominal.detectors.growing.Growing`."""
        return subspace_growing.history(self) if self.history_ else super().history()


def _parse_angles(rotations: str | Sequence[float], seed: int, index: int) -> tuple[float, ...]:
    """Angles of one reference, in degrees; 0 comes first."""
    match = _RANDOM.fullmatch(rotations) if isinstance(rotations, str) else None
    if match is None:
        return parse_rotations(rotations)
    drawn = np.random.default_rng([seed, index]).uniform(0, _LARGEST_ANGLE, int(match[1]))
    return (0.0, *map(float, drawn))


def _turn(image: np.ndarray, angle: float, border: Border) -> np.ndarray:
    if border == "mirror" or angle == 0:
        return rotate_image(image, angle)
    # As torchvision's RandomRotation does it with its defaults.
    return np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.NEAREST))


def _hold(
    held: dict[int, Held], index: int, own: Held, limit: int, draw: np.random.Generator
) -> None:
    """Keep a uniform sample of a stream of unknown length (Vitter, 1985, algorithm R)."""
    if limit and len(held) == limit:
        out = int(draw.integers(index + 1))
        if out >= limit:
            return
        del held[list(held)[out]]
    held[index] = own
