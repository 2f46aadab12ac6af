"""Runs over data sets, methods, shots and seeds, and the folder that keeps their results.

The public names are imported on first use: the command line reads options here before any work.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offnominal.benchmark.cell import Cell
    from offnominal.benchmark.store import FinishedCell, read_runs

__all__ = ["Cell", "FinishedCell", "read_runs"]

_HOMES = {"Cell": "cell", "FinishedCell": "store", "read_runs": "store"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
