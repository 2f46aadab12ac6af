"""Data sets: one file per layout, all yielding `Sample`; and synthetic parts to try things on."""

from offnominal.datasets.sample import Sample

__all__ = ["Sample"]
