"""Small picture files for tests of the readers, no two alike unless asked for."""

import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]


def image(root: Path, *names: str, size: tuple[int, int] = (16, 24)) -> None:
    """Write images of noise that depends on their name."""
    for name in names:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        save(root / name, rng.integers(0, 256, (*size, 3), np.uint8))


def mask(root: Path, *names: str, level: int = 255, size: tuple[int, int] = (16, 24)) -> None:
    """Write masks with a rectangle of a grey level in rows 4 to 7 and columns 6 to 11."""
    for name in names:
        picture = np.zeros(size, np.uint8)
        picture[4:8, 6:12] = level
        save(root / name, picture)


def save(path: Path, picture: Picture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix.lower(), picture)
    assert ok
    path.write_bytes(data.tobytes())
