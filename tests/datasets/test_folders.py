"""Plain folders: named one by one, or found under a common one."""

from pathlib import Path

import pytest
from tests.datasets.pictures import image, mask

from offnominal.datasets import Sample, open_dataset
from offnominal.errors import DatasetError, OptionError


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    home = tmp_path / "parts"
    image(home, *(f"good/{n:03d}.png" for n in range(40)))
    image(home, "bad/scratch/a.png", "bad/scratch/deep/b.png", "bad/c.jpg")
    mask(home, "masks/scratch/a_mask.png", "masks/b.bmp")
    return home


def test_folders_named_one_by_one(parts: Path) -> None:
    image(parts, "more/x.png", "more/y.png")
    dataset = open_dataset(
        good=parts / "good", defects=parts / "bad", masks=parts / "masks", test_good=parts / "more"
    )
    assert (dataset.name, dataset.layout, dataset.root) == ("parts", "folders", parts)
    assert dataset.categories == ("parts",)
    assert len(dataset.train("parts")) == 40
    assert dataset.test("parts") == [
        Sample(parts / "bad/c.jpg", 1, None, "defect", "parts", "test"),
        Sample(
            parts / "bad/scratch/a.png", 1, parts / "masks/scratch/a_mask.png", "scratch",
            "parts", "test",
        ),
        # Not mirrored by place, but the only mask of that name.
        Sample(
            parts / "bad/scratch/deep/b.png", 1, parts / "masks/b.bmp", "scratch", "parts", "test",
        ),
        Sample(parts / "more/x.png", 0, None, "good", "parts", "test"),
        Sample(parts / "more/y.png", 0, None, "good", "parts", "test"),
    ]  # fmt: skip
    assert dataset.notes == ()


def test_a_division_nobody_asked_for_is_said_and_does_not_move(parts: Path) -> None:
    first = open_dataset(good=str(parts / "good"), defects=[parts / "bad"])
    train = [s.image.name for s in first.train("parts")]
    assert 10 <= len(train) <= 30
    (note,) = first.notes
    assert f"{len(train)} to learn from and {40 - len(train)} to test on" in note
    assert "train share 0.5" in note
    image(parts, *(f"good/{n:03d}.png" for n in range(40, 60)))
    moved = parts.rename(parts.parent / "elsewhere")
    second = open_dataset(good=moved / "good", defects=moved / "bad")
    again = [s.image.name for s in second.train("elsewhere") if int(s.image.stem) < 40]
    assert again == train
    # A larger share keeps those of a smaller one.
    most = open_dataset(good=moved / "good", defects=moved / "bad", train_share=0.9)
    assert {s.image.name for s in second.train("elsewhere")} < {
        s.image.name for s in most.train("elsewhere")
    }


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_neither_side_of_a_division_stays_empty(tmp_path: Path, share: float) -> None:
    image(tmp_path, "set/good/1.png", "set/good/2.png", "set/bad/3.png")
    dataset = open_dataset(tmp_path / "set", train_share=share)
    assert len(dataset.train("set")) == 1
    assert [s.label for s in dataset.test("set")] == [1, 0]


def test_all_or_none_to_learn_from(parts: Path) -> None:
    folders = {"good": parts / "good", "defects": parts / "bad"}
    assert len(open_dataset(**folders, train_share=1).train("parts")) == 40
    assert len(open_dataset(**folders, train_share=0).train("parts")) == 0


def test_patterns(parts: Path) -> None:
    dataset = open_dataset(
        good=[f"{parts}/good/00*.png", f"{parts}/good/01*.png"],
        defects=f"{parts}/bad/**/*.png",
        masks=parts / "masks",
        name="few",
        train_share=1,
    )
    assert len(dataset.train("few")) == 20
    assert [(s.image.stem, s.defect, s.mask is not None) for s in dataset.test("few")] == [
        ("a", "scratch", True),
        ("b", "scratch", True),
    ]


def test_a_common_folder(parts: Path) -> None:
    (parts / "bad").rename(parts / "dent")
    dataset = open_dataset(parts)
    assert dataset.layout == "folders"
    defective = [s for s in dataset.test("parts") if s.label]
    assert {s.defect for s in defective} == {"dent"}
    # masks/scratch/a_mask.png is found by name, as masks has no folder dent.
    assert [s.mask is not None for s in defective] == [False, True, True]
    assert dataset.notes[0] == "good images from good, defective ones from dent, masks from masks"
    assert dataset.notes[1].startswith("parts: the good images were divided here")


@pytest.mark.parametrize("name", ["more-good", "good2", "not ok", "No_Good"])
def test_a_folder_that_may_be_good_or_not_is_not_guessed(parts: Path, name: str) -> None:
    image(parts, f"{name}/0.png")
    with pytest.raises(DatasetError, match=f"{name}: good or defective.*--test-good"):
        open_dataset(parts)


def test_the_same_name_in_two_places_is_not_guessed(parts: Path) -> None:
    mask(parts, "masks/left/c.png", "masks/right/c.png")
    dataset = open_dataset(good=parts / "good", defects=parts / "bad", masks=parts / "masks")
    assert dataset.test("parts")[0].mask is None
    text = "\n".join(dataset.notes)
    assert "several masks fit 1 image, such as c.jpg" in text
    assert "2 masks without an image of that name" in text


def test_masks_among_the_defects_are_no_images(parts: Path) -> None:
    (parts / "masks").rename(parts / "bad/masks")
    dataset = open_dataset(
        good=parts / "good", defects=parts / "bad", masks=parts / "bad/masks", train_share=1
    )
    assert [s.image.name for s in dataset.test("parts")] == ["c.jpg", "a.png", "b.png"]
    assert "lies among the defects: its images are masks only" in dataset.notes[0]


def test_images_on_two_sides_are_refused(parts: Path) -> None:
    with pytest.raises(OptionError, match=r"3 images in both --good and --defects, such as .*bad"):
        open_dataset(good=parts, defects=parts / "bad")
    with pytest.raises(OptionError, match="40 images in both --test-good and --good"):
        open_dataset(good=parts / "good", defects=parts / "bad", test_good=parts / "good")
    with pytest.raises(OptionError, match="1 image in both --test-good and --defects"):
        open_dataset(
            good=parts / "good", defects=parts / "bad", test_good=str(parts / "bad" / "*.jpg")
        )


def test_folders_that_are_not_there(parts: Path) -> None:
    with pytest.raises(OptionError, match="no such file or folder"):
        open_dataset(good=parts / "fine", defects=parts / "bad")
    (parts / "none").mkdir()
    with pytest.raises(OptionError, match="no images in this folder"):
        open_dataset(good=parts / "good", defects=parts / "none")
    with pytest.raises(DatasetError, match="no such folder of masks"):
        open_dataset(good=parts / "good", defects=parts / "bad", masks=parts / "nowhere")
