"""The graph's resizing is Pillow's, to the bit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offnominal.errors import OptionError
from offnominal.export.resizing import Filter, Plan, resized_by
from offnominal.images import read_image
from offnominal.sizing import fit_size, resize_image

PILLOW = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def ours(image: np.ndarray, size: tuple[int, int], filter: Filter = "bicubic") -> list[np.ndarray]:
    """Both orders: which of them Pillow takes depends on its version and on the sizes."""
    shape = image.shape[0], image.shape[1]
    plans = [Plan(shape, size, (0, 0, *size), filter, first) for first in (False, True)]
    return [resized_by(plan, image) for plan in plans]


@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (64, 90, (56, 56)),
        (90, 64, (112, 56)),
        (61, 40, (61, 80)),
        (700, 30, (32, 32)),
        (2600, 20, (8, 20)),  # takes more digits
        (20, 4500, (20, 16)),
    ],
)
def test_it_is_pillows(filter: Filter, height: int, width: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(height)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2] = np.where(image[: height // 2] > 127, 255, 0)  # overshoots are cut
    wanted = np.asarray(Image.fromarray(image).resize(size[::-1], PILLOW[filter]))
    assert any(np.array_equal(one, wanted) for one in ours(image, size, filter))


def test_real_tiles_are_sized_as_the_library_does(tiles: Path) -> None:
    files = sorted((tiles / "train" / "good").iterdir())[:4]
    for file in files:
        image = read_image(file)
        size, _ = fit_size(image.shape[0], image.shape[1], 112, 14, "short")
        wanted = resize_image(image, 112, 14)
        assert any(np.array_equal(one, wanted) for one in ours(image, size))


def test_what_is_cut_off_is_not_computed() -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    whole = Plan((80, 120), (40, 60), (0, 0, 40, 60), "bilinear", False)
    part = Plan((80, 120), (40, 60), (4, 14, 32, 32), "bilinear", False)
    assert np.array_equal(resized_by(whole, image)[4:36, 14:46], resized_by(part, image))


def test_too_much_at_once_is_refused() -> None:
    with pytest.raises(OptionError, match="too many for one graph"):
        resized_by(Plan((1, 200_000), (1, 1), (0, 0, 1, 1), "bicubic", False),
                   np.zeros((1, 200_000, 3), np.uint8))  # fmt: skip
