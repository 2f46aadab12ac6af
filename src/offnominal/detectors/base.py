"""What every detector shares: images in, leave-one-out, calibration, predictions out."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from offnominal import modelfile
from offnominal.calibration import Threshold, check_rate, p_value
from offnominal.detectors.learned_state import learned_tensors, learned_values, restore_learned
from offnominal.detectors.options import (
    LeaveOneOut,
    OnError,
    Progress,
    check_range,
    option_defaults,
)
from offnominal.detectors.references import Reference, Sample, Step, Version, What, take_in
from offnominal.errors import ModelFileError, NotFittedError, OptionError
from offnominal.images import ImageSource, content_digest, describe, parse_sixteen_bit, read_image
from offnominal.memory import MemoryBank
from offnominal.prediction import Prediction
from offnominal.prefetch import read_ahead
from offnominal.scoring import (
    Calibration,
    CalibrationScores,
    Scores,
    Size,
    anomaly_map,
    check_aggregate,
    image_score,
)

__all__ = ["Detector"]


class Detector(nn.Module, ABC):
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
    false_reject : float
        Rate of good parts that may be rejected, on (0, 1).
    """

    method: ClassVar[str]
    # Whether `fit` must be given images; zero-shot methods are ready after a fit without any.
    needs_references: ClassVar[bool] = True
    # Whether `fit` may be given images.
    accepts_references: ClassVar[bool] = True
    # The value of `aggregate` that stands for the image's own score, where the method gives one.
    own_score: ClassVar[str | None] = None
    # Options beside the weights that name a file which `fit` reads.
    file_options: ClassVar[tuple[str, ...]] = ()
    # At most so many references are scored to set the thresholds; 0: all.
    calibrate_on: int = 0
    seed: int = 0

    def __init__(
        self,
        aggregate: str = "top1",
        sixteen_bit: str = "range",
        smoothing: float = 4.0,
        false_reject: float = 0.01,
    ) -> None:
        super().__init__()
        check_aggregate(aggregate, self.own_score)
        parse_sixteen_bit(sixteen_bit)
        check_range("smoothing", smoothing, least=0)
        check_rate(false_reject)
        self.aggregate = aggregate
        self.sixteen_bit = sixteen_bit
        self.smoothing = smoothing
        self.false_reject = false_reject
        self.copies = 0
        # How many images a fit was given, where that is known.
        self.expected: int | None = None
        self._forget_references()

    def _forget_references(self) -> None:
        self.fitted = False
        self.references: list[Reference] = []
        self.steps: list[Step] = []
        self.reference_scores = CalibrationScores()
        self.held_out = CalibrationScores()
        # The references that the held-out scores were measured against.
        self.calibrated_with: list[int] = []
        self.calibration = CalibrationScores()

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

    def release(self) -> None:
        """The fit is over: let go of what only it needed."""

    @abstractmethod
    def score(self, image: np.ndarray) -> Scores:
        """What the score and the map of an image, uint8 (H, W, 3), are made of."""

    @abstractmethod
    def score_reference(self, number: int, kept: Any) -> Scores:
        """Score a reference as if it had never been learned."""

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """Whether :meth:`score_reference` keeps its word; ``none``: there is no such thing."""
        return "exact"

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
    ) -> Self:
        """Learn from images of good parts, and set the thresholds from each without itself.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
            None at all for zero-shot methods. Exact copies of an image count once (``copies`` says
            how many were left out): a copy among the references would score nothing against its
            twin and spoil the threshold.
        on_error : callable or None
            Called with each :class:`ImageError`, and the image is left out; None: it is raised.
        progress : callable or None
            Called with the stage and the number of images that it has done.

        Raises
        ------
        OptionError
            If there is no image to learn from, and the method needs some.
        """
        self._forget_references()
        self.copies = 0
        self.expected = len(images) if isinstance(images, Sequence) else None
        copies: list[str] = []
        kept = Sample(self.calibrate_on, self.seed)
        scored: dict[int, Scores] = {}
        try:
            with torch.inference_mode():
                self.begin()
                good = take_in(self.references, self.read(images, on_error), copies)
                for number, image in good:
                    if not self.accepts_references:
                        raise OptionError(
                            f"{self.method} learns from no image: give none, and good images to "
                            "calibrate for a threshold"
                        )
                    kept.offer(number, self.learn(number, image))
                    if progress:
                        progress("features", number + 1)
                if not self.references and self.needs_references:
                    raise OptionError(
                        "no image to learn from: give at least one image of a good part"
                    )
                self.finish(progress)
                if self.leave_one_out != "none" and len(self.references) > 1:
                    for number in sorted(kept):
                        scored[number] = self.score_reference(number, kept.pop(number))
                        if progress:
                            progress("threshold", len(scored))
        finally:
            self.release()
        self.copies = len(copies)
        self.set_references(scored)
        self.note("fit", range(len(self.references)))
        # Only now: a fit that was broken off must not pass for a whole one.
        self.fitted = True
        return self

    def predict(self, images: Iterable[ImageSource] | ImageSource) -> list[Prediction]:
        """Predictions for some images, in their order; the first bad image raises.

        Parameters
        ----------
        images : one image, or an iterable of paths, uint8 or uint16 arrays, or PIL images

        Raises
        ------
        ImageError
            Naming the image; :meth:`stream` can go on instead.
        """
        if isinstance(images, str | Path | np.ndarray) or hasattr(images, "getexif"):
            images = [images]  # type: ignore[list-item]  # one image stands for a list of one
        return list(self.stream(images))  # type: ignore[arg-type]  # narrowed just above

    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Predictions as they come, in order and in constant memory, reading ahead.

        Parameters
        ----------
        images : iterable of paths, uint8 or uint16 arrays, or PIL images
        on_error : callable or None
            Called with each :class:`ImageError`, and the image is left out; None: it is raised.
        progress : callable or None
            Called with the stage and the number of images that it has done.
        """
        self.check_fitted()
        for done, (source, image) in enumerate(self.read(images, on_error), start=1):
            with torch.inference_mode():
                found = self.prediction(describe(source), image, self.score(image))
            if progress:
                progress("predict", done)
            yield found

    def calibrate(
        self,
        images: Iterable[ImageSource],
        false_reject: float | None = None,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Set the thresholds from good images that the detector has not learned from.

        They replace the scores of the references, which are a little too high: each reference was
        scored without itself. Images that are references are left out, since they would score next
        to nothing, and so are copies of images given before. They stay in force while references
        are added, and are put aside while some that they were scored by are forgotten.

        Returns
        -------
        int
            How many images were left out because the detector knows them already.
        """
        if false_reject is not None:
            check_rate(false_reject)
        known = {one.digest for one in self.references if one.active}
        scored: list[tuple[Scores, Size]] = []
        skipped = 0
        for prediction in self.stream(images, on_error, progress):
            digest = content_digest(prediction.image)
            if digest in known:
                skipped += 1
                continue
            known.add(digest)
            scored.append((prediction.scores, _size(prediction.image)))
        if not scored:
            raise OptionError(
                "no image to calibrate with: give good images that the detector has not learned "
                f"from ({skipped} of those given are among its references)"
            )
        if false_reject is not None:
            self.false_reject = false_reject
        self.held_out = self.measured("held-out", *zip(*scored, strict=True))
        self.calibrated_with = self.active_numbers
        self.choose_calibration()
        return skipped

    def rescored(self, **changes: Any) -> Self:
        """A detector that has learned the same and scores it another way, sharing what it learned.

        Parameters
        ----------
        **changes
            ``aggregate``, ``smoothing`` or ``false_reject``; thresholds are set anew.

        Raises
        ------
        OptionError
            If another option is named.
        """
        for name in changes:
            if name not in ("aggregate", "smoothing", "false_reject"):
                raise OptionError(f"{name}: takes another fit; only the scoring can be changed")
        other = self.twin(changes)
        header = json.loads(json.dumps(self.header()))  # nothing that changes is shared
        other.restore(header, self.tensors())
        for name in ("reference_scores", "held_out"):
            old: CalibrationScores = getattr(other, name)
            setattr(other, name, other.measured(old.kind, old.scores, old.sizes, old.numbers))
        other.choose_calibration()
        return other

    def twin(self, changes: Mapping[str, Any]) -> Self:
        """Another with the same options, but for some, that has learned nothing yet."""
        return type(self)(**(self.options() | dict(changes)))

    def rescore(self, prediction: Prediction) -> Prediction:
        """A prediction of the same fit, with this detector's scoring and thresholds."""
        return self.prediction(prediction.source, prediction.image, prediction.scores)

    @property
    def threshold(self) -> Threshold | None:
        """Threshold of the image score; None where too few good images are known."""
        exact = self.leave_one_out == "exact"
        return self.calibration.threshold("images", self.false_reject, exact)

    @property
    def pixel_threshold(self) -> Threshold | None:
        """Threshold of the map: that many good images have no pixel above it."""
        exact = self.leave_one_out == "exact"
        return self.calibration.threshold("peaks", self.false_reject, exact)

    @property
    def calibration_note(self) -> str | None:
        """What should be known of held-out scores that other references measured."""
        if not len(self.held_out):
            return None
        if self.calibration is not self.held_out:
            return (
                "the held-out images were scored by references that are forgotten, so the "
                "threshold is set from the references again; `offnominal calibrate` sets it anew"
            )
        then, now = len(self.calibrated_with), len(self.active_numbers)
        if then == now:
            return None
        return (
            f"the held-out images were scored when there were {then} references, not {now}; "
            "`offnominal calibrate` sets the threshold anew"
        )

    def history(self) -> list[Version]:
        """The steps by which the detector came to know what it knows, the first one first."""
        return [step.version(n, self.references) for n, step in enumerate(self.steps, start=1)]

    @property
    def active_numbers(self) -> list[int]:
        """Numbers of the references that were not forgotten."""
        return [number for number, one in enumerate(self.references) if one.active]

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
            "references": [vars(one) for one in self.references],
            "steps": [step.plain() for step in self.steps],
            "learned": learned_values(self),
            "calibration": {
                "references": self.reference_scores.facts(),
                "held-out": self.held_out.facts(),
                "with": self.calibrated_with,
            },
        }

    def tensors(self) -> dict[str, Tensor]:
        """Learned tensors and calibration scores; the backbone's weights are not among them."""
        found = learned_tensors(self)
        for kind, scores in (("references", self.reference_scores), ("held-out", self.held_out)):
            for name, array in scores.arrays().items():
                found[f"calibration.{kind}.{name}"] = torch.from_numpy(array)
        return found

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`header` and :meth:`tensors` gave.

        Raises
        ------
        ModelFileError
            If they do not fit the method.
        """
        try:
            self.references = [Reference.from_plain(one) for one in header["references"]]
            self.steps = [Step(**step) for step in header["steps"]]
            found, rest = header["calibration"], dict(tensors)
            self.calibrated_with = found["with"]
            for kind, name in (("references", "reference_scores"), ("held-out", "held_out")):
                parts = ("patches", "images", "peaks")
                arrays = {part: rest.pop(f"calibration.{kind}.{part}").numpy() for part in parts}
                setattr(self, name, CalibrationScores.from_file(arrays, found[kind]))
            restore_learned(self, header["learned"], rest)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelFileError(f"its contents do not fit its method ({error})") from error
        self.fitted = True  # no other can be saved
        self.choose_calibration()

    # -- from scores to predictions and thresholds --------------------------------------------

    def image_score(self, scores: Scores, size: Size) -> float:
        """The image score, as ``aggregate`` has it."""
        if self.aggregate == self.own_score and scores.image is not None:
            return scores.image
        return image_score(scores, size, self.aggregate, self.smoothing)

    def map(self, scores: Scores, size: Size) -> np.ndarray:
        """Anomaly map, float32 (H, W)."""
        return anomaly_map(scores.patches, size, self.smoothing, scores.window)

    def prediction(self, source: str, image: np.ndarray, scores: Scores) -> Prediction:
        """What is said of an image with these scores."""
        size = _size(image)
        score = self.image_score(scores, size)
        threshold, pixel_threshold = self.threshold, self.pixel_threshold
        return Prediction(
            source=source,
            score=score,
            anomaly_map=self.map(scores, size),
            scores=scores,
            image=image,
            threshold=threshold.value if threshold else None,
            pixel_threshold=pixel_threshold.value if pixel_threshold else None,
            p_value=p_value(score, self.calibration.images),
        )

    def measured(
        self,
        kind: Calibration,
        scores: Sequence[Scores],
        sizes: Sequence[Size],
        numbers: Sequence[int] = (),
    ) -> CalibrationScores:
        """Scores of good images, with their image scores and the peaks of their maps."""
        pairs = list(zip(scores, sizes, strict=True))
        images = np.array([self.image_score(*pair) for pair in pairs], dtype=np.float64)
        peaks = np.array([self.map(*pair).max() for pair in pairs], dtype=np.float64)
        return CalibrationScores(kind, tuple(scores), tuple(sizes), images, peaks, tuple(numbers))

    def set_references(self, scored: Mapping[int, Scores]) -> None:
        """Set the thresholds from references that were scored without themselves."""
        # Infinite where a bank holds nothing of others.
        numbers = sorted(n for n, one in scored.items() if np.isfinite(one.patches).all())
        self.reference_scores = self.measured(
            "leave-one-out" if numbers else "none",
            [scored[number] for number in numbers],
            [self.references[number].size for number in numbers],
            numbers,
        )
        self.choose_calibration()

    def choose_calibration(self) -> None:
        """The scores that thresholds follow from: held-out ones while they hold."""
        active = self.active_numbers
        if len(self.held_out) and set(self.calibrated_with) <= set(active):
            self.calibration = self.held_out
        else:
            self.calibration = self.reference_scores.of(active)

    # -- helpers of methods -------------------------------------------------------------------

    def read(
        self, images: Iterable[ImageSource], on_error: OnError | None
    ) -> Iterator[tuple[ImageSource, np.ndarray]]:
        """Images as uint8 (H, W, 3) arrays, read ahead; bad ones are handed to ``on_error``."""
        return read_ahead(images, lambda source: read_image(source, self.sixteen_bit), on_error)

    def note(self, what: What, numbers: Iterable[int], when: str | None = None) -> None:
        """Write a step into the history."""
        count = len(self.active_numbers)
        self.steps.append(Step(what, list(numbers), count, self.bank_rows, when))

    def check_fitted(self) -> None:
        """Raise a :class:`NotFittedError` unless something was learned."""
        if not self.fitted:
            raise NotFittedError(f"this {type(self).__name__} has learned nothing yet: call fit")


def _size(image: np.ndarray) -> Size:
    return image.shape[0], image.shape[1]
