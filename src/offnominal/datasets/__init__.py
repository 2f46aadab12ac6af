"""Data sets: one file per layout, all yielding `Sample`; and synthetic parts to try things on.

>>> from offnominal.datasets import open_dataset, draw_shots
>>> tiles = open_dataset(root)
>>> few = draw_shots(tiles.train("magnetic_tile"), 4, seed=0, sampling="first")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from offnominal.datasets.sample import Sample

if TYPE_CHECKING:
    from offnominal.datasets.dataset import Dataset, open_dataset
    from offnominal.datasets.masks import read_mask, sample_mask
    from offnominal.datasets.report import Report
    from offnominal.datasets.shots import draw_shots

_HOMES = {
    "Dataset": "offnominal.datasets.dataset",
    "Report": "offnominal.datasets.report",
    "draw_shots": "offnominal.datasets.shots",
    "open_dataset": "offnominal.datasets.dataset",
    "read_mask": "offnominal.datasets.masks",
    "sample_mask": "offnominal.datasets.masks",
}

__all__ = [
    "Dataset",
    "Report",
    "Sample",
    "draw_shots",
    "open_dataset",
    "read_mask",
    "sample_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'offnominal.datasets' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
