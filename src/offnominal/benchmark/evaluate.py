"""Measuring one saved detector on a data set."""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offnominal.benchmark.cell import Cell
from offnominal.benchmark.measure import measure
from offnominal.benchmark.record import Record
from offnominal.benchmark.store import Plan, Store
from offnominal.datasets import Dataset
from offnominal.datasets.contents import named, read_contents
from offnominal.detectors.backboned import BackboneDetector
from offnominal.detectors.base import Detector
from offnominal.errors import DatasetError, ImageError

__all__ = ["Evaluation", "evaluate_detector"]


@dataclass(frozen=True)
class Evaluation:
    """What a detector did on one category.

    Attributes
    ----------
    category : str
    figures : dict of str to float
        Image-level and pixel-level figures; nan where undefined.
    intervals : dict of str to tuple
        Bootstrap intervals of the image-level figures.
    good, defective : int
        Images measured.
    notes : list of str
        What was left out, and why.
    kinds : list of dict
        A row for each class of defect, as :func:`~offnominal.metrics.kinds.kind_figures` has it.
    confusion : dict or None
        Which class was taken for which, as :func:`~offnominal.metrics.kinds.confusion` has it; None
        where the method tells no class.
    """

    category: str
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    good: int
    defective: int
    notes: list[str]
    kinds: list[dict[str, Any]] = field(default_factory=list)
    confusion: dict[str, Any] | None = None


def evaluate_detector(
    detector: Detector,
    model: Path,
    dataset: Dataset,
    output: Path | None = None,
    keep_maps: bool = False,
    on_error: Callable[[ImageError], None] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> list[Evaluation]:
    """Score the test images of every category and measure.

    Test images that the detector was fitted to are left out: they score next to nothing and would
    flatter it.

    Parameters
    ----------
    detector : Detector
        Loaded from `model`.
    model : Path
    dataset : Dataset
    output : Path or None
        A folder of results, as the benchmark writes it; None: nothing is written.
    keep_maps : bool
        Write every map as well.
    on_error, progress : callable or None
        As :meth:`~offnominal.detectors.base.Detector.stream` has them.

    Raises
    ------
    DatasetError
        If a category has no test image, or none that got a score.
    """
    found, cells = [], []
    store = Store(output) if output is not None else None
    files = [reference.file for reference in detector.references if reference.active]
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    model_of, several = detector, len(detector.categories) > 1
    for category in dataset.categories:
        detector = model_of.for_category(category) if several else model_of
        test = dataset.test(category)
        if not test:
            raise DatasetError(
                f"{dataset.root}: {category} has no test image; `offnominal datasets check` says "
                "what was understood"
            )
        own = [sample for sample in dataset.samples if sample.category == category]
        contents = read_contents(own, dataset.root)
        cell = _cell(detector, digest, dataset, category, contents.digest, len(files))
        with store.draft(cell) if store is not None else nullcontext() as folder:
            record = Record(cell, detector, dataset, files, test, folder, keep_maps)
            measure([record], on_error, progress, skip_references=True)
            if changed := contents.changed():
                raise DatasetError(f"{named(changed)}: changed during the run; run it again")
            figures = record.write()
        good, bad = record.labels.count(0), record.labels.count(1)
        told = figures, record.intervals(), good, bad, record.notes
        found.append(Evaluation(category, *told, record.kinds(), record.confusion()))
        cells.append(cell.name)
    if store is not None:
        title = f"How good is {model.name}?"
        store.add_plan(Plan("evaluate", title, ("method",), tuple(cells)))
    return found


def _cell(
    detector: Detector, digest: str, dataset: Dataset, category: str, samples: str, shots: int
) -> Cell:
    """The cell of a saved detector, whose digest stands for all that it was made with."""
    options = detector.options()
    if isinstance(detector, BackboneDetector):
        options["backbone"] = detector.load_network().name
    if "weights" in options:
        options["weights"] = None
    return Cell(
        dataset=dataset.name,
        category=category,
        samples=samples,
        method=detector.method,
        shots=shots,
        seed=0,
        sampling="random",
        options=json.loads(json.dumps(options)),
        cached=False,
        model=digest,
    )
