"""The folder of results: one folder a finished cell, which appears whole or not at all.

``RUNS/cells/NAME/`` holds ``settings.json`` (what was run), ``run.json`` (versions, device, times,
thresholds), ``metrics.json``, ``scores.parquet`` (one row an image), ``patch_scores.npz`` and,
where they were asked for, ``maps/``. ``RUNS/plans/NAME.json`` says which cells answer which
question, for the report.
"""

import json
import math
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offnominal.atomic import replacing
from offnominal.benchmark.cell import Cell
from offnominal.errors import DatasetError, OptionError

__all__ = [
    "FORMAT",
    "FinishedCell",
    "Plan",
    "Store",
    "read_runs",
    "relative",
    "require",
    "write_json",
    "write_patch_scores",
    "write_scores",
]

Floats = npt.NDArray[np.float32]

FORMAT = 1


@dataclass(frozen=True)
class FinishedCell:
    """One finished cell, read from its folder.

    Attributes
    ----------
    folder : Path
    settings : dict
        The fields of :class:`~offnominal.benchmark.cell.Cell`, ``data`` (root, layout, counts) and
        ``references`` (paths relative to the root).
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
        from pyarrow import parquet

        columns: dict[str, list[Any]] = parquet.read_table(
            self.folder / "scores.parquet"
        ).to_pydict()
        return columns

    def patch_scores(self) -> list[Floats]:
        """Patch scores of every image, each of shape (gh, gw), in the order of `scores`."""
        with np.load(self.folder / "patch_scores.npz", allow_pickle=False) as stored:
            values, shapes = stored["values"], stored["shapes"]
        pieces = np.split(values, np.cumsum(shapes.prod(1))[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


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
        try:
            for folder in (self.cells, root / "plans"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"-o {root}: cannot be written ({error.strerror})") from error

    def has(self, cell: Cell) -> bool:
        """Whether a cell is finished."""
        return (self.cells / cell.name).is_dir()

    @contextmanager
    def claim(self, group: str) -> Iterator[bool]:
        """Claim a group of cells for the length of the block; whether no other process has it.

        The system takes the lock from a process that dies, so that none is ever in the way.
        """
        from filelock import FileLock, Timeout

        path = self.root / "claims" / f"{group}.lock"
        path.parent.mkdir(exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
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
        folder = self.cells / f".{cell.name}.{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
            try:
                folder.rename(self.cells / cell.name)
            except OSError:
                # Another process finished the same cell first; its result is as good.
                if not self.has(cell):
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add_plan(self, plan: Plan) -> None:
        """Write a plan down; cells that an earlier plan of the same name had stay in it."""
        path = self.root / "plans" / f"{plan.name}.json"
        old = _read_json(path) if path.exists() else {"cells": [], "axes": []}
        cells = list(dict.fromkeys([*old["cells"], *plan.cells]))
        axes = list(dict.fromkeys([*plan.axes, *old["axes"]]))
        with replacing(path) as temporary:
            write_json(temporary, {"title": plan.title, "axes": axes, "cells": cells})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values; what is not finite becomes null, which every reader of JSON takes."""
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def write_scores(folder: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write ``scores.parquet`` of a cell."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(dict(columns)), folder / "scores.parquet")


def write_patch_scores(folder: Path, grids: Sequence[Floats]) -> None:
    """Write ``patch_scores.npz`` of a cell."""
    shapes = np.array([grid.shape for grid in grids], np.int32).reshape(-1, 2)
    values = np.concatenate([np.empty(0, np.float32), *(grid.ravel() for grid in grids)])
    np.savez_compressed(folder / "patch_scores.npz", values=values, shapes=shapes)


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
        plan = _read_json(path)
        plans.append(Plan(path.stem, plan["title"], tuple(plan["axes"]), tuple(plan["cells"])))
    return [_read_cell(folder) for folder in folders], plans


def relative(path: Path, root: Path) -> str:
    """A file's place under the data set's root, with forward slashes; absolute if outside."""
    inside = path.is_relative_to(root)
    return (path.relative_to(root) if inside else path.absolute()).as_posix()


def require(package: str, command: str) -> None:
    """Raise an :class:`OptionError` if a package of the extra ``benchmark`` is absent."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise OptionError(
            f"{command} needs {package}: install it with `pip install 'offnominal[benchmark]'`"
        )


def _read_cell(folder: Path) -> FinishedCell:
    settings, run, metrics = (
        _read_json(folder / f"{name}.json") for name in ("settings", "run", "metrics")
    )
    if settings.get("format", 0) > FORMAT:
        raise DatasetError(
            f"{folder}: written by a newer Offnominal; upgrade with `pip install -U offnominal`"
        )
    for name in ("figures", "failures_as_wrong"):
        figures = metrics.get(name, {}).items()
        metrics[name] = {key: math.nan if value is None else value for key, value in figures}
    return FinishedCell(folder, settings, run, metrics)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path}: damaged or absent ({error}); delete its folder, and run the benchmark again"
        ) from error
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
