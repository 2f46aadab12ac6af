"""The folder of results: one folder a finished cell, which appears whole or not at all.

``RUNS/cells/NAME/`` holds ``settings.json`` (what was run), ``run.json`` (versions, device, times,
thresholds), ``metrics.json``, ``scores.parquet`` (one row an image), ``patch_scores.npz`` and,
where they were asked for, ``maps/``. ``RUNS/plans/NAME.json`` says which cells answer which
question, for the report.
"""

import hashlib
import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from offnominal.atomic import replacing
from offnominal.benchmark.cell import Cell
from offnominal.benchmark.files import (
    ContentsFile,
    Metrics,
    PlanFile,
    Run,
    Settings,
    check_sums,
    read_json,
    read_patch_scores,
    read_scores,
    write_json,
)
from offnominal.datasets.contents import Contents, named
from offnominal.errors import DatasetError, OptionError
from offnominal.extras import check_there

__all__ = ["FORMAT", "FinishedCell", "Plan", "Store", "StoreError", "read_runs", "require"]

Floats = npt.NDArray[np.float32]

# 2: cells are told apart by what the files of the data set hold.
FORMAT = 2
_PAUSE = 0.5  # seconds between two looks at what another process is at


class StoreError(OptionError):
    """The folder of results cannot be written, so that nothing more can be run into it."""


@dataclass(frozen=True)
class FinishedCell:
    """One finished cell, read from its folder.

    Attributes
    ----------
    folder : Path
    settings : dict
        The fields of :class:`~offnominal.benchmark.cell.Cell`, ``data`` (root, layout, counts),
        ``references`` and ``learned_defects`` (paths relative to the root).
    run : dict
        Versions, device, times by stage, thresholds, notes.
    metrics : dict
        ``figures``, ``intervals``, ``curves``, ``regions`` and counts; an undefined figure is nan.
        Where images got no score, ``failures_as_wrong``: the figures with those counted as wrong.
    """

    folder: Path
    settings: dict[str, Any]
    run: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        """The cell's name, which is that of its folder."""
        return self.folder.name

    @property
    def untrained(self) -> str:
        """Why the figures say nothing of the method; empty if nothing is known against them."""
        return str(self.metrics.get("untrained") or "")

    @property
    def unscored(self) -> int:
        """Test images that could be read and got no score."""
        return sum((self.metrics.get("unscored") or {}).values())

    @cached_property
    def scores(self) -> dict[str, list[Any]]:
        """Columns of ``scores.parquet``, one entry an image."""
        return read_scores(self.folder)

    def patch_scores(self) -> list[Floats]:
        """Patch scores of every image, each of shape (gh, gw), in the order of `scores`."""
        return read_patch_scores(self.folder)


@dataclass(frozen=True)
class Plan:
    """Which cells answer one question.

    Attributes
    ----------
    name : str
        The preset's name, or ``grid``.
    title : str
        The question in words.
    axes : tuple of str
        The settings that vary, the one that the figure shows first: ``shots``, ``backbone``, ...
    cells : tuple of str
        Names of the cells, finished or not.
    """

    name: str
    title: str
    axes: tuple[str, ...]
    cells: tuple[str, ...]


class Store:
    """The folder of results, for those who write to it.

    Parameters
    ----------
    root : Path
        Made if absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cells = root / "cells"
        self._whole: set[str] = set()
        with self._writing():
            for folder in (self.cells, root / "plans", root / "claims", root / "contents"):
                folder.mkdir(parents=True, exist_ok=True)

    def has(self, cell: Cell) -> bool:
        """Whether a cell is finished, and as it was written; one that is not is run again."""
        folder = self.cells / cell.name
        if cell.name not in self._whole and folder.is_dir():
            with suppress(DatasetError):
                if not check_sums(folder):
                    _read_cell(folder)
                    read_scores(folder)
                    read_patch_scores(folder)
                self._whole.add(cell.name)
        return cell.name in self._whole and folder.is_dir()

    @contextmanager
    def claim(self, group: str, waiting: Callable[[], object] | None = None) -> Iterator[bool]:
        """Claim a group of cells for the length of the block; whether no other process has it.

        With ``waiting``, which is called now and then, until that is so. The system takes the lock
        from a process that dies, so that none is ever in the way.
        """
        path = self.root / "claims" / f"{group}.lock"
        with self._writing():
            lock = FileLock(path)
        while True:
            try:
                with self._writing():
                    lock.acquire(blocking=False)
                break
            except Timeout:
                if waiting is None:
                    yield False
                    return
                waiting()
                time.sleep(_PAUSE)
        try:
            yield True
        finally:
            # Whoever waits for the removed file finds the cells done. Windows refuses.
            with suppress(OSError):
                path.unlink()
            lock.release()

    @contextmanager
    def draft(self, cell: Cell) -> Iterator[Path]:
        """A folder to write a cell into; it takes its name when the block ends without an error."""
        folder, place = self.cells / f"{_draft(cell)}{uuid.uuid4().hex[:8]}", self.cells / cell.name
        try:
            with self._writing():
                folder.mkdir()
                yield folder
                if place.exists() and not self.has(cell):
                    shutil.rmtree(place)  # damaged, which is why it was run again
                try:
                    folder.rename(place)
                except OSError:
                    # Another process finished the same cell first; its result is as good.
                    if not self.has(cell):
                        raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self, cell: Cell) -> None:
        """Take away what a killed process left of a cell that this one has claimed."""
        for folder in self.cells.glob(f"{_draft(cell)}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def add_plan(self, plan: Plan) -> None:
        """Write a plan down; cells that an earlier plan of the same name had stay in it."""
        path = self.root / "plans" / f"{plan.name}.json"
        old = read_json(path, PlanFile) if path.exists() else {"cells": [], "axes": []}
        cells = list(dict.fromkeys([*old["cells"], *plan.cells]))
        axes = list(dict.fromkeys([*plan.axes, *old["axes"]]))
        with self._writing(), replacing(path) as temporary:
            write_json(temporary, {"title": plan.title, "axes": axes, "cells": cells})

    def note(self, dataset: str, category: str, contents: Contents) -> str:
        """Write down what files cells are of; in words, how they differ from what was there last.

        Empty where the same files were there before, or none.
        """
        place = hashlib.sha256(f"{dataset}\n{category}".encode("utf-8", "surrogateescape"))
        own = self.root / "contents" / f"{place.hexdigest()[:16]}-{contents.digest}.json"
        if own.exists():
            return ""
        earlier = sorted(
            (path.stat().st_mtime, path, files)
            for path in own.parent.glob(f"{own.name[:16]}-*.json")
            if (files := self.earlier_files(path))
        )
        content = {"dataset": dataset, "category": category, "files": contents.files}
        with self._writing(), replacing(own) as temporary:
            write_json(temporary, content)
        if not earlier:
            return ""
        unlike = contents.unlike(earlier[-1][2])
        return f"{len(unlike)} files are not as they were for earlier cells ({named(unlike)})"

    @staticmethod
    def earlier_files(path: Path) -> dict[str, str] | None:
        """Digests of the files that earlier cells were of; None where it cannot be told."""
        try:
            files: dict[str, str] = read_json(path, ContentsFile)["files"]
        except DatasetError:
            return None
        return files

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say where the folder of results cannot be written."""
        try:
            yield
        except Timeout:  # of a lock: an OSError as well
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(
                f"-o {self.root}: cannot be written ({reason}); finished cells are kept; make "
                "room, or name another folder, and run the same command again"
            ) from error


def read_runs(root: Path) -> tuple[list[FinishedCell], list[Plan]]:
    """Every finished cell of a folder, sorted by name, and its plans.

    Raises
    ------
    DatasetError
        If the folder holds no finished cell, or one of them is damaged.
    """
    folders = sorted(f for f in (root / "cells").glob("[!.]*") if f.is_dir())
    if not folders:
        raise DatasetError(
            f"{root}: holds no finished cell; `offnominal benchmark --data DATASET -o {root}` "
            "makes some"
        )
    plans = []
    for path in sorted((root / "plans").glob("*.json")):
        plan = read_json(path, PlanFile)
        plans.append(Plan(path.stem, plan["title"], tuple(plan["axes"]), tuple(plan["cells"])))
    return [_read_cell(folder) for folder in folders], plans


def require(package: str, command: str) -> None:
    """Raise a :class:`MissingExtraError` if a package of the extra ``benchmark`` is absent."""
    check_there(package, f"`{command}`")


def _draft(cell: Cell) -> str:
    return f".{cell.name[-10:]}-"


def _read_cell(folder: Path) -> FinishedCell:
    settings = read_json(folder / "settings.json", Settings)
    if settings["format"] > FORMAT:
        raise DatasetError(
            f"{folder}: written by a newer Offnominal; read it with that one or a newer one"
        )
    run, metrics = read_json(folder / "run.json", Run), read_json(folder / "metrics.json", Metrics)
    for name in ("figures", "failures_as_wrong"):
        figures = metrics[name].items()
        metrics[name] = {key: math.nan if value is None else value for key, value in figures}
    return FinishedCell(folder, settings, run, metrics)
