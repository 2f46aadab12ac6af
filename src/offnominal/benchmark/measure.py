"""Test images through one detector, into the records of every cell that it serves."""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from offnominal.benchmark.machine import NetworkMeter
from offnominal.benchmark.record import Record
from offnominal.chat.endpoint import AnswerError
from offnominal.datasets.doubts import Doubts
from offnominal.datasets.masks import inspect_mask
from offnominal.datasets.sample import Sample
from offnominal.detectors.batch.base import BatchDetector
from offnominal.errors import DatasetError, ImageError
from offnominal.metrics import PixelMetrics
from offnominal.prediction import Prediction
from offnominal.text import printable

__all__ = ["measure"]


def measure(
    records: Sequence[Record],
    on_error: Callable[[ImageError], None] | None = None,
    progress: Callable[[str, int], None] | None = None,
    skip_references: bool = False,
    meter: NetworkMeter | None = None,
) -> None:
    """Score every image that a record is tested on once, and again for each record's own scoring.

    The records' detectors share one fit; the first one's does the work. ``on_error`` is called with
    each image that cannot be read, or that the method gives no score; None: it is raised. With
    ``skip_references`` test images that the detector was fitted to are left out; otherwise they
    only get said. ``meter`` knows what a cache has spared the network; None: there is no cache. If
    no image got a score, that is a :class:`DatasetError`.
    """
    first = records[0]
    test = list(dict.fromkeys(sample for record in records for sample in record.test))
    if any(sample.mask is not None for sample in test):
        # Cells whose maps are the same, of the same images, share their pixels.
        pixels: dict[tuple[float, str], PixelMetrics] = {}
        for record in records:
            own = record.detector.smoothing, record.cell.tested
            record.pixels = pixels.setdefault(own, PixelMetrics())
    known = first.detector.learned_digests()
    by_file = {str(sample.image): sample for sample in test}
    copies: list[str] = []
    notes: list[str] = []
    doubts = Doubts()
    unscored: list[Sample] = []
    reason = "all are copies of images that were learned from"
    times: list[tuple[float, float]] = []

    def failed(error: ImageError) -> None:
        nonlocal reason
        reason = str(error)
        # An image that nobody can read says nothing of a method; one without an answer does.
        if isinstance(error, AnswerError) and error.source in by_file:
            unscored.append(by_file[error.source])
        if on_error is None:
            raise error
        on_error(error)

    start = time.perf_counter()
    stream = first.detector.stream([s.image for s in test], failed, progress)
    for prediction, seconds, uncached in _timed(stream, meter or NetworkMeter()):
        times.append((seconds, uncached))
        sample = by_file[prediction.source]
        copy = bool(known) and prediction.digest in known
        if copy:
            copies.append(sample.image.name)
        if not (copy and skip_references):
            _add(records, sample, prediction, seconds, doubts)
    if not all(record.labels for record in records):
        raise DatasetError(f"none of {len(test)} test images has a score: {reason}")
    if copies:
        done = "left out" if skip_references else "counted all the same"
        listed = ", ".join(map(printable, copies[:5]))
        alike = "image is an exact copy" if len(copies) == 1 else "images are exact copies"
        learned = "images that were learned from"
        notes.append(f"{len(copies)} test {alike} of {learned}, {done}: {listed}")
    notes += [printable(note) for note in doubts.notes()]
    # A batch does nearly all of its work before its first prediction.
    typical = np.mean if isinstance(first.detector, BatchDetector) else np.median
    spent, image = float(np.sum(times, axis=0)[0]), typical(times, axis=0)
    timings = {"per_image": float(image[0]), "per_image_uncached": float(image[1])}
    timings |= {"predict": spent, "metrics": time.perf_counter() - start - spent}
    for record in records:
        record.notes += [*notes, *map(printable, _undefined(record))]
        record.unscored = [sample for sample in unscored if record.takes(sample)]
        record.timings |= timings


def _timed(
    stream: Iterator[Prediction], meter: NetworkMeter
) -> Iterator[tuple[Prediction, float, float]]:
    """Predictions, the seconds that each took, and those that it had taken without a cache."""
    before, corrected = time.perf_counter(), meter.correction
    for prediction in stream:
        seconds = time.perf_counter() - before
        yield prediction, seconds, seconds + meter.correction - corrected
        before, corrected = time.perf_counter(), meter.correction


def _add(
    records: Sequence[Record],
    sample: Sample,
    prediction: Prediction,
    seconds: float,
    doubts: Doubts,
) -> None:
    """Take an image into every record; what is odd about its mask into the doubts."""
    mask = None
    if records[0].pixels is not None:
        height, width = prediction.image.shape[:2]
        mask, odd = inspect_mask(sample, (height, width))
        for kind, detail in odd:
            doubts.add(kind, sample.mask or sample.image, records[0].dataset.root, detail)
        if not sample.label:
            mask = np.zeros((height, width), np.bool_)
        # An empty mask says nothing about which pixels of a defective image are good.
        elif mask is not None and not mask.any():
            mask = None
    measured: list[PixelMetrics] = []
    first = records[0].detector
    for record in filter(lambda one: one.takes(sample), records):
        same = record.detector is first
        own = prediction if same else record.detector.rescore(prediction)
        record.add(sample, own, seconds)
        if mask is not None and record.pixels is not None and record.pixels not in measured:
            record.pixels.update(own.anomaly_map, mask)
            measured.append(record.pixels)


def _undefined(record: Record) -> list[str]:
    """Why figures are missing, where they are."""
    notes, labels = [], record.labels
    for label, kind in enumerate(("good", "defective")):
        if label not in labels:
            what = "figures of images and of pixels" if label else "figures of images"
            notes.append(f"no {kind} test image has a score: {what} are undefined")
    bare = [sample for sample in record.test if sample.label and sample.mask is None]
    if record.pixels is None:
        if 1 in labels:
            notes.append("no test image has a mask: there are no figures of pixels")
        return notes
    if 1 in labels and math.isnan(record.pixels.compute()["pixel_auroc"]):
        notes.append("no mask of a test image can be used: figures of pixels are undefined")
    if bare:
        notes.append(f"defective images without a mask: {len(bare)}, such as {bare[0].image.name}: "
                     "left out of the figures of pixels")  # fmt: skip
    return notes
