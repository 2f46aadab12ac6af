"""Running cells: a group at a time, each finished cell written at once."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from offnominal.backbones.base import Backbone
from offnominal.backbones.cache import FeatureCache, cached
from offnominal.benchmark.cell import SCORING_OPTIONS, Cell
from offnominal.benchmark.draw import draw_defects, labels_of
from offnominal.benchmark.machine import NetworkMeter, device_name
from offnominal.benchmark.measure import measure
from offnominal.benchmark.plan import Work
from offnominal.benchmark.record import Record
from offnominal.benchmark.store import Store, StoreError
from offnominal.datasets import draw_shots
from offnominal.datasets.contents import named, relative
from offnominal.detectors.base import Detector
from offnominal.detectors.batch.base import BatchDetector
from offnominal.detectors.networks import untrained, with_networks
from offnominal.detectors.options import choose_device
from offnominal.detectors.registry import detector_class
from offnominal.detectors.trainable import Trainable
from offnominal.errors import DatasetError, ImageError, OffnominalError
from offnominal.text import printable

__all__ = ["Outcome", "Runner"]

Progress = Callable[[str, int], None]
Finished = Callable[[Cell, dict[str, float]], None]
Waiting = Callable[[Cell], object]


@dataclass
class Outcome:
    """What became of the cells.

    Attributes
    ----------
    finished, before : int
        Cells run now, and those that were there already, or that another process has run.
    failed : list of str
        Cells that could not be run, and why.
    computed, from_cache : int
        Images whose features were computed, and those whose features were found.
    unreadable : set of str
        Images that were left out, and why.
    untrained : set of str
        Methods whose figures say nothing, as their weights were not pretrained, and why.
    notes : dict of str
        What is odd about masks, or was left out, by category; each once, in order.
    """

    finished: int = 0
    before: int = 0
    failed: list[str] = field(default_factory=list)
    computed: int = 0
    from_cache: int = 0
    unreadable: set[str] = field(default_factory=set)
    untrained: set[str] = field(default_factory=set)
    notes: dict[str, None] = field(default_factory=dict)


class Runner:
    """Runs the cells of a plan into a folder of results.

    Parameters
    ----------
    work : Work
    store : Store
    cache : FeatureCache or None
        For cells whose features may come from it.
    device : str
    keep_maps : bool
        Write every anomaly map as well, in half precision.
    engine : str
        What runs the networks. ``auto`` is torch here, whose features the cache keeps; by any other
        every image goes through the network, and its time is not told apart.
    """

    def __init__(
        self,
        work: Work,
        store: Store,
        cache: FeatureCache | None = None,
        device: str = "auto",
        keep_maps: bool = False,
        engine: str = "auto",
    ) -> None:
        self.work = work
        self.store = store
        self.cache = cache
        self.device = device
        self.keep_maps = keep_maps
        self.engine = engine
        self._networks: dict[str, Backbone] = {}

    def run(
        self,
        progress: Progress | None = None,
        finished: Finished | None = None,
        waiting: Waiting | None = None,
    ) -> Outcome:
        """Run what is missing; afterwards every cell is there, or among those that failed.

        Parameters
        ----------
        progress : callable or None
            Called with what is being done and how many images of it are done.
        finished : callable or None
            Called with each cell that has been written, and its figures.
        waiting : callable or None
            Called now and then with a cell that another process is at, where nothing else is left.

        Raises
        ------
        StoreError
            If the folder of results cannot be written.
        """
        outcome = Outcome()
        groups: dict[str, list[Cell]] = {}
        for cell in self.work.cells:
            groups.setdefault(cell.group, []).append(cell)
        others = {
            name: cells
            for name, cells in groups.items()
            if not self._run_if_free(name, cells, outcome, progress, finished)
        }
        # What another process is at is waited for: it may fail, or be killed.
        for name, cells in others.items():
            self._run_if_free(name, cells, outcome, progress, finished, waiting or (lambda c: None))
        return outcome

    def _run_if_free(
        self,
        name: str,
        cells: Sequence[Cell],
        outcome: Outcome,
        progress: Progress | None,
        finished: Finished | None,
        waiting: Waiting | None = None,
    ) -> bool:
        """Run what is missing of a group, unless another process is at it; wait, if asked to."""
        if all(self.store.has(cell) for cell in cells):
            outcome.before += len(cells)
            return True
        hear = partial(waiting, cells[0]) if waiting else None
        with self.store.claim(name, hear) as mine:
            if not mine:
                return False
            # Another may have finished some between the look and the claim.
            left = [cell for cell in cells if not self.store.has(cell)]
            outcome.before += len(cells) - len(left)
            if left:
                self._run_group(left, outcome, progress, finished)
            return True

    def _run_group(
        self,
        cells: Sequence[Cell],
        outcome: Outcome,
        progress: Progress | None,
        finished: Finished | None,
    ) -> None:
        words = _words(cells[0])

        def tell(stage: str, done: int) -> None:
            if progress:
                progress(f"{words}: {stage}", done)

        try:
            for cell in cells:
                self.store.clean(cell)
            with ExitStack() as drafts:
                folders = [drafts.enter_context(self.store.draft(cell)) for cell in cells]
                records = self._score(cells, folders, tell)
                figures = [record.write() for record in records]
        except StoreError:
            raise
        except (OffnominalError, MemoryError, torch.OutOfMemoryError) as error:
            # One combination that cannot be run must not end the other hundred.
            outcome.failed += [f"{cell.name}: {error}" for cell in cells]
            return
        first = records[0]
        outcome.finished += len(cells)
        outcome.computed += first.more["features"]["computed"]
        outcome.from_cache += first.more["features"]["from_cache"]
        outcome.unreadable |= set(first.more["unreadable"])
        category = printable(first.cell.category)
        outcome.notes |= dict.fromkeys(f"{category}: {note}" for note in first.notes)
        if reason := untrained(first.detector):
            outcome.untrained.add(f"{first.cell.method}: {reason}")
        for cell, own in zip(cells, figures, strict=True):
            if finished:
                finished(cell, own)

    def _score(
        self, cells: Sequence[Cell], folders: Sequence[Path], tell: Progress
    ) -> list[Record]:
        """Fit once, score every test image once, and its patch scores as each cell wants."""
        first = cells[0]
        dataset = self.work.datasets[first.dataset]
        train = dataset.train(first.category) if first.shots != 0 else []
        references = draw_shots(train, first.shots, first.seed, first.sampling) if train else []
        files = [relative(sample.image, dataset.root) for sample in references]
        part_of = self.work.part_of.get((first.dataset, first.category), {})
        drawn = draw_defects(dataset.test(first.category), part_of, first, dataset.root)
        learned = [relative(sample.image, dataset.root) for sample in drawn.learned]
        detector, meter = self._detector(first)
        unreadable: list[ImageError] = []
        start = time.perf_counter()
        if not isinstance(detector, BatchDetector):
            images = [s.image for s in references]
            # A method of another package may know of no defects.
            labels: dict[str, Any] = (
                {"defects": labels_of(drawn.learned, first.marked)} if learned else {}
            )
            detector.fit(images, unreadable.append, tell, synthetic=False, **labels)
        times = {"fit": time.perf_counter() - start, "network_in_fit": meter.seconds}
        records = []
        same = {_scoring(first): detector}
        for cell, folder in zip(cells, folders, strict=True):
            if _scoring(cell) not in same:
                same[_scoring(cell)] = detector.rescored(**dict(_scoring(cell)))
            own, tested = same[_scoring(cell)], drawn.tested[cell.tested]
            made = Record(cell, own, dataset, files, tested, folder, self.keep_maps, learned)
            records.append(made)
        measure(records, unreadable.append, tell, meter=meter)
        if changed := self.work.contents[first.dataset, first.category].changed():
            raise DatasetError(f"{named(changed)}: changed during the run; run it again")
        times |= {"network": meter.seconds, "network_spared": meter.spared}
        more = {
            "features": {"computed": meter.computed, "from_cache": meter.from_cache},
            "shared_with": len(records) - 1,
            "unreadable": [str(error) for error in unreadable],
        }
        for record in records:
            record.timings |= times
            record.more |= more
        return records

    def _detector(self, cell: Cell) -> tuple[Detector, NetworkMeter]:
        """A detector with networks that several cells share."""
        kind = detector_class(cell.method)
        options = dict(cell.options)
        for option in ("weights", *kind.file_options):
            if options.get(option) is not None:
                options[option] = self.work.files[options[option]]
        if "device" in kind.option_defaults():
            options["device"] = self.device
        if "engine" in kind.option_defaults():
            options["engine"] = self.engine
        detector, meter = kind(**options), NetworkMeter()
        parts = {f"{d.backbone} {d.weights} {d.layers}": d for d in with_networks(detector)}
        # Those of one cell at a time: a preset over backbones would otherwise hold all of them.
        self._networks = {
            key: self._networks.get(key) or part.build_network() for key, part in parts.items()
        }
        for key, part in parts.items():
            chosen = part.choose_levels(self._networks[key])
            conditions = (part.precision, device_name(choose_device(self.device)))
            cache = self.cache if cell.cached else None
            # What is trained keeps features by itself, and its student is of the network's kind.
            trained = isinstance(part, Trainable)
            plain = trained or self.engine not in ("auto", "torch")
            part.use_network(chosen if plain else cached(chosen, cache, conditions, meter))
        return detector, meter


def _scoring(cell: Cell) -> tuple[tuple[str, Any], ...]:
    """What of a cell acts on patch scores only."""
    return tuple((name, cell.options[name]) for name in SCORING_OPTIONS)


def _words(cell: Cell) -> str:
    shots = {None: "all", 0: "no"}.get(cell.shots, str(cell.shots))
    labels = f", {cell.defects} labelled defects" if cell.set_aside else ""
    return f"{cell.category}, {cell.method}, {shots} references{labels}, seed {cell.seed}"
