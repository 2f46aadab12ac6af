"""What fits and predictions took, where their time is that of all the work."""

import statistics
from collections.abc import Sequence

from offnominal.benchmark.store import FinishedCell
from offnominal.report.results import Setup

__all__ = ["fit_seconds", "image_seconds", "time_words"]


def image_seconds(setup: Setup) -> float | None:
    """Median time of an image over the cells whose time is that of all the work."""
    return _median([_of_image(cell) for cell in setup.cells.values()])


def fit_seconds(setup: Setup) -> float | None:
    """Median time of a fit over the cells for which nothing came from a cache."""
    return _median([_of_fit(cell) for cell in setup.cells.values()])


def time_words(seconds: float | None) -> str:
    """Such as ``23 ms``, ``4.1 s`` or ``15 min``."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _median(times: Sequence[float | None]) -> float | None:
    known = [each for each in times if each]
    return statistics.median(known) if known else None


def _of_fit(cell: FinishedCell) -> float | None:
    timings, features = cell.run.get("timings") or {}, cell.run.get("features") or {}
    return timings.get("fit") if features.get("from_cache") == 0 else None


def _of_image(cell: FinishedCell) -> float | None:
    timings, features = cell.run.get("timings") or {}, cell.run.get("features") or {}
    computed = features.get("from_cache") == 0 and features.get("computed")
    whole = timings.get("per_image") if computed or not cell.settings["cached"] else None
    return timings.get("per_image_uncached") or whole or None
