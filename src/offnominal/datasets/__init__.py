"""Data sets: one file per layout, all yielding `Sample`; and synthetic parts to try things on.

>>> from offnominal.datasets import open_dataset, draw_shots
>>> tiles = open_dataset(root)
>>> few = draw_shots(tiles.train("magnetic_tile"), 4, seed=0, sampling="first")
"""

from typing import Any

from offnominal.datasets.dataset import Dataset, open_dataset
from offnominal.datasets.report import Report
from offnominal.datasets.sample import Sample
from offnominal.datasets.shots import draw_shots

__all__ = ["Dataset", "Report", "Sample", "draw_shots", "open_dataset", "read_mask", "sample_mask"]


def __getattr__(name: str) -> Any:
    # Masks need NumPy and Pillow, for which listing the layouts must not wait.
    if name in ("read_mask", "sample_mask"):
        from offnominal.datasets import masks

        return getattr(masks, name)
    raise AttributeError(f"module 'offnominal.datasets' has no attribute {name!r}")
