"""MVTec layout and its variants: every file lands where it belongs."""

from collections import Counter
from pathlib import Path

import pytest
from tests.datasets.pictures import image, mask

from offnominal.datasets import Sample, open_dataset
from offnominal.datasets.synthetic import DEFECTS, write_dataset
from offnominal.errors import DatasetError, OptionError


def test_magnetic_tiles_are_all_there(tiles: Path) -> None:
    by_root, by_category = open_dataset(tiles.parent), open_dataset(tiles)
    assert (by_root.name, by_category.name) == ("mtd", "magnetic_tile")
    assert by_root.samples == by_category.samples
    for dataset in (by_root, by_category):
        assert dataset.layout == "mvtec"
        assert dataset.categories == ("magnetic_tile",)
        assert dataset.notes == ()
        train, test = dataset.train("magnetic_tile"), dataset.test("magnetic_tile")
        assert len(train) == 761
        assert all(s.label == 0 and s.mask is None and s.split == "train" for s in train)
        assert [s.image for s in train] == sorted(s.image for s in train)
        kinds = {"good": 191, "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103}
        assert Counter(s.defect for s in test) == kinds
        for s in test:
            assert s.label == (s.defect != "good")
            if s.label:
                assert s.mask == tiles / "ground_truth" / s.defect / f"{s.image.stem}_mask.png"
                assert s.mask.is_file()


def test_a_relative_root_keeps_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path, "nut/train/good/0.png", "nut/test/good/1.png")
    monkeypatch.chdir(tmp_path / "nut")
    for root in (".", "../nut", "../nut/."):
        assert open_dataset(root).categories == ("nut",)
    monkeypatch.chdir(tmp_path / "nut" / "train")
    assert open_dataset("..").categories == ("nut",)
    assert open_dataset("..").name == "nut"


@pytest.mark.slow
def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = write_dataset(tmp_path, ("fabric", "part"), n_train=2, n_good=1, n_per_defect=1)
    dataset = open_dataset(tmp_path)
    assert dataset.categories == ("fabric", "part")
    assert set(dataset.samples) == set(written)
    assert {s.defect for s in dataset.test("fabric")} == {"good", *DEFECTS["fabric"]}


@pytest.mark.parametrize(
    "name",
    [
        "000_mask.png", "000.png", "000.bmp", "000_GT.png", "000_gt.jpg", "000_Mask.PNG",
        "000_label.png", "000_Segmentation.png",
    ],
)  # fmt: skip
def test_masks_under_any_of_the_usual_names(tmp_path: Path, name: str) -> None:
    image(tmp_path, "train/good/0.png", "test/dent/000.png", "test/dent/001.png")
    mask(tmp_path, f"ground_truth/dent/{name}")
    dataset = open_dataset(tmp_path)
    with_mask, without = dataset.test(tmp_path.name)
    assert with_mask.mask == tmp_path / "ground_truth/dent" / name
    assert without.mask is None
    assert without.label == 1


def test_folders_called_ok_and_ko(tmp_path: Path) -> None:
    """BTAD: train/ok, test/ok, test/ko, masks as bmp or png."""
    image(tmp_path, "01/train/ok/0.bmp", "01/test/ok/1.bmp", "01/test/ko/2.bmp")
    mask(tmp_path, "01/ground_truth/ko/2.png")
    dataset = open_dataset(tmp_path, "btad")
    assert (dataset.name, dataset.layout) == ("btad", "mvtec")
    home = tmp_path / "01"
    assert set(dataset.samples) == {
        Sample(home / "train/ok/0.bmp", 0, None, "good", "01", "train"),
        Sample(home / "test/ok/1.bmp", 0, None, "good", "01", "test"),
        Sample(home / "test/ko/2.bmp", 1, home / "ground_truth/ko/2.png", "ko", "01", "test"),
    }


def test_folders_of_several_masks_and_a_validation_split(tmp_path: Path) -> None:
    """MVTec LOCO AD."""
    image(
        tmp_path, "box/train/good/000.png", "box/validation/good/000.png", "box/test/good/000.png",
        "box/test/logical_anomalies/000.png", "box/test/structural_anomalies/000.png",
    )  # fmt: skip
    truth = "box/ground_truth/logical_anomalies/000"
    mask(tmp_path, f"{truth}/000.png", f"{truth}/001.png")
    (tmp_path / "box/defects_config.json").write_text("[]")
    dataset = open_dataset(tmp_path, "loco")
    found = {(s.split, s.defect): s for s in dataset.samples}
    assert found["test", "logical_anomalies"].mask == tmp_path / truth
    assert found["test", "structural_anomalies"].mask is None
    assert found["validation", "good"].label == 0
    assert len(dataset.train("box")) == 1
    assert len(dataset.test("box")) == 3
    (note,) = dataset.notes
    assert note == "box: 1 image for validation: neither learned from nor tested"


def test_a_public_test_folder_with_its_masks_inside(tmp_path: Path) -> None:
    """MVTec AD 2."""
    home = tmp_path / "can"
    image(
        home, "train/good/000_regular.png", "validation/good/000_regular.png",
        "test_public/good/000_regular.png", "test_public/bad/000_overexposed.png",
        "test_private/000_regular.png",
    )  # fmt: skip
    truth = "test_public/ground_truth/bad/000_overexposed_mask.png"
    mask(home, truth)
    dataset = open_dataset(tmp_path, "mvtec2")
    good, bad = sorted(dataset.test("can"), key=lambda s: s.label)
    assert (good.defect, good.mask) == ("good", None)
    assert (bad.defect, bad.mask) == ("bad", home / truth)
    assert len(dataset.samples) == 4
    assert any("test_private has no public labels: not used" in note for note in dataset.notes)


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    image(
        tmp_path, "train/good/0.png", "train/bad/1.png", "train/loose.png", "test/good/2.png",
        "test/dent/3.png", "test/dent/.hidden.png",
    )  # fmt: skip
    mask(tmp_path, "ground_truth/dent/9_mask.png", "ground_truth/dent/3.png")
    mask(tmp_path, "ground_truth/dent/3_mask.png")
    (tmp_path / "test/dent/notes.txt").write_text("x")
    dataset = open_dataset(tmp_path)
    (defective,) = [s for s in dataset.test(tmp_path.name) if s.label]
    assert defective.mask == tmp_path / "ground_truth/dent/3_mask.png"
    assert [s.image.name for s in dataset.train(tmp_path.name)] == ["0.png"]
    text = "\n".join(dataset.notes)
    assert "1 mask without an image of that name" in text
    assert "9_mask.png" in text
    assert "several masks fit 1 image, such as dent/3.png" in text
    assert "1 image directly in train or test" in text
    assert "1 defective image in the training split" in text
    assert dataset.notes[-1] == "1 file passed over: 1 .txt"
    assert len(dataset.notes) == 5


def test_a_label_does_not_come_from_the_mask(tmp_path: Path) -> None:
    image(tmp_path, "train/good/0.png", "test/good/1.png", "test/dent/2.png")
    mask(tmp_path, "ground_truth/dent/2_mask.png", level=0)
    mask(tmp_path, "ground_truth/good/1_mask.png")
    samples = {s.image.name: s for s in open_dataset(tmp_path).test(tmp_path.name)}
    assert samples["2.png"].label == 1
    assert samples["1.png"].label == 0
    assert samples["1.png"].mask is None


def test_a_test_split_without_training_is_allowed_but_not_the_reverse(tmp_path: Path) -> None:
    image(tmp_path, "zero/brain/test/good/0.png", "zero/brain/test/bleeding/1.png")
    dataset = open_dataset(tmp_path / "zero", "headct")
    assert (dataset.name, dataset.train("brain")) == ("headct", [])
    assert len(dataset.test("brain")) == 2
    image(tmp_path, "many/nut/train/good/0.png", "many/nut/test/good/1.png")
    image(tmp_path, "many/bolt/train/good/0.png")
    with pytest.raises(DatasetError, match=r"bolt: no images to test on; .*test/good"):
        open_dataset(tmp_path / "many")
    assert open_dataset(tmp_path / "many", categories=["nut"]).categories == ("nut",)
    with pytest.raises(OptionError, match="no category 'bolt'; there are nut"):
        open_dataset(tmp_path / "many", categories=["nut"]).train("bolt")
    (tmp_path / "many/bolt/test/good").mkdir(parents=True)
    with pytest.raises(DatasetError, match="bolt: no images to test on"):
        open_dataset(tmp_path / "many")


def test_a_category_with_a_misspelt_folder_is_not_lost_without_a_word(tmp_path: Path) -> None:
    image(tmp_path, "nut/train/good/0.png", "nut/test/good/1.png", "bolt/train/godo/0.png")
    dataset = open_dataset(tmp_path)
    assert dataset.categories == ("nut",)
    assert dataset.notes == ("bolt has train or test, but no folder called good in it: not used",)


def test_a_link_that_leads_round_and_round(tmp_path: Path) -> None:
    image(tmp_path, "train/good/0.png", "test/good/1.png", "test/dent/2.png")
    (tmp_path / "test/dent/again").symlink_to(tmp_path / "test/dent")
    assert len(open_dataset(tmp_path).samples) == 3
