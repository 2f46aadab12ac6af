"""Running cells: a group at a time, each finished cell written at once."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from offnominal.backbones.base import Backbone
from offnominal.benchmark.cell import SCORING_OPTIONS, Cell
from offnominal.benchmark.claims import claim
from offnominal.benchmark.features import FeatureCache
from offnominal.benchmark.measure import measure
from offnominal.benchmark.measured import Meter, measured
from offnominal.benchmark.plan import Work
from offnominal.benchmark.record import Record, relative
from offnominal.benchmark.store import Store
from offnominal.datasets import draw_shots
from offnominal.detectors import METHODS, detector_class
from offnominal.detectors.base import Detector
from offnominal.detectors.untrained import untrained
from offnominal.errors import DatasetError, ImageError, OffnominalError

__all__ = ["Outcome", "Runner"]

Progress = Callable[[str, int], None]
Finished = Callable[[Cell, dict[str, float], str], None]


@dataclass
class Outcome:
    """What became of the cells.

    Attributes
    ----------
    finished, before, elsewhere : int
        Cells run now, those that were there already, and those that another process is at.
    failed : list of str
        Cells that could not be run, and why.
    computed, from_cache : int
        Images whose features were computed, and those whose features were found.
    unreadable : set of str
        Images that were left out, and why.
    """

    finished: int = 0
    before: int = 0
    elsewhere: int = 0
    failed: list[str] = field(default_factory=list)
    computed: int = 0
    from_cache: int = 0
    unreadable: set[str] = field(default_factory=set)


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
    """

    def __init__(
        self,
        work: Work,
        store: Store,
        cache: FeatureCache | None = None,
        device: str = "auto",
        keep_maps: bool = False,
    ) -> None:
        self.work = work
        self.store = store
        self.cache = cache
        self.device = device
        self.keep_maps = keep_maps
        self._networks: dict[str, Backbone] = {}

    def run(
        self,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> Outcome:
        """Run what is missing.

        Parameters
        ----------
        progress : callable or None
            Called with what is being done and how many images of it are done.
        finished : callable or None
            Called with each cell that has been written, its figures, and why they say nothing of
            the method, where weights were not pretrained (otherwise empty).
        """
        outcome = Outcome()
        groups: dict[str, list[Cell]] = {}
        for cell in self.work.cells:
            groups.setdefault(cell.group, []).append(cell)
        for name, cells in groups.items():
            missing = [cell for cell in cells if not self.store.has(cell)]
            outcome.before += len(cells) - len(missing)
            if not missing:
                continue
            with claim(self.store.root / "claims", name) as mine:
                # Another may have finished some between the look and the claim.
                left = [cell for cell in missing if not self.store.has(cell)]
                outcome.before += len(missing) - len(left)
                if not mine:
                    outcome.elsewhere += len(left)
                    continue
                if left:
                    self._run_group(left, outcome, progress, finished)
        return outcome

    def _run_group(
        self,
        cells: Sequence[Cell],
        outcome: Outcome,
        progress: Progress | None,
        finished: Finished | None,
    ) -> None:
        try:
            with ExitStack() as drafts:
                folders = [drafts.enter_context(self.store.draft(cell)) for cell in cells]
                records, meter = self._score(cells, folders, progress)
                figures = [r.write(f) for r, f in zip(records, folders, strict=True)]
                reason = untrained(records[0].detector)
        except (OffnominalError, MemoryError, torch.OutOfMemoryError) as error:
            # One combination that cannot be run must not end the other hundred.
            outcome.failed += [f"{cell.name}: {error}" for cell in cells]
            return
        outcome.finished += len(cells)
        outcome.computed += meter.computed
        outcome.from_cache += meter.from_cache
        outcome.unreadable |= set(records[0].unreadable)
        for cell, own in zip(cells, figures, strict=True):
            if finished:
                finished(cell, own, reason)

    def _score(
        self, cells: Sequence[Cell], folders: Sequence[Path], progress: Progress | None
    ) -> tuple[list[Record], Meter]:
        """Fit once, score every test image once, and its patch scores as each cell wants."""
        first = cells[0]
        dataset = self.work.datasets[first.dataset]
        train = dataset.train(first.category) if first.shots != 0 else []
        references = draw_shots(train, first.shots, first.seed, first.sampling) if train else []
        detector, meter = self._detector(first)
        unreadable: list[ImageError] = []

        def tell(stage: str, done: int) -> None:
            if progress:
                progress(f"{_words(first)}: {stage}", done)

        start = time.perf_counter()
        if not METHODS[first.method].batched:
            detector.fit([s.image for s in references], unreadable.append, tell)
        fit, network_in_fit = time.perf_counter() - start, meter.seconds
        records = []
        for cell, folder in zip(cells, folders, strict=True):
            changes = {name: cell.options[name] for name in SCORING_OPTIONS}
            own = detector if cell is first else detector.rescored(**changes)
            files = [relative(s.image, dataset.root) for s in references]
            # Of a crop the patch scores do not say where in the image they lie.
            maps = folder / "maps" if self.keep_maps or cell.options.get("crop") else None
            if maps is not None:
                maps.mkdir()
            records.append(Record(cell, own, dataset, files, maps=maps))
        test = dataset.test(first.category)
        measure(records, test, unreadable.append, tell, meter=meter)
        if not records[0].labels:
            raise DatasetError(f"none of {len(test)} test images has a score: {unreadable[-1]}")
        for record in records:
            record.timings |= {
                "fit": fit,
                "network_in_fit": network_in_fit,
                "network": meter.seconds,
                "network_spared": meter.spared,
            }
            record.features = {"computed": meter.computed, "from_cache": meter.from_cache}
            record.shared_with = len(records) - 1
            record.unreadable = [str(error) for error in unreadable]
        return records, meter

    def _detector(self, cell: Cell) -> tuple[Detector, Meter]:
        """A detector with a backbone that several cells share."""
        options = dict(cell.options)
        kind = detector_class(cell.method)
        for option in ("weights", *kind.file_options):
            if options[option] is not None:
                options[option] = self.work.files[options[option]]
        detector = kind(**options, device=self.device)
        key = f"{options['backbone']} {options['weights']} {options['layers']}"
        if key not in self._networks:
            # One at a time: a preset over backbones would otherwise hold all of them.
            self._networks = {key: detector.build_network()}
        cache = self.cache if cell.cached else None
        conditions = (str(options["precision"]), _kind(self.device))
        chosen = detector.choose_levels(self._networks[key])
        meter = Meter(cache, conditions)
        detector.use_network(measured(chosen, meter))
        return detector, meter


def _kind(device: str) -> str:
    from offnominal.detectors.common import choose_device

    chosen = choose_device(device)
    return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type


def _words(cell: Cell) -> str:
    shots = {None: "all", 0: "no"}.get(cell.shots, str(cell.shots))
    return f"{cell.category}, {cell.method}, {shots} references, seed {cell.seed}"
