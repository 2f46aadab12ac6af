"""Masks by place and name: of other names, among the images, of several; and what is no part."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.datasets.pictures import image, mask, save

from offnominal.datasets import Dataset, open_dataset
from offnominal.datasets.check import check
from offnominal.pictures import save_picture


def parts(root: Path, *more: str) -> None:
    image(root, "train/good/0.png", "train/good/1.png", "test/good/0.png", *more)
    image(root, "test/dent/0.png", "test/dent/1.png")


def masks_of(dataset: Dataset) -> dict[str, str | None]:
    [name] = dataset.categories
    return {
        s.image.relative_to(dataset.root).as_posix(): s.mask
        and s.mask.relative_to(dataset.root).as_posix()
        for s in dataset.test(name)
        if s.label
    }


@pytest.mark.parametrize(
    "place",
    [
        "test/dent/{}_mask.png", "test/dent/mask_{}.png", "test/dent/{}-GT.bmp",
        "test/dent/masks/{}.png", "test/dent_mask/{}.png", "test/masks/dent/{}_mask.png",
        "test/Ground_Truth/dent/{}.png", "test/dent/{}.label.png",
    ],
)  # fmt: skip
def test_masks_among_the_images_are_taken_as_masks(tmp_path: Path, place: str) -> None:
    parts(tmp_path)
    mask(tmp_path, place.format(0), place.format(1))
    mask(tmp_path, "train/good/0_mask.png", "test/good/0_gt.png", level=0)
    dataset = open_dataset(tmp_path)
    assert masks_of(dataset) == {f"test/dent/{n}.png": place.format(n) for n in range(2)}
    assert len(dataset.samples) == 5
    text = "\n".join(dataset.notes)
    assert "masks among the images: 3, such as test/" in text
    assert "taken as masks, not as parts" in text
    assert "without an image" not in text


@pytest.mark.parametrize(
    "place",
    [
        "bad/{}_mask.png", "bad_mask/{}.png", "labels/{}.png", "bad/masks/{}.png", "Masks/{}.gif",
        "GT/bad/{}.png",
    ],
)  # fmt: skip
def test_masks_of_plain_folders(tmp_path: Path, place: str) -> None:
    image(tmp_path, "good/0.png", "good/1.png", "bad/0.png", "bad/1.png")
    for number in range(2):
        mask(tmp_path, "m.png")
        (tmp_path / place.format(number)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m.png").rename(tmp_path / place.format(number))  # a GIF by name only
    mask(tmp_path, "good_mask/0.png", level=0)
    expected = {f"bad/{n}.png": place.format(n) for n in range(2)}
    assert masks_of(open_dataset(tmp_path)) == expected
    if place.startswith("bad/"):
        named = open_dataset(good=tmp_path / "good", defects=tmp_path / "bad")
        assert [s.mask for s in named.test(tmp_path.name) if s.label] == [
            tmp_path / own for own in expected.values()
        ]


def test_a_name_alone_makes_no_mask(tmp_path: Path) -> None:
    # Parts whose label is torn, and a picture of the label of another.
    parts(tmp_path, "test/label/0.png", "test/dent/0_label.png")
    assert len(masks_of(open_dataset(tmp_path))) == 4


@pytest.mark.parametrize("name", ["masks", "GT", "Ground Truth", "Ground_Truth", "GroundTruth"])
def test_folders_of_masks_by_other_names(tmp_path: Path, name: str) -> None:
    parts(tmp_path)
    mask(tmp_path, f"{name}/DENT/0_mask.png", f"{name}/DENT/1_mask.png")
    (tmp_path / name / "DENT/tools.json").write_text("{}")
    dataset = open_dataset(tmp_path)
    assert masks_of(dataset)["test/dent/1.png"] == f"{name}/DENT/1_mask.png"
    assert f"{tmp_path.name}: {name}: 1 file passed over: 1 .json" in dataset.notes


def test_folders_that_have_no_place_are_named(tmp_path: Path) -> None:
    parts(tmp_path / "nut", "Masken/dent/0.png")
    image(tmp_path, "nut/Masken/dent/0.png", "bolt/pictures/0.png")
    text = "\n".join(open_dataset(tmp_path).notes)
    assert "nut: Masken has 1 image, but no place in the layout: not used" in text
    assert "bolt has 1 image, but neither train nor test: not used" in text


def test_one_mask_for_two_images(tmp_path: Path) -> None:
    home = tmp_path / "by_name"
    image(home, "good/0.png", "good/1.png", "dent/0.png", "rust/0.png", "rust/1.png")
    mask(home, "masks/0_mask.png", "masks/1_mask.png")
    dataset = open_dataset(home)
    assert masks_of(dataset) == {
        "dent/0.png": None, "rust/0.png": None, "rust/1.png": "masks/1_mask.png",
    }  # fmt: skip
    assert "2 images of one name in several folders, such as dent/0.png" in "\n".join(dataset.notes)
    home = tmp_path / "by_place"
    parts(home, "test/dent/0.jpg")
    mask(home, "ground_truth/dent/0_mask.png", "ground_truth/good/0.png")
    text = "\n".join(open_dataset(home).notes)
    assert "masks of more than one image: 1, such as ground_truth/dent/0_mask.png" in text
    assert "masks of good images: 1, such as ground_truth/good/0.png: not used" in text


def test_names_that_differ_in_capitals_have_their_own_masks(tmp_path: Path) -> None:
    parts(tmp_path, "test/Dent/0.png")
    mask(tmp_path, "ground_truth/Dent/0_mask.png", "ground_truth/dent/0_mask.png")
    if (tmp_path / "test/DENT").exists():
        pytest.skip("this disk does not tell capitals apart")
    dataset = open_dataset(tmp_path)
    found = masks_of(dataset)
    assert found["test/Dent/0.png"] == "ground_truth/Dent/0_mask.png"
    assert found["test/dent/0.png"] == "ground_truth/dent/0_mask.png"
    assert "names that differ in capitals only: 2" in "\n".join(dataset.notes)


def test_what_is_no_part_is_passed_over_with_a_word(tmp_path: Path) -> None:
    image(tmp_path, "good/0.png", "good/1.jpg", "bad/0.png")
    shutil.copy(tmp_path / "good/1.jpg", tmp_path / "good/2.jfif")
    save(tmp_path / "good/3.jpg", np.full((16, 24, 3), 9, np.uint8))
    (tmp_path / "good/3.jpg").rename(tmp_path / "good/3.JPE")
    for name in ("good/a.gif", "good/b.gif", "bad/c.heic", "good/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    image(tmp_path, "@eaDir/x.png", "$RECYCLE.BIN/y.png", "__MACOSX/bad/z.png", "bad/@eaDir/w.png")
    image(tmp_path, "System Volume Information/v.png")
    (tmp_path / "results/overlays").mkdir(parents=True)
    (tmp_path / "results/run.json").write_text("{}")
    (tmp_path / "results/results.jsonl").write_text("")
    for name in ("results/overlays/0.png", "bad/0_overlay.png"):
        save_picture(tmp_path / name, np.zeros((16, 24, 3), np.uint8))
    (tmp_path / "bad/round").symlink_to(tmp_path)
    dataset = open_dataset(tmp_path)
    assert len(dataset.samples) == 5
    assert dataset.notes[0] == "good images from good, defective ones from bad"
    assert dataset.notes[-1].startswith("7 files passed over: 4 written by Offnominal, 2 .gif, 1 ")
    assert check(dataset).unreadable == 0


def test_names_in_any_encoding(tmp_path: Path) -> None:
    home = tmp_path / "set"
    image(home, "good/0.png", "good/1.png", "bad/0.png", "bad/a\u2028b\nc.png")
    try:
        os.rename(home / "good/0.png", os.fsencode(home) + b"/good/pi\xe8ce.png")  # noqa: PTH104
    except OSError:
        pytest.skip("this disk takes UTF-8 only")
    dataset = open_dataset(home)
    assert len(dataset.samples) == 4
    assert check(dataset).unreadable == 0
