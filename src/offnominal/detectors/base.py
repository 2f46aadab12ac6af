"""What every detector shares: images in, leave-one-out, calibration, predictions out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from offnominal import modelfile
from offnominal.calibration import FalseReject, check_rate
from offnominal.depths import read_images
from offnominal.detectors.categories import refuse_several
from offnominal.detectors.judging import Judge
from offnominal.detectors.learned_state import (
    learned_tensors,
    learned_values,
    must,
    must_fit,
    restore_learned,
)
from offnominal.detectors.made_scores import copy_scores, defect_scores
from offnominal.detectors.options import OnError, Progress, check_range, option_defaults
from offnominal.detectors.references import References, Sample, Standing, Version
from offnominal.errors import NotFittedError, OptionError
from offnominal.good_scores import CalibrationScores, GoodScores
from offnominal.images import ImageSource, content_digest, describe, read_image, several
from offnominal.images import parse_sixteen_bit as check_sixteen_bit
from offnominal.memory import MemoryBank
from offnominal.prediction import Prediction
from offnominal.scoring import Scores, Size, check_aggregate, size_of
from offnominal.synthesis.sizes import CELLS, PER_CELL

__all__ = ["Detector"]


class Detector(Judge, ABC):
    """Base of every method.

    A method writes :meth:`learn`, :meth:`score` and :meth:`score_reference`, or, over a backbone,
    the few that :class:`~offnominal.detectors.features.FeatureDetector` asks for. What it learned
    is kept in attributes whose names end in ``_`` (tensors and plain values) and in submodules'
    buffers; all of it is saved and restored by that rule.

    Parameters
    ----------
    aggregate : str
        Image score from patch scores: ``top1`` (mean of the top 1 %), ``max``, ``map-max``,
        ``map-top1``, ``mean``, ``quantile99``, or the name of the method's own image score.
    sixteen_bit : str
        ``range`` or two percentiles such as ``0.5,99.5``; how 16-bit images become 8-bit ones.
    smoothing : float
        Standard deviation of the map's Gaussian, in pixels of the image.
    false_reject : float or "auto"
        Rate of good parts that may be rejected, on (0, 1). ``auto``: the tightest that the good
        images can promise, 1 / (n + 1) with n of them, down to 0.01.
    """

    method: ClassVar[str]
    # Whether `fit` must, and may, be given images; zero-shot methods are fitted without any.
    needs_references: ClassVar[bool] = True
    accepts_references: ClassVar[bool] = True
    # Options beside the weights that name a file which `fit` reads.
    file_options: ClassVar[tuple[str, ...]] = ()
    # Options that say where images and keys go; those that nobody but a model file has named.
    confirmed_options: ClassVar[tuple[str, ...]] = ()
    unconfirmed: frozenset[str] = frozenset()
    # At most so many references are scored to set the thresholds; 0: all.
    calibrate_on: int = 0
    seed: int = 0

    def __init__(
        self,
        aggregate: str = "top1",
        sixteen_bit: str = "range",
        smoothing: float = 4.0,
        false_reject: FalseReject = "auto",
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise OptionError(f"{self.method} has no option {', '.join(unknown)}")
        check_aggregate(aggregate, self.own_score)
        check_sixteen_bit(sixteen_bit)
        check_range("smoothing", smoothing, least=0, most=10_000)
        check_rate(false_reject)
        self.aggregate = aggregate
        self.sixteen_bit = sixteen_bit
        self.smoothing = smoothing
        self.false_reject = false_reject
        self.unverified: Callable[[], None] | None = None
        self.expected: int | None = None  # how many images a fit was given, where that is known
        self._forget_references()

    def _forget_references(self) -> None:
        self.fitted, self.copies = False, 0
        self.references = References()
        self.good = GoodScores()
        self.depths_: list[int] = []  # bits of a channel, 8 or 16, of what was learned from

    # -- what a method writes -----------------------------------------------------------------

    def begin(self) -> None:
        """Empty what was learned, or make room for it: before a fit, and in a constructor's end."""

    @abstractmethod
    def learn(self, number: int, image: np.ndarray) -> Any:
        """Take in one good image, uint8 (H, W, 3).

        What is returned is handed to :meth:`score_reference` while the fit lasts.
        """

    def finish(self, progress: Progress | None) -> None:
        """All images were taken in."""

    def scored_all(self, scored: Mapping[int, Scores]) -> Mapping[int, Scores]:
        """Scores of the references that thresholds are set from, once all are known."""
        return scored

    def release(self) -> None:
        """The fit is over: let go of what only it needed."""

    def check_learned(self) -> None:
        """Raise a ValueError unless what a file gave fits together: sizes, numbers, ranges."""
        known = range(len(self.references))
        must(set(self.depths_) <= {8, 16}, "depths of pictures that there are not")
        must(all(n in known for n in self.good.references.numbers), "scores of no reference")
        must(all(n < len(CELLS) for n in self.good.defects.numbers), "unknown synthetic defects")
        for bank in self.modules():
            if isinstance(bank, MemoryBank) and len(bank):
                must(known and int(bank.reference.min()) >= 0, "rows of no reference")
                last = max(int(bank.reference.max()), int(bank.loo_reference.max()))
                must(last < len(known), "rows of a reference that there is not")

    @abstractmethod
    def score(self, image: np.ndarray, without: int | None = None) -> Scores:
        """What the score and the map of an image, uint8 (H, W, 3), are made of.

        ``without``: as if that reference had never been learned, while the fit lasts.
        """

    @abstractmethod
    def score_reference(self, number: int, kept: Any) -> Scores:
        """Score a reference as if it had never been learned; ``leave_one_out`` says if it is so."""

    def not_inspected(self, size: Size) -> str | None:
        """What of an image (H, W) is never looked at, in words; None: all of it is."""

    # -- the estimator's contract -------------------------------------------------------------

    @classmethod
    def option_defaults(cls) -> dict[str, Any]:
        """The constructor's arguments, all of them plain values, and their defaults."""
        return option_defaults(cls)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments and their values; the device is left out."""
        return {name: getattr(self, name) for name in self.option_defaults() if name != "device"}

    def fit(
        self,
        images: Iterable[ImageSource] = (),
        on_error: OnError | None = None,
        progress: Progress | None = None,
        synthetic: bool | None = None,
    ) -> Self:
        """Learn from images of good parts, and set the thresholds from each without itself.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
            None at all for zero-shot methods; others need some, or an :class:`OptionError` says
            so. Exact copies count once (``copies`` says how many were left out): a copy would score
            nothing against its twin and spoil the threshold.
        on_error : callable or None
            Called with each :class:`ImageError`, and the image is left out; None: it is raised.
        progress : callable or None
            Called with the stage and the number of images that it has done.
        synthetic : bool or None
            Whether synthetic defects on the references are scored as well, 48 of them, so that
            ``missed_defects`` says how many the threshold would pass. None: where the threshold is
            an estimate; a :class:`ThresholdWarning` says so if it would pass the plainest of them.
        """
        images = several(images)
        self._forget_references()
        self.unverified = None
        self.expected = len(images) if isinstance(images, Sequence) else None
        copies: list[str] = []
        kept = Sample(self.calibrate_on, self.seed)
        scored: dict[int, Scores] = {}
        originals = Sample(self.calibrate_on or PER_CELL, self.seed)  # some of those that are kept
        try:
            with torch.inference_mode():
                self.begin()
                good = self.references.take_in(self.read(images, on_error), copies)
                for number, image, source in good:
                    if not self.accepts_references:
                        told = "give none, and good images to calibrate for a threshold"
                        raise OptionError(f"{self.method} learns from no image: {told}")
                    kept.offer(number, self.learn(number, image))
                    originals.offer(number, source)
                    if progress:
                        progress("features", number + 1)
                if not self.references and self.needs_references:
                    raise OptionError("no image to learn from: give one of a good part, or more")
                self.finish(progress)
                if self.leave_one_out != "none" and len(self.references) > 1:
                    for number in sorted(kept):
                        held = kept[number] if number in originals else kept.pop(number)
                        scored[number] = self.score_reference(number, held)
                        if progress:
                            progress("threshold", len(scored))
                self.copies = len(copies)
                self.set_references(self.scored_all(scored))
                if self.leave_one_out != "none" and self.references:
                    self._score_made(originals, kept, synthetic, progress)
        finally:
            self.release()
        self.references.note("fit", range(len(self.references)), self.bank_rows)
        # Only now: a fit that was broken off must not pass for a whole one.
        self.fitted = True
        self.warn()
        return self

    def _score_made(
        self,
        originals: Mapping[int, ImageSource],
        kept: Mapping[int, Any],
        synthetic: bool | None,
        progress: Progress | None,
    ) -> None:
        """Score what is made of the references: copies of an only one, and synthetic defects."""
        alone = len(self.references) == 1

        def original(number: int) -> np.ndarray:
            if self.leave_one_out == "approximate" and not alone:
                self.score_reference(number, kept[number])  # a model without it is there again
            return read_image(originals[number], self.sixteen_bit)

        if alone:
            self.good.copies = copy_scores(original(0), self.score, self.judged)
            self.good.choose(self.references.active)
        if synthetic or (synthetic is None and self.estimated):
            told = (original, self.score, self.judged, alone, progress)
            self.good.defects = defect_scores(originals, *told)
            self.good.defects_by = self.references.active

    def predict(self, images: Iterable[ImageSource] | ImageSource) -> list[Prediction]:
        """Predictions for some images, in their order; the first bad image raises.

        ``images`` is one image, or an iterable as :meth:`fit` takes it.
        """
        return list(self.stream(several(images)))

    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Predictions as they come, in order, reading ahead; parameters as :meth:`fit` has them."""
        self.check_fitted()
        for done, (source, image) in enumerate(self.read(images, on_error), start=1):
            with torch.inference_mode():
                scores = self.score(image)
            found = self.judged_or_told(describe(source), image, scores, on_error)
            if progress:
                progress("predict", done)
            if found:
                yield found

    def calibrate(
        self,
        images: Iterable[ImageSource],
        false_reject: FalseReject | None = None,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Set the thresholds from good images that the detector has not learned from.

        They replace the scores of the references, which are a little too high: each reference was
        scored without itself. References among them are left out, since they would score next to
        nothing, and so are copies; how many is returned. They stay in force while references are
        added, and are put aside while some that they were scored by are forgotten.
        """
        rate = self.false_reject if false_reject is None else false_reject
        check_rate(rate)
        refuse_several(self.references)
        known = {one.digest for one in self.references if one.active}
        scored: list[tuple[Scores, Size]] = []
        skipped = 0
        for prediction in self.stream(images, on_error, progress):
            digest = content_digest(prediction.image)
            if digest in known:
                skipped += 1
                continue
            known.add(digest)
            scored.append((prediction.scores, size_of(prediction.image)))
        if not scored:
            raise OptionError(
                "no image to calibrate with: give good images that the detector has not learned "
                f"from ({skipped} of those given are among its references)"
            )
        self.false_reject = rate
        measured = CalibrationScores.measured("held-out", scored, self.judged)
        self.good.calibrate(measured, self.references.active)
        self.warn()
        return skipped

    def rescored(self, **changes: Any) -> Self:
        """A detector that has learned the same and scores it another way; thresholds are set anew.

        ``changes`` are of ``aggregate``, ``smoothing`` and ``false_reject``; any other raises an
        :class:`OptionError`. What was learned is shared, and stays as it is if the other grows.
        """
        for name in changes:
            if name not in ("aggregate", "smoothing", "false_reject"):
                raise OptionError(f"{name}: takes another fit; only the scoring can be changed")
        self.verify()
        other = self.twin(changes)
        other.category = self.category
        other.restore(deepcopy(self.header()), self.tensors())  # nothing that changes is shared
        other.good.remeasure(other.judged, other.references.active)
        return other

    def twin(self, changes: Mapping[str, Any]) -> Self:
        """Another with the same options, but for some, that has learned nothing yet."""
        return type(self)(**(self.options() | dict(changes)))

    def history(self) -> list[Version]:
        """The steps by which the detector came to know what it knows, the first one first."""
        return self.references.history()

    def standing(self) -> Standing:
        """What a change is told against."""
        return Standing(len(self.references.active), self.bank_rows, self.threshold)

    @property
    def bank_rows(self) -> int:
        """Patches in all memory banks; 0 where a method has none."""
        return sum(bank.left() for bank in self.modules() if isinstance(bank, MemoryBank))

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically; :func:`offnominal.load` opens it."""
        self.check_fitted()
        arrays = {name: tensor.cpu().numpy() for name, tensor in self.tensors().items()}
        modelfile.write(Path(path), self.header(), arrays)

    def header(self) -> dict[str, Any]:
        """All that is not a tensor, as plain values."""
        return {
            "method": self.method,
            "options": self.options(),
            "references": self.references.plain(),
            "learned": learned_values(self),
            "calibration": self.good.facts(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Learned tensors and calibration scores; the backbone's weights are not among them."""
        good = {name: torch.from_numpy(array) for name, array in self.good.arrays().items()}
        return learned_tensors(self) | good

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`header` and :meth:`tensors` gave, or raise a ModelFileError."""
        with must_fit():
            self.references = References.from_plain(header["references"])
            good = {n: t.numpy() for n, t in tensors.items() if n.startswith("calibration.")}
            self.good.restore(good, header["calibration"])
            rest = {name: tensor for name, tensor in tensors.items() if name not in good}
            restore_learned(self, header["learned"], rest)
            self.check_learned()
        self.fitted = True  # no other can be saved
        self.good.choose(self.references.active)

    def read(
        self, images: Iterable[ImageSource], on_error: OnError | None
    ) -> Iterator[tuple[ImageSource, np.ndarray]]:
        """Images as uint8 (H, W, 3) arrays, read ahead; bad ones are handed to ``on_error``."""
        known, learning = self.depths_, not self.fitted
        return read_images(several(images), self.sixteen_bit, on_error, known, learning)

    def check_fitted(self) -> None:
        """Raise a :class:`NotFittedError` unless something was learned."""
        if not self.fitted:
            raise NotFittedError(f"this {type(self).__name__} has learned nothing yet: call fit")
        self.verify()

    def verify(self) -> None:
        """Compare what a file's large arrays hold with their checksums, before their first use."""
        if self.unverified:
            self.unverified()
            self.unverified = None
