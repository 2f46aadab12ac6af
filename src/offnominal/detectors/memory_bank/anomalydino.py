"""AnomalyDINO: patch features of a few good images, nearest neighbours, mean of the top 1 %.

Damm, Laszkiewicz, Lederer and Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly
Detection with DINOv2", WACV 2025 (arXiv 2405.14529).
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from offnominal.detectors.features import FeatureDetector, ViewScores, tokens_of
from offnominal.detectors.learned_state import must
from offnominal.detectors.masked import MaskedFeatures, channel_scale
from offnominal.detectors.memory_bank.base import BankDetector
from offnominal.detectors.options import Progress
from offnominal.errors import OptionError
from offnominal.orientation import (
    MOST_TESTED,
    OrientationTest,
    lone_reference,
    mean_square_distance,
    orientation_test,
)
from offnominal.rotations import parse_rotations, rotate_image
from offnominal.views import View, turned_back

__all__ = ["AnomalyDINO"]

Floats = NDArray[np.float32]


class AnomalyDINO(MaskedFeatures, BankDetector):
    """Few-shot, training-free detection with a memory bank of patch features.

    Parameters
    ----------
    mask_references : bool
        Whether background patches of the references are left out of the bank as well.
    rotations : str
        Angles of the references in degrees: ``agnostic`` (0, 45, ..., 315), ``none``, or a list
        such as ``0,90,180,270``. ``auto``: the first references decide between the first two, by
        whether good parts come turned; a single one follows the paper with DINOv2 (``agnostic``),
        and is not turned with others.
    **options
        See :class:`~offnominal.detectors.masked.MaskedFeatures` and
        :class:`~offnominal.detectors.memory_bank.base.BankDetector`. Standardised features take
        ``storage="fp32"``.

    Examples
    --------
    >>> from offnominal import AnomalyDINO
    >>> detector = AnomalyDINO(backbone="builtin").fit(["good/0.png", "good/1.png"])
    >>> [prediction] = detector.predict("next.png")
    >>> prediction.score, prediction.is_anomalous, prediction.regions()
    """

    method: ClassVar[str] = "anomalydino"
    looks: ClassVar[bool] = True
    takes_defects: ClassVar[bool] = True
    exports: ClassVar[bool] = True

    def __init__(
        self,
        mask_references: bool = False,
        rotations: str | Sequence[float] = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if rotations != "auto":
            parse_rotations(rotations)
        self.mask_references = mask_references
        self.rotations = rotations if isinstance(rotations, str) else tuple(rotations)
        self.begin()

    def begin(self) -> None:
        """An empty bank; ``auto`` has decided nothing yet."""
        super().begin()
        self.rotations_ = _asked(self.rotations)
        self.orientation_test_: dict[str, Any] | None = None

    def check_learned(self) -> None:
        """References were turned as the option says, or as the test of ``auto`` found."""
        super().check_learned()
        asked, test = _asked(self.rotations), self.orientation_test_
        if asked:
            must(self.rotations_ == asked and test is None, "rotations_ is not what was asked for")
        else:
            told = TypeAdapter(OrientationTest).validate_python(test)
            must(asdict(told) == test, "orientation_test_ says more than it can")
            must(self.rotations_ == _verdict(told.turned), "rotations_ is not what the test found")

    def plain_views(self, image: np.ndarray) -> list[View]:
        """The image as it is, or its tiles."""
        return FeatureDetector.views(self, image)

    def turned_views(self, image: np.ndarray, angle: float) -> list[View]:
        """The same of the image turned by an angle."""
        size = (image.shape[0], image.shape[1])
        turned = self.plain_views(rotate_image(image, angle))
        return [turned_back(view, size, angle) for view in turned]

    def reference_views(self, image: np.ndarray) -> list[View]:
        """A reference in every rotation, upright first."""
        views = self.views(image)
        for angle in self.angles[1:]:
            views += self.turned_views(image, angle)
        return views

    @property
    def angles(self) -> tuple[float, ...]:
        """Degrees that references are turned by; while ``auto`` is open, all that it may choose."""
        return parse_rotations(self.rotations_ or "agnostic")

    def learn(self, number: int, image: np.ndarray) -> None:
        """Put a reference into the bank in every rotation; the first few decide on these."""
        if not self.rotations_ and self.expected == 1:
            self.decide_rotations()
        super().learn(number, image)
        if not self.rotations_ and number + 1 == MOST_TESTED:
            self.decide_rotations()

    def rows(self, features: Any) -> Floats:
        """Features (D, gh, gw) as the bank takes them."""
        return self.normalised(tokens_of(features))

    def learn_features(self, number: int, features: Any, view: int, upright: bool) -> None:
        """Put a view into the bank; the mask is decided on the first one."""
        if number == 0 and view == 0:
            self._check_storage()
            self.decide_mask(features)
            if self.expected and self.rotations_ and not self.mask_references:
                views = len(self.views_of(self.references[0].size))
                each = features.shape[1] * features.shape[2] * views
                self.bank.reserve(self.expected * each * len(self.angles))
        # A fit standardises all rows at its end; later ones take what it found.
        rows, patch, counts = self.rows(features), None, None
        if upright or self.mask_references:
            mask = self.object_mask if self.mask_references else self.foreground
            counts = mask(features).ravel()
        if counts is not None and self.mask_references:
            patch = np.flatnonzero(counts)
            rows, counts = rows[patch], counts[patch]
        self.bank.add(rows, number, view, patch, counts if upright else None)

    def finish(self, progress: Progress | None) -> None:
        """Few references decide on rotations here; rows are standardised, if that is asked for."""
        if not self.rotations_:
            self.decide_rotations()
        if not len(self.bank):
            raise OptionError("--mask-references: the mask leaves nothing to learn; leave it out")
        self.standardize(self.bank)
        super().finish(progress)

    def compare(self, features: Any, without: int | None = None) -> ViewScores:
        """Distance of each patch to its nearest rows; 0 where the mask leaves it out."""
        scores, _ = self.judge(self.rows(features), without)
        return ViewScores(scores.reshape(features.shape[1:]) * self.foreground(features))

    def decide_rotations(self) -> None:
        """Choose once whether good parts come turned; if not, turned rows leave the bank again."""
        bank, known = self.bank, len(self.references)
        views = np.array([len(self.views_of(one.size)) for one in self.references])
        angle = bank.view // views[bank.reference]
        # With --mask-references there may be some without a patch that counts.
        tested = [n for n in range(known) if (bank.counts & (bank.reference == n)).any()]
        if len(tested) > 1:
            test = orientation_test(self._distances(tested, angle))
        else:
            test = lone_reference(self.load_network().family == "dinov2")
        if not test.turned:
            bank.keep(angle == 0)
        if self.expected and len(bank):
            bank.reserve(self.expected * len(bank) // known)
        self.rotations_ = _verdict(test.turned)
        self.orientation_test_ = asdict(test)

    def _distances(self, tested: Sequence[int], angle: NDArray[np.integer]) -> Floats:
        """Mean squared distances (n, n, angles) of references to one another, which is turned."""
        bank = self.bank
        own = [bank.rows_of(number) for number in tested]
        scale: Floats | float = 1.0
        if self.normalization == "standardize":  # which the bank is only when all rows are there
            scale = channel_scale(bank.take(np.flatnonzero(angle == 0)))
        queries = [bank.take(rows[bank.counts[rows]]) / scale for rows in own]
        found = np.full((len(tested), len(tested), len(self.angles)), np.inf, np.float32)
        for j, rows in enumerate(own):
            for place in range(len(self.angles)):
                turned = bank.take(rows[angle[rows] == place]) / scale
                for i in range(len(tested)):
                    if i != j:
                        found[i, j, place] = mean_square_distance(queries[i], turned)
        return found

    def _check_storage(self) -> None:
        if self.normalization == "standardize" and self.storage != "fp32":
            raise OptionError(
                f"--storage {self.storage}: the features of {self.load_network().name} are "
                "standardised once all are there, which takes --storage fp32, or --set normalize=l2"
            )


def _asked(rotations: str | Sequence[float]) -> str:
    """The option as text; nothing for ``auto``, which is still to decide."""
    text = rotations if isinstance(rotations, str) else ",".join(map(str, rotations))
    return "" if text == "auto" else text


def _verdict(turned: bool) -> str:
    return "agnostic" if turned else "none"
