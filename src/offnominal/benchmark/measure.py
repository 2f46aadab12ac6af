"""Test images through one detector, into the records of every cell that it serves."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from offnominal.benchmark.measured import Meter
from offnominal.benchmark.record import Record
from offnominal.chat.endpoint import AnswerError
from offnominal.datasets import Sample, sample_mask
from offnominal.detectors import METHODS
from offnominal.detectors.prediction import Prediction
from offnominal.errors import DatasetError, ImageError
from offnominal.images import content_digest
from offnominal.metrics import PixelMetrics

__all__ = ["measure"]


def measure(
    records: Sequence[Record],
    test: Sequence[Sample],
    on_error: Callable[[ImageError], None] | None = None,
    progress: Callable[[str, int], None] | None = None,
    skip_references: bool = False,
    meter: Meter | None = None,
) -> None:
    """Score every test image once, and again for each record's own scoring.

    Parameters
    ----------
    records : sequence of Record
        Their detectors share one fit; the first one's does the work.
    test : sequence of Sample
    on_error : callable or None
        Called with each image that cannot be read, or that the method gives no score; None: it is
        raised.
    progress : callable or None
        Called with the stage and the number of images done.
    skip_references : bool
        Leave out test images that the detector was fitted to, and say so; otherwise they only
        get said.
    meter : Meter or None
        Of the network, which knows what a cache has spared.
    """
    first = records[0]
    accumulators: dict[float, PixelMetrics] = {}
    if any(sample.mask is not None for sample in test):
        for record in records:
            smoothing = record.detector.smoothing
            record.pixels = accumulators.setdefault(smoothing, PixelMetrics())
    known = {reference["digest"] for reference in first.detector.references_}
    by_file = {str(sample.image): sample for sample in test}
    copies, unmeasured = [], []
    seconds, uncached = [], []
    unscored: list[Sample] = []

    def failed(error: ImageError) -> None:
        # An image that nobody can read says nothing of a method; one without an answer does.
        if isinstance(error, AnswerError) and error.source in by_file:
            unscored.append(by_file[error.source])
        if on_error is None:
            raise error
        on_error(error)

    start = before = time.perf_counter()
    spared = meter.correction if meter else 0.0
    for prediction in first.detector.stream([s.image for s in test], failed, progress):
        seconds.append(time.perf_counter() - before)
        corrected = meter.correction if meter else 0.0
        uncached.append(seconds[-1] + corrected - spared)
        spared = corrected
        sample = by_file[prediction.source]
        if known and content_digest(prediction.image) in known:
            copies.append(sample.image.name)
        if not (skip_references and copies[-1:] == [sample.image.name]):
            why_not = _add(records, sample, prediction, seconds[-1], accumulators)
            if why_not:
                unmeasured.append(why_not)
        before = time.perf_counter()
    notes = list(unmeasured)
    if copies:
        done = "left out" if skip_references else "counted all the same"
        notes.append(
            f"{len(copies)} test images are exact copies of references, {done}: "
            + ", ".join(copies[:5])
        )
    spent = sum(seconds)
    overhead = time.perf_counter() - start - spent
    # A batch does nearly all of its work before its first prediction.
    one_by_one = not METHODS[first.detector.method].batched
    times = {"per_image": seconds, "per_image_uncached": uncached}
    typical = np.median if one_by_one else np.mean
    timings = {name: float(typical(each)) for name, each in times.items() if each}
    for record in records:
        record.notes += notes
        record.unscored = unscored
        record.timings |= {"predict": spent, "metrics": overhead, **timings}


def _add(
    records: Sequence[Record],
    sample: Sample,
    prediction: Prediction,
    seconds: float,
    accumulators: dict[float, PixelMetrics],
) -> str:
    """Take an image into every record; why it is not in the pixel metrics, where it should be."""
    shape = (prediction.image.shape[0], prediction.image.shape[1])
    why_not, mask = "", None
    if accumulators:
        try:
            mask = sample_mask(sample, shape)
        except DatasetError as error:
            why_not = f"left out of the pixel metrics: {error}"
    # A defective image whose mask is empty says nothing about which of its pixels are good.
    counts = mask is not None and (sample.label == 0 or bool(mask.any()))
    measured: set[float] = set()
    for record in records:
        own = prediction if record is records[0] else record.detector.rescore(prediction)
        record.add(sample, own, seconds)
        smoothing = record.detector.smoothing
        if counts and mask is not None and smoothing not in measured:
            accumulators[smoothing].update(own.anomaly_map, mask)
            measured.add(smoothing)
    return why_not
