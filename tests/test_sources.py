"""What may be given where images are taken."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from offnominal import read_image
from offnominal.errors import ImageError, OptionError
from offnominal.sources import several

rng = np.random.default_rng(0)
PICTURES = rng.integers(0, 256, (5, 12, 16, 3), dtype=np.uint8)
TENSORS = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good").mkdir()
    for number, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"good/{number}.png")
    Image.fromarray(PICTURES[0]).save(tmp_path / "odd[1].png")
    return tmp_path


def read(given: Any, **options: Any) -> list[np.ndarray]:
    return [read_image(one) for one in several(given, **options)]


def same(found: list[np.ndarray], numbers: list[int]) -> bool:
    return len(found) == len(numbers) and all(
        np.array_equal(one, PICTURES[number]) for one, number in zip(found, numbers, strict=True)
    )


def test_names_of_all_kinds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    everything = [0, 1, 2, 3, 4]
    for given in ("good", Path("good"), "good/*.png", ["good"], ("good/[0-4].png",)):
        assert same(read(given), everything)
    mixed = ["good/1.png", Path("good"), "good/[34].png", PICTURES[2], "odd[1].png"]
    assert same(read(mixed), [1, 0, 1, 2, 3, 4, 3, 4, 2, 0])
    assert same(read(one for one in ["good", "good/3*"]), [*everything, 3])
    with pytest.raises(OptionError, match="the pattern matches no image"):
        several(["good/9*.png"])
    for given in (["good/part[9].png"], iter(["good/9*.png"])):  # which may be a file's name
        with pytest.raises(ImageError, match="does not exist"):
            read(given)


def test_stacks_and_batches() -> None:
    everything = [0, 1, 2, 3, 4]
    floats = TENSORS.float() / 255
    pairs = [(one, number) for number, one in enumerate(floats)]
    named = [{"image": one, "label": 0} for one in floats]
    for given in (PICTURES, list(PICTURES), TENSORS, floats, floats.double(), list(floats)):
        assert same(read(given), everything)
    for data in (list(floats), pairs, named, list(TENSORS)):
        assert same(read(DataLoader(data, batch_size=2)), everything)
        assert same(read(next(iter(DataLoader(data, batch_size=2)))), [0, 1])
    assert same(read((floats[1], 0)), [1])
    masks = list(zip(floats, floats[:, :1], strict=True))
    assert same(read(next(iter(DataLoader(masks, batch_size=2)))), [0, 1])
    assert read(TENSORS[:, :1])[0].shape == (12, 16, 3)
    assert same(read(torch.cat([TENSORS, TENSORS[:, :1]], 1)), everything)  # alpha goes


def test_it_stays_lazy() -> None:
    taken = []

    def camera() -> Iterator[np.ndarray]:
        for number in range(1000):
            taken.append(number)
            yield PICTURES[number % 5]

    images = iter(several(several(camera())))
    next(images)
    assert taken == [0]
    # An image of a batch does not keep the others in memory.
    one = next(iter(several(iter([TENSORS.clone()]))))
    assert isinstance(one, torch.Tensor)
    assert one.untyped_storage().nbytes() == one.numel()


def test_frames_of_opencv(folder: Path) -> None:
    frames = [cv2.cvtColor(one, cv2.COLOR_RGB2BGR) for one in PICTURES]
    tensors = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    for given in (frames, np.stack(frames), tensors, iter(frames)):
        assert same(read(given, channels="bgr"), [0, 1, 2, 3, 4])
    with_alpha = cv2.cvtColor(PICTURES[1], cv2.COLOR_RGB2BGRA)
    assert same(read(with_alpha, channels="bgr"), [1])
    assert same([read_image(frames[3], channels="bgr")], [3])
    # Files and Pillow images say their own, and grey has no order.
    files = [folder / "good/2.png", Image.fromarray(PICTURES[2])]
    assert same(read(files, channels="bgr"), [2, 2])
    assert read(PICTURES[0, :, :, 0], channels="bgr")[0].shape == (12, 16, 3)
    # Twice through the same door is once.
    assert same(read(several(frames, "bgr"), channels="bgr"), [0, 1, 2, 3, 4])
    with pytest.raises(OptionError, match="channels='BGR': give 'rgb', or 'bgr'"):
        several(frames, "BGR")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TENSORS.float() / 127.5 - 1, r"go from -.* to 1, and floats are taken on \[0, 1\]: leave"),
        (TENSORS.float(), r"go from 0 to 255.*: divide by"),
        (TENSORS[0].float() * np.nan, "some are no numbers"),
        (TENSORS[0].permute(1, 2, 0), r"tensor \(12, 16, 3\) uint8: .*permute\(2, 0, 1\)"),
        (TENSORS[:, :2], r"give \(C, H, W\) with 1, 3 or 4 channels first"),
        (TENSORS[0].int(), "its values are int32; scale them"),
        (PICTURES[0] / 255, "its values are float64; scale them"),
        ([[TENSORS[0], TENSORS[1]]], "holds two of this shape"),
        ([["a.png", "b.png"]], "is not an image; .* in one flat list"),
        ({"picture": TENSORS}, "dict is no image and no list"),
        (b"\x89PNG", "bytes is no image"),
        (None, "NoneType is no image"),
    ],
)
def test_what_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read(given)
