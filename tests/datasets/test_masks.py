"""Reading masks: what counts as defective, sizes, folders of several."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.datasets.pictures import mask

from offnominal.datasets import Sample, open_dataset, read_mask, sample_mask
from offnominal.errors import DatasetError


def test_faint_noise_of_masks_stored_as_jpeg_does_not_count(tmp_path: Path) -> None:
    truth = np.zeros((64, 96), bool)
    truth[20:40, 30:60] = True
    cv2.imwrite(
        str(tmp_path / "m.jpg"), truth.astype(np.uint8) * 255, [cv2.IMWRITE_JPEG_QUALITY, 60]
    )
    noisy = cv2.imread(str(tmp_path / "m.jpg"), cv2.IMREAD_GRAYSCALE)
    assert noisy is not None
    assert np.count_nonzero(noisy) > np.count_nonzero(truth)
    assert np.array_equal(read_mask(tmp_path / "m.jpg", (64, 96)), truth)


def test_masks_in_colour_in_one_bit_and_in_class_numbers(tmp_path: Path) -> None:
    truth = np.zeros((8, 9), bool)
    truth[2:4, 3:7] = True
    Image.fromarray(truth).save(tmp_path / "bits.png")
    colour = np.repeat(truth[..., None].astype(np.uint8) * 255, 3, 2)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(truth.astype(np.uint8) * 3).save(tmp_path / "classes.png")
    assert np.array_equal(read_mask(tmp_path / "bits.png", (8, 9)), truth)
    assert np.array_equal(read_mask(tmp_path / "colour.png", (8, 9)), truth)
    assert np.array_equal(read_mask(tmp_path / "classes.png", (8, 9), threshold=1), truth)
    assert not read_mask(tmp_path / "classes.png", (8, 9), threshold=4).any()


def test_the_threshold_is_the_smallest_level_that_counts(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (16, 16)).sum() == 128
    assert read_mask(tmp_path / "m.png", (16, 16), 255).sum() == 1
    assert read_mask(tmp_path / "m.png", (16, 16), 1).sum() == 255


def test_a_folder_counts_as_the_union_of_its_masks(tmp_path: Path) -> None:
    mask(tmp_path, "000/000.png")
    other = np.zeros((16, 24), np.uint8)
    other[0:2, 0:3] = 200
    Image.fromarray(other).save(tmp_path / "000/001.png")
    union = read_mask(tmp_path / "000", (16, 24))
    assert union.sum() == 24 + 6
    assert union[4:8, 6:12].all()
    assert union[0:2, 0:3].all()
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="none: no mask in this folder"):
        read_mask(tmp_path / "none", (16, 24))


def test_a_mask_of_the_same_shape_but_another_size_is_resized(tmp_path: Path) -> None:
    mask(tmp_path, "m.png")
    twice = read_mask(tmp_path / "m.png", (32, 48))
    expected = np.zeros((32, 48), bool)
    expected[8:16, 12:24] = True
    assert twice.dtype == np.bool_
    assert np.array_equal(twice, expected)
    half = read_mask(tmp_path / "m.png", (8, 12))
    assert np.array_equal(half, expected[::4, ::4])
    # 1 % is allowed for the rounding of sizes: 1.5 and 1.51 are within, 1.5 and 1.52 are not.
    assert read_mask(tmp_path / "m.png", (100, 151)).any()
    with pytest.raises(DatasetError, match="24x16 pixels and its image 152x100; export the mask"):
        read_mask(tmp_path / "m.png", (100, 152))


def test_masks_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    with pytest.raises(DatasetError, match=r"m.png: no such mask"):
        read_mask(path, (8, 9))
    path.write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=r"m.png: the mask cannot be read"):
        read_mask(path, (8, 9))
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(path)
    with pytest.raises(DatasetError, match="9x8 pixels and its image 8x9"):
        read_mask(path, (9, 8))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for end in (20, len(whole) // 2):
        path.write_bytes(whole[:end])
        with pytest.raises(DatasetError, match="cannot be read"):
            read_mask(path, (8, 9))
    Image.fromarray(np.zeros((8, 9), np.uint16)).save(path)
    with pytest.raises(DatasetError, match="8 bits"):
        read_mask(path, (8, 9))


def test_the_mask_of_a_sample(tmp_path: Path) -> None:
    mask(tmp_path, "m.png", level=2)
    file, picture = tmp_path / "m.png", tmp_path / "i.png"
    good = sample_mask(Sample(picture, 0, None, "good", "nut", "test"), (4, 5))
    assert good is not None
    assert good.dtype == np.bool_
    assert good.shape == (4, 5)
    assert not good.any()
    assert sample_mask(Sample(picture, 1, None, "dent", "nut", "test"), (4, 5)) is None
    for threshold, area in [(128, 0), (1, 24)]:
        found = sample_mask(Sample(picture, 1, file, "dent", "nut", "test", threshold), (16, 24))
        assert found is not None
        assert found.sum() == area


def test_every_mask_of_the_tiles_fits_its_image(tiles: Path) -> None:
    samples = [s for s in open_dataset(tiles).test("magnetic_tile") if s.label]
    empty = []
    for sample in samples:
        with Image.open(sample.image) as picture:
            found = sample_mask(sample, (picture.height, picture.width))
        assert found is not None
        if not found.any():
            empty.append(sample.defect)
    assert empty == ["uneven"] * 4
