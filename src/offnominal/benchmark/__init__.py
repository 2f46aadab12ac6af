"""Runs over data sets, methods, shots and seeds, and the folder that keeps their results."""

from offnominal.benchmark.cell import Cell
from offnominal.benchmark.store import FinishedCell, read_runs

__all__ = ["Cell", "FinishedCell", "read_runs"]
