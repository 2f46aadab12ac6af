"""SubspaceAD: a linear subspace of patch features, and what lies outside of it.

Lendering, Akdag and Bondarev, "SubspaceAD", CVPR 2026 (arXiv 2602.23013).
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from offnominal.checks import check_choice, check_range
from offnominal.detectors.features import ViewScores, tokens_of
from offnominal.detectors.options import OnError, Progress, ShowProgress
from offnominal.detectors.references import Change, Rescored
from offnominal.detectors.subspace import Moments, Subspace, SubspaceModel
from offnominal.errors import OptionError
from offnominal.images import Channels
from offnominal.memory import MemoryBank
from offnominal.progress import shown
from offnominal.rotations import parse_rotations, rotate_image
from offnominal.scans.scan import is_scan
from offnominal.scoring import Scores
from offnominal.sources import ImageSources, several
from offnominal.tensors import to_numpy

__all__ = ["Border", "SubspaceAD", "reference_angles"]

Border = Literal["black", "mirror"]

_LARGEST_ANGLE = 345.0
_RANDOM = re.compile(r"random(\d+)")


class _Kept(NamedTuple):
    """A reference whose score against the others is wanted."""

    moments: Moments  # of all its patches, rotations included
    features: list[Tensor]  # of each upright view, (D, gh, gw)


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
    **options
        See :class:`~offnominal.detectors.subspace.SubspaceModel`.

    Examples
    --------
    >>> from offnominal import SubspaceAD
    >>> detector = SubspaceAD(backbone="builtin").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    """

    method: ClassVar[str] = "subspacead"
    looks: ClassVar[bool] = True
    takes_defects: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    embedding: ClassVar[tuple[str, ...]] = ("fusion",)

    def __init__(
        self,
        rotations: str | Sequence[float] = "random30",
        rotation_border: Border = "black",
        seed: int = 0,
        nearest: float = 0.0,
        calibrate_on: int = 100,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_range("seed", seed, whole=True, least=0, below=2**32)
        if seed != int(seed):
            raise OptionError(f"--seed {seed}: give a whole number")
        reference_angles(rotations, seed, 0)
        check_choice("rotation_border", rotation_border, Border)
        check_range("nearest", nearest, least=0, most=1)
        check_range("calibrate_on", calibrate_on, whole=True, least=0)
        self.rotations = rotations if isinstance(rotations, str) else tuple(rotations)
        self.rotation_border: Border = rotation_border
        self.seed = seed
        self.nearest = nearest
        self.calibrate_on = calibrate_on

    def begin(self) -> None:
        """Empty sums and an empty bank."""
        super().begin()
        self.bank = MemoryBank().to(self._device)
        self._total: Moments | None = None
        self._others: tuple[int, Subspace] | None = None  # what the others than a reference span

    def learn(self, number: int, image: np.ndarray) -> _Kept:
        """Add the patches of a reference and of its rotations to the sums."""
        looked = self.looked_at(number) if self.looked_at else self.look(number, image)
        (count, mean, scatter), upright, rows = looked
        own = Moments(int(count), mean, scatter)
        for each in rows:
            self.bank.add(each, number)
        self._total = own if self._total is None else self._total.plus(own)
        return _Kept(own, upright)

    def look(self, number: int, image: np.ndarray) -> list[Any]:
        """Sums over the patches of a reference and of its rotations.

        Returns
        -------
        list
            Count (), mean (D,) and scatter (D, D) in a tuple; the features of the upright views;
            and the rows that the bank takes of each view.
        """
        own: Moments | None = None
        upright: list[Tensor] = []
        rows: list[np.ndarray] = []
        for angle in reference_angles(self.rotations, self.seed, number):
            for view in self.views(_turn(image, angle, self.rotation_border)):
                features = self.embed(torch.from_numpy(view.pixels))
                tokens = tokens_of(features)
                found = Moments.of(tokens)
                own = found if own is None else own.plus(found)
                if angle == 0:
                    upright.append(features)
                if self.nearest:
                    rows.append(to_numpy(F.normalize(tokens, dim=-1)))
        assert own is not None, "the upright reference is always looked at"
        return [(torch.tensor(own.count), own.mean, own.scatter), upright, rows]

    def finish(self, progress: Progress | None) -> None:
        """The subspace of all references."""
        assert self._total is not None
        self.set_moments(self._total)

    def release(self) -> None:
        """The sums are kept elsewhere."""
        self._total = self._others = None

    def score_reference(self, number: int, kept: _Kept) -> Scores:
        """Score a reference by the subspace of the others, which is what refitting would give.

        Its sums are taken out of the total, so no image is looked at twice. The subspace stays for
        :meth:`compare` until the next reference is scored.
        """
        self._others = number, Subspace.of(self.moments.minus(kept.moments), self.variance)
        return super().score_reference(number, kept.features)

    def compare(self, features: Tensor, without: int | None = None) -> ViewScores:
        """Squared distance of each patch from the subspace, and from the bank if that counts.

        ``without`` is the reference that was scored last.
        """
        subspace = self.subspace
        if without is not None:
            assert self._others is not None
            number, subspace = self._others
            assert number == without, "another reference was scored last"
        found = self.outside(features, subspace)
        if not self.nearest:
            return found
        rows = F.normalize(tokens_of(features), dim=-1)
        squared, _ = self.bank.search(to_numpy(rows), 1, without)
        near = torch.from_numpy(squared).to(rows.device).reshape(found.patches.shape) / 2
        # A weighted geometric mean needs no common unit of both.
        return ViewScores(found.patches ** (1 - self.nearest) * near**self.nearest)

    @torch.inference_mode()
    def add(
        self,
        images: ImageSources,
        on_error: OnError | None = None,
        progress: ShowProgress = None,
        when: datetime | None = None,
        channels: Channels = "rgb",
    ) -> Change:
        """Learn from more good images; the subspace becomes that of fitting to all at once.

        Each image is scored by the subspace of all others, and those scores join the ones that the
        thresholds are set from. The earlier ones stay as they are: they were measured with fewer
        references, so they are a little high.

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
        self.check_fitted()
        before, count = self.standing(), len(self.references)
        moments, bank = self.moments, len(self.bank)
        known: list[str] = []
        kept: dict[int, _Kept] = {}
        self._total = moments
        found = several(images, channels)
        try:
            with shown(progress, found) as told:
                for number, image, _ in self.references.take_in(self.read(found, on_error), known):
                    kept[number] = self.learn(number, image)
                    if told:
                        told("features", len(kept))
                if kept:
                    self.finish(told)
            scored = {number: self.score_reference(number, one) for number, one in kept.items()}
        except BaseException:
            self.set_moments(moments)
            self.bank.truncate(bank)
            del self.references[count:]
            raise
        finally:
            self.release()
        if kept:
            earlier = self.good.references
            self.set_references(dict(zip(earlier.numbers, earlier.scores, strict=True)) | scored)
            self.references.note("add", kept, self.bank_rows, when)
        names = [self.references[number].file for number in kept]
        how: Rescored = "kept" if kept and self.calibration.kind != "held-out" else "none"
        return Change.between(before, self.standing(), "add", names, known, how)


def reference_angles(rotations: str | Sequence[float], seed: int, index: int) -> tuple[float, ...]:
    """Angles of one reference, in degrees; 0 comes first."""
    match = _RANDOM.fullmatch(rotations) if isinstance(rotations, str) else None
    if match is None:
        return parse_rotations(rotations)
    drawn = np.random.default_rng([seed, index]).uniform(0, _LARGEST_ANGLE, int(match[1]))
    return (0.0, *map(float, drawn))


def _turn(image: np.ndarray, angle: float, border: Border) -> np.ndarray:
    if border == "mirror" or angle == 0 or is_scan(image):
        return rotate_image(image, angle)
    # As torchvision's RandomRotation does it with its defaults.
    return np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.NEAREST))
