"""SubspaceAD: a linear subspace of patch features, and what lies outside of it.

Lendering, Akdag and Bondarev, "SubspaceAD", CVPR 2026 (arXiv 2602.23013).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from offnominal.augment import parse_rotations, rotate_image
from offnominal.detectors.base import OnError, Progress, Scored
from offnominal.detectors.common import check_choice
from offnominal.detectors.subspace import Moments, Subspace
from offnominal.detectors.subspace_base import SubspaceModel, SubspaceOptions
from offnominal.detectors.views import Views
from offnominal.errors import OptionError
from offnominal.images import ImageSource, content_digest, describe
from offnominal.memory import MemoryBank

__all__ = ["Border", "SubspaceAD"]

Border = Literal["black", "mirror"]

_LARGEST_ANGLE = 345.0
_RANDOM = re.compile(r"random(\d+)")


@dataclass
class _Held:
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

    def prepare_state(self) -> None:
        """Empty sums and an empty bank."""
        super().prepare_state()
        self.bank = MemoryBank(1).to(self._device)

    def extra_state(self) -> dict[str, Any]:
        """Learned state that is not a tensor."""
        return super().extra_state() | {"angles_": self.angles_}

    @property
    def promises(self) -> bool:
        """Not strictly: a subspace of one reference fewer may score a part higher or lower."""
        return False

    def _fit(self, images: Iterator[tuple[int, np.ndarray]], progress: Progress | None) -> None:
        self.load_network()
        self.prepare_state()
        self.angles_ = []
        total: Moments | None = None
        held: dict[int, _Held] = {}
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

    def _observe(self, index: int, image: np.ndarray) -> _Held:
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
        return _Held(moments, upright, grids, layout, (image.shape[0], image.shape[1]))

    def _score_references(
        self, total: Moments, held: dict[int, _Held], progress: Progress | None
    ) -> None:
        """Score references against the subspace of the others, which is what refitting would give.

        A reference's sums are taken out of the total, so no image is looked at twice.
        """
        if total.count == next(iter(held.values())).moments.count:
            return  # a single reference
        scored: list[Scored] = []
        for turn, (index, own) in enumerate(sorted(held.items()), start=1):
            others = Subspace.of(total.minus(own.moments), self.variance)
            grids = [
                self._score(tokens, others, self.bank, skip=index).reshape(grid)
                for tokens, grid in zip(own.tokens, own.grids, strict=True)
            ]
            scored.append(Scored(own.layout.merge(grids), own.size, own.layout.cover))
            if progress:
                progress("threshold", turn)
        self._set_good(scored, "leave-one-out")

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

    @torch.inference_mode()
    def add(self, images: Iterable[ImageSource], on_error: OnError | None = None) -> int:
        """Learn from more good images; the subspace becomes that of fitting to all at once.

        Each image is first scored by what was known before, and that score joins those that the
        thresholds are set from. The earlier ones stay as they are, a little high; for
        thresholds of the new subspace, fit anew or run :meth:`calibrate`.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
        on_error : callable or None
            Called with each unreadable image, which is left out; None: it is raised, and the
            detector stays as it was.

        Returns
        -------
        int
            How many were added; those that the detector knows already are left out.
        """
        self._check_fitted()
        self.load_network()
        known = {reference["digest"] for reference in self.references_}
        subspace, bank, angles = self.subspace, self.bank, self.angles_
        total, scored = self.moments, list[Scored]()
        self.angles_, self.bank = list(self.angles_), self._copy_of_bank()
        added: list[dict[str, str]] = []
        try:
            for source, image in self._read(images, on_error):
                digest = content_digest(image)
                if digest in known:
                    continue
                known.add(digest)
                index = len(self.references_) + len(added)
                own = self._observe(index, image)
                grids = [
                    self._score(tokens, subspace, bank).reshape(grid)
                    for tokens, grid in zip(own.tokens, own.grids, strict=True)
                ]
                scored.append(Scored(own.layout.merge(grids), own.size, own.layout.cover))
                total = total.plus(own.moments)
                added.append({"file": describe(source), "digest": digest})
        except Exception:
            self.angles_, self.bank = angles, bank
            raise
        if added:
            self._learn(total)
            self.references_ = [*self.references_, *added]
            self._join_good(scored)
        return len(added)

    def _copy_of_bank(self) -> MemoryBank:
        copy = MemoryBank(max(1, self.bank.rows.shape[1])).to(self._device)
        copy.rows, copy.owner = self.bank.rows, self.bank.owner
        return copy

    def _join_good(self, scored: list[Scored]) -> None:
        earlier = (self.good_scores_, self.good_peaks_, self._good)
        known = self.calibration_
        self._set_good(scored, "held-out" if known == "none" else known)
        self.good_scores_ = torch.cat([earlier[0].to(self.good_scores_), self.good_scores_])
        self.good_peaks_ = torch.cat([earlier[1].to(self.good_peaks_), self.good_peaks_])
        self._good = [*earlier[2], *scored]


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
    held: dict[int, _Held], index: int, own: _Held, limit: int, draw: np.random.Generator
) -> None:
    """Keep a uniform sample of a stream of unknown length (Vitter, 1985, algorithm R)."""
    if limit and len(held) == limit:
        out = int(draw.integers(index + 1))
        if out >= limit:
            return
        del held[list(held)[out]]
    held[index] = own
