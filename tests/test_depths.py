"""Pictures of a depth that a model does not know, or that fill little of it: said once a run."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import offnominal
from offnominal import AnomalyDINO
from offnominal.errors import ImageWarning
from offnominal.images import read_picture


def part(seed: int, bits: int) -> np.ndarray:
    """A grey plate with grain that uses so many bits."""
    grain = np.random.default_rng(seed).normal(0.5, 0.1, (64, 80))
    depth = np.uint8 if bits == 8 else np.uint16
    return (np.clip(grain, 0, 1) * (2**bits - 1)).astype(depth)


def said(run: object, images: list[object]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run(images)  # type: ignore[operator]  # a bound method
    return [str(one.message) for one in found if one.category is ImageWarning]


def detector(**options: object) -> AnomalyDINO:
    return AnomalyDINO(backbone="builtin", rotations="none", resolution=64, **options)


def test_the_depth_is_that_of_the_file(tmp_path: Path) -> None:
    assert read_picture(part(0, 8))[1:3] == (8, 255)
    values = part(0, 12)
    assert read_picture(values)[1:3] == (16, int(values.max()))
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([values, values // 2, values]))
    assert read_picture(tmp_path / "a.png")[1:3] == (16, int(values.max()))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_little_of_16_bits_is_said_once_with_the_count_and_the_first(
    tmp_path: Path, bits: int
) -> None:
    files = []
    for seed in range(4):
        files.append(tmp_path / f"{seed}.png")
        Image.fromarray(part(seed, bits)).save(files[-1])
    [told] = said(detector().fit, files)
    assert told.startswith(f"4 images ({files[0]} is the first) of 16 bits with no value above ")
    assert "nearly black" in told
    assert "--sixteen-bit 0.5,99.5" in told
    stretched = detector(sixteen_bit="0.5,99.5")
    assert said(stretched.fit, files) == []
    assert said(stretched.predict, files[:1]) == []
    assert said(detector().fit, [part(n, 16) for n in range(3)]) == []


def test_another_depth_than_the_model_knows_is_said(tmp_path: Path) -> None:
    fitted = detector().fit([part(n, 8) for n in range(4)])
    fitted.save(tmp_path / "part.offn")
    for model in (fitted, offnominal.load(tmp_path / "part.offn")):
        assert said(model.predict, [part(9, 8)]) == []
        [told] = said(model.predict, [part(9, 8), part(8, 16), part(7, 16)])[:1]
        assert told.startswith("2 images (array (64, 80) uint16 is the first) of 16 bits, and the ")
        assert "fitted on pictures of 8" in told
        [told] = said(model.calibrate, [part(n, 16) for n in range(20, 23)])
        assert "fitted on pictures of 8" in told
    deep = detector().fit([part(n, 16) for n in range(4)])
    [told] = said(deep.predict, [part(9, 8)])
    assert told.startswith("1 image (array (64, 80) uint8) of 8 bits, and the model was fitted on")
    assert "fitted on pictures of 16" in told
    [told] = said(detector().fit, [part(1, 8), part(2, 16), part(3, 8)])
    assert told.startswith("depths are mixed, 2 images")
