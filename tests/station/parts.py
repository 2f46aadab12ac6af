"""Drawn parts, and a model of them that is fitted once for all tests of a process."""

import io
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image


def good_part(seed: int, size: int = 64) -> bytes:
    """A PNG of a ring with some noise."""
    return _png(_ring(seed, size))


def bad_part(seed: int, size: int = 64) -> bytes:
    """The same with a bright spot."""
    pixels = _ring(seed, size)
    pixels[size // 2 - 8 : size // 2 + 8, 4:20] = (255, 40, 40)
    return _png(pixels)


def _ring(seed: int, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    radius = np.hypot(x, y)
    grey = np.where((radius > size / 5) & (radius < size / 2.5), 170.0, 60.0)
    noisy = grey + np.random.default_rng(seed).normal(0, 6, grey.shape)
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@cache
def model_file() -> Path:
    """A fitted model of good parts."""
    from offnominal import AnomalyDINO

    folder = Path(tempfile.mkdtemp())
    files = []
    for seed in range(8):
        files.append(folder / f"{seed}.png")
        files[-1].write_bytes(good_part(seed))
    detector = AnomalyDINO(backbone="builtin", resolution=64, rotations="0")
    detector.fit(files, synthetic=False)
    detector.save(folder / "part.offn")
    return folder / "part.offn"
