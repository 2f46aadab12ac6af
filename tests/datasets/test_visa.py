"""VisA as distributed, and as its own script rearranges it."""

from pathlib import Path

import pytest
from tests.datasets.pictures import image, mask

from offnominal.datasets import open_dataset, sample_mask
from offnominal.errors import DatasetError

SPLIT = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0000.JPG,
candle,test,normal,candle/Data/Images/Normal/0001.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,candle/Data/Masks/Anomaly/001.png
"""
KINDS = """image,label,mask
candle/Data/Images/Normal/0000.JPG,normal,
candle/Data/Images/Anomaly/000.JPG,"chunk missing,burnt",candle/Data/Masks/Anomaly/000.png
"""


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    home = tmp_path / "candle" / "Data"
    image(home / "Images", *(f"Normal/000{n}.JPG" for n in range(2)))
    image(home / "Images", *(f"Anomaly/00{n}.JPG" for n in range(2)))
    mask(home / "Masks/Anomaly", "000.png", level=2)
    mask(home / "Masks/Anomaly", "001.png", level=1)
    (tmp_path / "candle/image_anno.csv").write_text(KINDS)
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text(SPLIT)
    return tmp_path


def test_splits_kinds_and_masks_of_class_numbers(visa: Path) -> None:
    for root in (visa, visa / "candle"):
        dataset = open_dataset(root)
        assert (dataset.layout, dataset.categories) == ("visa", ("candle",))
        assert dataset.notes == ()
        assert [s.image.name for s in dataset.train("candle")] == ["0000.JPG"]
        bad, other, good = dataset.test("candle")
        assert (good.image.name, good.label, good.mask) == ("0001.JPG", 0, None)
        assert (bad.defect, other.defect) == ("chunk missing,burnt", "anomaly")
        for sample in (bad, other):
            assert sample.label == 1
            assert sample.mask_threshold == 1
            assert sample.mask == visa / f"candle/Data/Masks/Anomaly/{sample.image.stem}.png"
            pixels = sample_mask(sample, (16, 24))
            assert pixels is not None
            assert pixels.sum() == 24


def test_without_the_split_file_good_images_are_divided_and_it_is_said(visa: Path) -> None:
    (visa / "split_csv/1cls.csv").unlink()
    image(visa / "candle/Data/Images/Normal", *(f"{n:04d}.JPG" for n in range(2, 40)))
    dataset = open_dataset(visa, train_share=0.75)
    train, test = dataset.train("candle"), dataset.test("candle")
    assert len(train) + len(test) == 42
    assert 22 <= len(train) <= 38
    assert not {s.image for s in train} & {s.image for s in test}
    (note,) = dataset.notes
    assert f"{len(train)} to learn from and {len(test) - 2} to test on" in note
    assert "train share 0.75" in note


def test_tables_that_do_not_fit_name_the_line(visa: Path) -> None:
    (visa / "split_csv/1cls.csv").write_text(SPLIT.replace("Normal/0001", "Normal/0009"))
    with pytest.raises(DatasetError, match=r"1cls.csv:3: no such image candle/.*0009.JPG"):
        open_dataset(visa)
    (visa / "split_csv/1cls.csv").write_text(SPLIT.replace("split,", "part,", 1))
    with pytest.raises(DatasetError, match=r"1cls.csv: no column 'split'"):
        open_dataset(visa)


def test_images_that_the_split_does_not_list_are_left_out_and_it_is_said(visa: Path) -> None:
    image(visa, "candle/Data/Images/Normal/0007.JPG")
    dataset = open_dataset(visa)
    assert len(dataset.samples) == 4
    assert "1 image not in 1cls.csv" in dataset.notes[0]
    assert "0007.JPG" in dataset.notes[0]


def test_the_one_class_layout_is_mvtec_layout(tmp_path: Path) -> None:
    image(tmp_path, "candle/train/good/0.JPG", "candle/test/good/1.JPG", "candle/test/bad/2.JPG")
    mask(tmp_path, "candle/ground_truth/bad/2.png")
    dataset = open_dataset(tmp_path, "visa")
    assert (dataset.name, dataset.layout) == ("visa", "mvtec")
    bad = dataset.test("candle")[0]
    assert bad.mask == tmp_path / "candle/ground_truth/bad/2.png"
    assert bad.mask_threshold == 128


def test_tables_that_contradict_themselves(visa: Path) -> None:
    table = visa / "split_csv/1cls.csv"
    table.write_bytes(("sep=;\r\n" + SPLIT.replace(",", ";")).encode("utf-16"))
    assert len(open_dataset(visa).samples) == 4
    for text, message in [
        (SPLIT.replace("train", "trian"), r"1cls.csv:2: split 'trian'; it must be train or test"),
        (SPLIT + "candle,test,x,candle/Data/Images/Normal/0000.JPG,\n", r":6: .* there twice"),
    ]:
        table.write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_dataset(visa)
