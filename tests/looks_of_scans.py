"""Scans that tests learn from: a wavy sheet, lit from one side, with a bump where one is wanted."""

import numpy as np

from offnominal.scans.scan import Scan

BUMP = (slice(24, 40), slice(28, 44))
"""Where the bump is, in pixels of 64 x 64."""


def sheet(seed: int, bump: float = 0.0, size: int = 64, missing: float = 0.02) -> Scan:
    """A sheet of 64 mm, 0.4 m away, with waves of 2 mm and a bump of so many metres."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] * (64 / size)
    waves = 2e-3 * np.sin(columns / 6 + rng.uniform(0, 0.5)) * np.cos(rows / 8)
    z = 0.4 + waves + rng.normal(0, 2e-5, (size, size))
    z -= bump * np.exp(-((rows - 32) ** 2 + (columns - 36) ** 2) / (2 * 4.0**2))
    slope = np.gradient(0.4 + waves, axis=1)
    colour = np.clip(130 + 6e4 * slope + rng.normal(0, 3, (size, size)), 0, 255)
    points = np.stack([(columns - 32) * 1e-3, (rows - 32) * 1e-3, z], axis=2).astype(np.float32)
    points[rng.random((size, size)) < missing] = np.nan
    return Scan(points, np.repeat(colour[..., None], 3, axis=2).astype(np.uint8))
