"""AnomalyDINO: patch features of a few good images, nearest neighbours, mean of the top 1 %.

Damm, Laszkiewicz, Lederer and Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly
Detection with DINOv2", WACV 2025 (arXiv 2405.14529).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from offnominal.detectors.features import FeatureDetector, ViewScores, tokens_of
from offnominal.detectors.masked import MaskedFeatures
from offnominal.detectors.memory_bank.base import BankDetector
from offnominal.detectors.options import Progress
from offnominal.errors import OptionError
from offnominal.views import View, parse_rotations, rotate_image, turned_back

__all__ = ["AnomalyDINO"]


class AnomalyDINO(MaskedFeatures, BankDetector):
    """Few-shot, training-free detection with a memory bank of patch features.

    Parameters
    ----------
    mask_references : bool
        Whether background patches of the references are left out of the bank as well.
    rotations : str
        Angles of the references in degrees: ``agnostic`` (0, 45, ..., 315), ``none``, or a list
        such as ``0,90,180,270``.
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

    def __init__(
        self,
        mask_references: bool = False,
        rotations: str | Sequence[float] = "agnostic",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        parse_rotations(rotations)
        self.mask_references = mask_references
        self.rotations = rotations if isinstance(rotations, str) else tuple(rotations)
        self.begin()

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
        for angle in parse_rotations(self.rotations)[1:]:
            views += self.turned_views(image, angle)
        return views

    def rows(self, features: Tensor) -> Tensor:
        """Features (D, gh, gw) as the bank takes them."""
        return self.normalised(tokens_of(features))

    def learn_features(self, number: int, features: Any, view: int, upright: bool) -> None:
        """Put a view into the bank; the mask is decided on the first one."""
        if number == 0 and view == 0:
            self._check_storage()
            self.decide_mask(features)
            if self.expected and not self.mask_references:
                views = len(self.views_of(self.references[0].size))
                each = features.shape[1] * features.shape[2] * views
                self.bank.reserve(self.expected * each * len(parse_rotations(self.rotations)))
        # A fit standardises all rows at its end; later ones take what it found.
        rows, patch, counts = self.rows(features), None, None
        if upright or self.mask_references:
            mask = self.object_mask if self.mask_references else self.foreground
            counts = mask(features).flatten()
        if counts is not None and self.mask_references:
            patch = counts.nonzero()[:, 0]
            rows, counts = rows[patch], counts[patch]
        self.bank.add(rows, number, view, patch, counts if upright else None)

    def finish(self, progress: Progress | None) -> None:
        """Standardise the rows, where that is asked for."""
        if not len(self.bank):
            raise OptionError("--mask-references: the mask leaves nothing to learn; leave it out")
        self.standardize(self.bank)
        super().finish(progress)

    def compare(self, features: Any, without: int | None = None) -> ViewScores:
        """Distance of each patch to its nearest rows; 0 where the mask leaves it out."""
        scores, _ = self.judge(self.rows(features), without)
        return ViewScores(scores.reshape(features.shape[1:]) * self.foreground(features))

    def _check_storage(self) -> None:
        if self.normalization == "standardize" and self.storage != "fp32":
            raise OptionError(
                f"--storage {self.storage}: the features of {self.load_network().name} are "
                "standardised once all are there, which takes --storage fp32, or --set normalize=l2"
            )
