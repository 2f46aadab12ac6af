"""Detectors that learn by descending a loss: networks, loss and score are all that a method says.

Images are squares of one size. Some of the good ones are held back and never trained on: the
thresholds are set from them, which promises what a false-reject rate says without any assumption
(split conformal prediction; Vovk, Gammerman and Shafer, 2005). No image of a test is ever used to
choose anything.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from offnominal.detectors.categories import Categorised, check_all_there, told_apart
from offnominal.detectors.descent import Descent
from offnominal.detectors.learned_state import must, must_fit
from offnominal.detectors.learner import Learner
from offnominal.detectors.made_scores import defect_scores
from offnominal.detectors.options import LeaveOneOut, OnError, Progress, ShowProgress
from offnominal.detectors.trainable import Trainable
from offnominal.errors import OptionError
from offnominal.good_scores import CalibrationScores
from offnominal.images import Channels, ImageSource
from offnominal.labels.labelled import Defects, labelled
from offnominal.progress import shown
from offnominal.scoring import Scores, Size
from offnominal.sources import ImageSources, several
from offnominal.synthesis.sizes import PER_CELL
from offnominal.training.images import ImageStore
from offnominal.training.labels import Labels

__all__ = ["Learned", "TrainedDetector"]


class Learned(NamedTuple):
    """Labels of the defective images that are stored behind the good ones, where there are any.

    ``names``: of each, with a digest of it and of its labels.
    """

    labels: Labels | None
    names: dict[str, str]


class TrainedDetector(Trainable):
    """Base of the methods that train networks on good images.

    What a method writes, and the options, are :class:`~offnominal.detectors.trainable.Trainable`'s.
    """

    takes_categories: ClassVar[bool] = True
    _unproven = False

    # -- scores -------------------------------------------------------------------------------

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Images that are held back set the thresholds; none is left out of a training."""
        return "none"

    def learn(self, number: int, image: np.ndarray) -> Any:
        """Nothing is learned from one image alone."""
        raise OptionError(f"{self.method} learns from all images at once: fit it anew")

    def score_reference(self, number: int, kept: Any) -> Scores:
        """No image is taken out of what was learned."""
        raise OptionError(f"{self.method} cannot take a reference out of what it learned")

    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """What the score and the map of an image are made of."""
        if self._unproven:  # that what a file gave fits together shows at its first use
            with must_fit():
                blank = self.images(self.blank()[None], [0]).pixels([0])
                self.scored(blank, (self.side, self.side))
            self._unproven = False
        pixels = self.images(self.sized(image)[None], [0]).pixels([0])
        return self.scored(pixels, (image.shape[0], image.shape[1]))

    # -- training -----------------------------------------------------------------------------

    def fit(
        self,
        images: ImageSources | Categorised = (),
        on_error: OnError | None = None,
        progress: ShowProgress = None,
        synthetic: bool | None = None,
        channels: Channels = "rgb",
        state: str | Path | None = None,
        overwrite: bool = False,
        tell: Callable[[str], None] | None = None,
        *,
        when: datetime | None = None,
        defects: Defects = (),
    ) -> Self:
        """Train on images of good parts, some of which are held back to set the thresholds.

        Parameters
        ----------
        images, on_error, progress, synthetic, channels, when, defects
            See :meth:`~offnominal.detectors.base.Detector.fit`. A mapping of names to images makes
            one model of several categories, each with a threshold of its own
            (:meth:`~offnominal.detectors.judging.Judge.for_category`) from its share of the images
            held back; no synthetic defects are scored then.
        state : path or None
            Model file that is to be, beside which the training keeps where it stands, in
            ``.state.safetensors``; a fit with the same images and options goes on from there, and
            on the CPU ends with the same bytes. None: what is broken off is lost.
        overwrite : bool
            Whether the state of another training that lies there is of no account.
        tell : callable or None
            Called with lines for a person: how far it is, the loss, and the time left.

        Raises
        ------
        OptionError
            With fewer than two images, a budget that is too short, a state of another training, a
            full disk, or a loss that is no longer finite.
        """
        category_of = dict[int, str]()
        if isinstance(images, Mapping):
            images, category_of = told_apart(images, channels)
            channels = "rgb"  # by now
            if not self.hold_back:
                raise OptionError(
                    "--hold-back 0: of several categories each needs images that are held back, "
                    "for its threshold"
                )
        found, known = several(images, channels), labelled(defects)
        if on_top := self.takes_defects and bool(known):
            found = list(found)  # which are looked at again
        with shown(progress, found) as told:
            where = Path(state) if state else None
            more = (category_of, where, overwrite, tell, when, () if on_top else known)
            self._train(found, on_error, told, synthetic, *more)
        if on_top:
            self.learn_defects(known, found, on_error, progress)
        self.warn()
        return self

    def _train(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None,
        progress: Progress | None,
        synthetic: bool | None,
        category_of: Mapping[int, str],
        state: Path | None,
        overwrite: bool,
        tell: Callable[[str], None] | None,
        when: datetime | None,
        defects: Defects,
    ) -> None:
        began = time.monotonic()
        self._forget_references()
        self._clear()
        self.unverified = None
        self.expected = len(images) if isinstance(images, Sequence) else None
        copies: list[str] = []
        sources: list[ImageSource] = []
        with ImageStore() as store:
            read = self.references.take_in(self.read(images, on_error), copies)
            for number, image, source in read:
                self.references[number].category = category_of.get(id(source), "")
                store.add(self.sized(image))
                sources.append(source)
                if progress:
                    progress("reading", number + 1)
            self.copies = len(copies)
            if store.count < 2:
                had = "one image" if store.count else "no image"
                raise OptionError(f"{had} to learn from: {self.method} takes 2 or more, better 50")
            check_all_there(self.references, set(category_of.values()))
            learned = self.store_defects(defects, store, on_error)
            told = tell or (lambda line: None)
            try:
                descent = Descent(self, store.array(), *learned)
                descent.run(began, state, overwrite, progress, told)
                with torch.inference_mode():
                    self._set_thresholds(sources, synthetic, progress)
            finally:
                self.release()
        self.references.note("fit", range(len(self.references)), 0, when)
        self.fitted = True

    def store_defects(
        self, defects: Defects, store: ImageStore, on_error: OnError | None
    ) -> Learned:
        """Take in the defective images that are trained on: none, where a method learns of none."""
        if labelled(defects):
            self.refuse_defects()
        return Learned(None, {})

    def _set_thresholds(
        self, sources: Sequence[ImageSource], synthetic: bool | None, progress: Progress | None
    ) -> None:
        pairs: list[tuple[Scores, Size]] = []
        for place, number in enumerate(self.held_back_):
            size = self.references[number].size
            pairs.append((self.scored(self.held_back.pixels([place]), size), size))
            if progress:
                progress("threshold", place + 1)
        if not all(np.isfinite(one.patches).all() for one, _ in pairs):
            raise OptionError(
                "scores of good images are not finite, so nothing can be decided with this "
                "detector; give a smaller --lr-scale, or --precision fp32"
            )
        active = self.references.active
        held = self.held_back_
        measured = CalibrationScores.measured("held-out", pairs, self.judged, held)
        self.good.calibrate(measured, active)
        if len(self.categories) > 1 or self.seen_as == "scan":  # nothing is made of points
            return
        if pairs and (synthetic or (synthetic is None and self.estimated)):
            some = dict.fromkeys(self.held_back_[:PER_CELL])

            def original(number: int) -> np.ndarray:
                return self.image_of(sources[number])

            told = (original, self.score, self.judged, True, progress)
            self.good.defects = defect_scores(some, *told)
            self.good.defects_by = active

    # -- files --------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was learned, and calibration scores."""
        found = super().arrays()
        if self.storage == "fp16":
            saved = (name for name, _ in Learner(self).named_parameters() if name in found)
            found |= {name: found[name].astype(np.float16) for name in saved}
        return found

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what was learned, into networks that are built first."""
        self.make_networks()
        if self.storage == "fp16":
            halves = {name for name, _ in Learner(self).named_parameters()}
            arrays = {k: a.astype(np.float32) if k in halves else a for k, a in arrays.items()}
        super().restore(header, arrays)
        self.eval().requires_grad_(False)
        self._unproven = True

    def check_learned(self) -> None:
        """Raise a ValueError unless what a file gave fits together."""
        super().check_learned()
        known = range(len(self.references))
        aside = [*self.held_back_, *self.chosen_by_]
        must(all(number in known for number in aside), "images held back that are none")
        must(self.steps_ >= 1, "no step of training")
