"""Cells of a benchmark as shards: those that share a fit go together, and write their folders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offnominal.scale.shards import Engine, Shard, run_shards

if TYPE_CHECKING:
    from offnominal.benchmark.cell import Cell
    from offnominal.benchmark.plan import Work
    from offnominal.benchmark.runner import Finished, Outcome
    from offnominal.benchmark.store import Store

__all__ = ["Cells", "run_cells"]


@dataclass
class Cells:
    """Runs cells; see :class:`.shards.Function`.

    Attributes
    ----------
    work : Work
        The whole plan; data sets and weights must be reachable by these names.
    root : Path
        The folder of results, likewise.
    cache : (Path, int) or None
        Folder and bytes of the cache of features.
    device, keep_maps, engine
        As :class:`~offnominal.benchmark.runner.Runner` takes them.
    """

    work: "Work"
    root: Path
    cache: tuple[Path, int] | None
    device: str
    keep_maps: bool
    engine: str

    def begin(self) -> None:
        """Import what is slow to import."""
        import offnominal.benchmark.runner  # noqa: F401

    def __call__(self, shard: Shard) -> tuple["Outcome", list[tuple[str, dict[str, float]]]]:
        """Run cells; what became of them, and the figures of those that were run."""
        from offnominal.backbones.cache import FeatureCache
        from offnominal.benchmark.runner import Runner
        from offnominal.benchmark.store import Store

        mine = [cell for cell in self.work.cells if cell.name in shard.items]
        kept = FeatureCache(*self.cache) if self.cache else None
        work = replace(self.work, cells=mine)
        runner = Runner(work, Store(self.root), kept, self.device, self.keep_maps, self.engine)
        figures: list[tuple[str, dict[str, float]]] = []
        outcome = runner.run(None, lambda cell, own: figures.append((cell.name, own)))
        return outcome, figures


def run_cells(function: Cells, store: "Store", engine: Engine, finished: "Finished") -> "Outcome":
    """Run what is missing of a plan by the workers of an engine.

    Cells that kill whoever runs them are among those that failed.
    """
    from offnominal.benchmark.runner import Outcome

    cells = {cell.name: cell for cell in function.work.cells}
    sum_up = Outcome()

    def is_there(shard: Shard) -> bool:
        return all(store.has(cells[name]) for name in shard.items)

    def give_up(shard: Shard, reason: str) -> Any:
        return Outcome(failed=[f"{shard.items[0]}: ends the process that runs it ({reason})"]), []

    for shard, told in run_shards(
        function, _grouped(function.work.cells), engine, is_there, is_there, give_up
    ):
        if told is None:
            sum_up.before += len(shard.items)
            continue
        one, figures = told
        for name in ("finished", "before", "computed", "from_cache"):
            setattr(sum_up, name, getattr(sum_up, name) + getattr(one, name))
        sum_up.failed += one.failed
        sum_up.unreadable |= one.unreadable
        sum_up.untrained |= one.untrained
        sum_up.notes |= one.notes
        for name, own in figures:
            finished(cells[name], own)
    return sum_up


def _grouped(cells: "Sequence[Cell]") -> Iterator[Shard]:
    groups: dict[str, list[str]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell.name)
    start = 0
    for names in groups.values():
        yield Shard(start, tuple(names), ("",) * len(names))
        start += len(names)
